"""Where the student of FGFI imitates: around the objects."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.errors import ShapeError
from congener.ops.boxes import box_overlaps, check_boxes

__all__ = ["fgfi_near_object"]


def fgfi_near_object(
    anchors: Float[Tensor, "height width anchors 4"],
    boxes: Sequence[Float[Tensor, "_ 4"]],
    *,
    threshold: float = 0.5,
) -> Bool[Tensor, "batch height width"]:
    """Places one of whose anchors overlaps an object nearly as well as the best anchor does.

    For each object, near means above ``threshold`` times the best overlap of all anchors with it;
    an object that no anchor touches has no place. Overlap is intersection over union, of boxes
    with real coordinates; the authors' code counts pixels, whose widths are larger by one.

    Args:
        anchors: (height, width, anchors, 4): left, top, right, bottom, in pixels of the image.
        boxes: the true boxes of each image, (boxes, 4), in the same pixels.
        threshold: ψ, 0.5 in paper and authors' code.

    Returns:
        (batch, height, width), True near an object.

    Raises:
        ShapeError: the anchors or some boxes have other axes.

    >>> anchors = torch.tensor([[[[0.0, 0, 4, 4]], [[4.0, 0, 8, 4]], [[8.0, 0, 12, 4]]]])
    >>> fgfi_near_object(anchors, [torch.tensor([[1.0, 0, 5, 4]]), torch.zeros(0, 4)])
    tensor([[[ True, False, False]],
    <BLANKLINE>
            [[False, False, False]]])
    """
    if anchors.dim() != 4 or anchors.shape[3] != 4:
        raise ShapeError(
            f"anchors {tuple(anchors.shape)} must be (height, width, anchors, 4); keep the axes of "
            "the map."
        )
    near = torch.zeros(len(boxes), *anchors.shape[:2], dtype=torch.bool, device=anchors.device)
    for image, own in enumerate(boxes):
        check_boxes(f"boxes[{image}]", own)
        if len(own) and anchors.numel():
            overlaps = box_overlaps(anchors.reshape(-1, 4), own.to(anchors))
            above = overlaps > threshold * overlaps.amax(dim=0)
            near[image] = above.any(dim=1).reshape(anchors.shape[:3]).any(dim=2)
    return near
