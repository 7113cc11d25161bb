"""Boxes (left, top, right, bottom) and marks on maps."""

from typing import Literal

import torch
from torch import Tensor

from congener.errors import ShapeError

__all__ = ["box_overlaps", "check_boxes", "check_places", "generalized_overlaps"]

LEAST_AREA = 1e-7
"""What divides by a smaller area divides by this one, as torchvision adds it to every area."""


def check_boxes(name: str, boxes: Tensor) -> None:
    """Boxes must be (boxes, 4).

    Raises:
        ShapeError: they are not.
    """
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ShapeError(
            f"{name} {tuple(boxes.shape)} must be (boxes, 4): left, top, right, bottom; give "
            "(0, 4) where there is none."
        )


def check_places(
    name: str, places: Tensor, feature: Tensor, *, kind: Literal["boolean", "floating point"]
) -> None:
    """Marks of places must be (batch, height, width) for a map (batch, channels, height, width).

    Raises:
        ShapeError: they are not.
        ValueError: they are of another kind.
    """
    wanted = (feature.shape[0], *feature.shape[2:])
    if tuple(places.shape) != wanted:
        raise ShapeError(
            f"{name} {tuple(places.shape)} must be (batch, height, width) = {wanted} for "
            f"student_feature {tuple(feature.shape)}; make it for the size of this map."
        )
    if not (places.is_floating_point() if kind == "floating point" else places.dtype == torch.bool):
        raise ValueError(f"{name} must be {kind}, not {places.dtype}.")


def box_overlaps(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of each pair of boxes; 0 where both are empty.

    Args:
        first: (rows, 4).
        second: (columns, 4).

    Returns:
        (rows, columns), in [0, 1].

    >>> box_overlaps(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 0, 3, 2], [5, 5, 6, 6]]))
    tensor([[0.3333, 0.0000]])
    """
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    return shared / torch.where(union > 0, union, 1)


def generalized_overlaps(first: Tensor, second: Tensor) -> Tensor:
    """Generalised intersection over union of boxes, one by one (Rezatofighi et al., CVPR 2019).

    The overlap, less the share of the smallest box around both that neither covers.

    Args:
        first: (..., 4).
        second: likewise.

    Returns:
        (...), from -1 to 1; 0 for two empty boxes at one place.

    >>> generalized_overlaps(torch.tensor([0.0, 0, 2, 2]), torch.tensor([4.0, 0, 6, 2]))
    tensor(-0.3333)
    """
    shared, around = (
        _area(outer(first[..., :2], second[..., :2]), inner(first[..., 2:], second[..., 2:]))
        for outer, inner in ((torch.maximum, torch.minimum), (torch.minimum, torch.maximum))
    )
    union = sum(_area(boxes[..., :2], boxes[..., 2:]) for boxes in (first, second)) - shared
    empty = (around - union) / around.clamp(min=LEAST_AREA)
    return shared / union.clamp(min=LEAST_AREA) - empty


def _area(low: Tensor, high: Tensor) -> Tensor:
    """Of boxes; 0 where a side is negative."""
    width, height = (high - low).clamp(min=0).unbind(dim=-1)
    return width * height
