"""Where the objects are on a map, for FGD."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from congener.errors import ShapeError
from congener.ops.boxes import check_boxes
from congener.ops.precision import upcast

__all__ = ["fgd_foreground"]


def fgd_foreground(
    boxes: Sequence[Float[Tensor, "_ 4"]],
    image_sizes: Sequence[tuple[float, float]],
    size: Sequence[int],
) -> Float[Tensor, "batch height width"]:
    """Mark each place of a map by the smallest object it lies in: 1 over the object's places.

    A box covers the places from the floor of its low to the ceiling of its high corner, both
    included; its places are counted as if the map did not end.

    Args:
        boxes: the true boxes of each image, (boxes, 4): left, top, right, bottom, in pixels.
        image_sizes: (height, width) of each image in these pixels, without padding.
        size: (height, width) of the map.

    Returns:
        (batch, height, width): 0 in the background.

    Raises:
        ShapeError: boxes that are not (boxes, 4), or not as many lists of them as sizes.

    >>> fgd_foreground([torch.tensor([[0.0, 0, 10, 20]])], [(40, 40)], (2, 4))
    tensor([[[0.2500, 0.2500, 0.0000, 0.0000],
             [0.2500, 0.2500, 0.0000, 0.0000]]])
    """
    if len(boxes) != len(image_sizes):
        raise ShapeError(
            f"boxes of {len(boxes)} images and image_sizes of {len(image_sizes)} must be of the "
            "same images; give (0, 4) boxes for an image without objects."
        )
    marks = [
        _mark(own, image_size, size) for own, image_size in zip(boxes, image_sizes, strict=True)
    ]
    return torch.stack(marks) if marks else torch.zeros(0, *size)


def _mark(boxes: Tensor, image_size: tuple[float, float], size: Sequence[int]) -> Tensor:
    check_boxes("boxes", boxes)
    (boxes,) = upcast(boxes)
    if not len(boxes):
        return boxes.new_zeros(*size)
    height, width = size
    scaled = boxes / boxes.new_tensor(image_size).flip(0).repeat(2)
    scaled = scaled * boxes.new_tensor((width, height, width, height))
    low, high = scaled[:, :2].floor(), scaled[:, 2:].ceil()
    x, y = torch.arange(width).to(boxes), torch.arange(height).to(boxes)
    columns = (x >= low[:, :1]) & (x <= high[:, :1])
    rows = (y >= low[:, 1:]) & (y <= high[:, 1:])
    inside = rows[:, :, None] & columns[:, None, :]
    share = 1 / (high - low + 1).prod(dim=1)
    return torch.where(inside, share[:, None, None], 0).amax(dim=0)
