"""Moving images and boxes alike: a window is cut out, resized to the full size, perhaps mirrored.

What moves a batch is drawn beforehand and kept as one tensor, ``geometry`` (batch, 5), with the
columns of :data:`COLUMNS`, so that boxes, other pictures of the same scenes (adversarial ones) and
the images themselves move by the same numbers:

=================================  ==========================================================
column                             meaning
=================================  ==========================================================
``mirrored``                       1: left and right are exchanged, after the window is cut
``top``, ``left``                  where the window begins, in whole pixels
``height``, ``width``              its size, in whole pixels, at least 1
=================================  ==========================================================
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as V

from congener.errors import DataError, ShapeError

__all__ = ["COLUMNS", "moved_boxes", "moved_images", "still"]

COLUMNS = ("mirrored", "top", "left", "height", "width")
LEAST_SHARE = 0.25  # of an object's area that a window must keep; ours
LEAST_SIDE = 2.0  # pixels of a side of an object that a window has cut; ours


def still(
    count: int, size: tuple[int, int], *, device: torch.device | str | None = None
) -> Float[Tensor, "batch 5"]:
    """The geometry that moves nothing.

    Args:
        count: how many images.
        size: their height and width.
        device: where the numbers are needed.

    >>> still(1, (48, 64))
    tensor([[ 0.,  0.,  0., 48., 64.]])
    """
    row = torch.tensor([0, 0, 0, *size], dtype=torch.float32, device=device)
    return row.repeat(count, 1)


def moved_images(images: Tensor, geometry: Float[Tensor, "batch 5"]) -> Tensor:
    """Images as a geometry has them.

    Args:
        images: (batch, channels, height, width), bytes or floats.
        geometry: (batch, 5).

    Returns:
        Images of the same shape and type; those that do not move have the same bits.

    Raises:
        DataError: a window that does not lie in the image.
        ShapeError: there is not a row for each image.

    >>> moved_images(torch.tensor([[[[1, 2, 3]]]]), torch.tensor([[1.0, 0, 0, 1, 3]]))
    tensor([[[[3, 2, 1]]]])
    """
    if images.dim() != 4:
        raise ShapeError(f"images {tuple(images.shape)} must be (batch, channels, height, width).")
    size = images.shape[-2], images.shape[-1]
    moved = []
    for image, (mirrored, *window) in zip(images, _rows(geometry, len(images), size), strict=True):
        image = V.resized_crop(image, *window, size=list(size))
        moved.append(V.horizontal_flip(image) if mirrored else image)
    return torch.stack(moved) if moved else images


def moved_boxes(
    boxes: Float[Tensor, "batch objects 4"],
    labels: Int[Tensor, "batch objects"],
    geometry: Float[Tensor, "batch 5"],
    size: tuple[int, int],
) -> tuple[Float[Tensor, "batch objects 4"], Int[Tensor, "batch objects"]]:
    """Boxes as a geometry has them, clipped to the image, and the labels of what is left.

    An object of which less than a quarter of the area is left, or which is cut and left with a side
    below 2 pixels, is gone (ours): its label is -1 and its box 0. A region of a crowd is a box like
    any other; where its label becomes -1 it is no region any more.

    Args:
        boxes: (batch, objects, 4): left, top, right, bottom in pixels.
        labels: (batch, objects): a class; -1 where a row holds nothing; -100 where an image is not
            annotated. Negative ones stay as they are.
        geometry: (batch, 5).
        size: height and width of the images.

    Raises:
        DataError: a window that does not lie in the image.
        ShapeError: boxes, labels and geometry that do not fit each other.

    >>> moved_boxes(torch.tensor([[[10.0, 0, 30, 20], [0, 0, 12, 9]]]), torch.tensor([[4, 7]]),
    ...             torch.tensor([[0.0, 0, 10, 20, 20]]), (40, 40))
    (tensor([[[ 0.,  0., 40., 40.],
             [ 0.,  0.,  0.,  0.]]]), tensor([[ 4, -1]]))
    """
    if boxes.shape != (*labels.shape, 4) or labels.dim() != 2:
        raise ShapeError(
            f"boxes {tuple(boxes.shape)} must be (batch, objects, 4) and labels "
            f"{tuple(labels.shape)} (batch, objects)."
        )
    height, width = size
    moved = torch.empty_like(boxes)
    scale = boxes.new_ones(len(boxes), 1)
    for row, (mirrored, *window) in enumerate(_rows(geometry, len(boxes), size)):
        own = tv_tensors.BoundingBoxes(boxes[row], format="XYXY", canvas_size=size)
        own = V.resized_crop(own, *window, size=list(size))
        moved[row] = V.horizontal_flip(own) if mirrored else own
        scale[row] = height * width / (window[2] * window[3])
    sides = moved[..., 2:] - moved[..., :2]
    before = (boxes[..., 2:] - boxes[..., :2]).prod(-1) * scale
    share = (sides.prod(-1) / before).round(decimals=3)  # so that what is whole is 1
    enough = (share >= LEAST_SHARE) & ((share >= 1) | (sides.amin(-1) >= LEAST_SIDE))
    gone = (labels >= 0) & ~enough
    moved = moved.masked_fill((gone | (labels < 0))[..., None], 0)
    return moved, labels.masked_fill(gone, -1)


def _rows(geometry: Tensor, count: int, size: tuple[int, int]) -> list[list[int]]:
    """The numbers of each image, as whole ones."""
    if geometry.shape != (count, len(COLUMNS)):
        raise ShapeError(
            f"geometry {tuple(geometry.shape)} must be {(count, len(COLUMNS))}: "
            f"{', '.join(COLUMNS)} for each image."
        )
    rows = [[int(number) for number in row] for row in geometry.tolist()]
    for _, top, left, height, width in rows:
        inside = top >= 0 and left >= 0 and top + height <= size[0] and left + width <= size[1]
        if not inside or height < 1 or width < 1:
            raise DataError(
                f"The window of {height} x {width} pixels at row {top}, column {left} does not lie "
                f"in an image of {size[0]} x {size[1]}; give images of the size for which the "
                "geometry was drawn."
            )
    return rows
