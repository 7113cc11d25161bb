"""Dense rows: what a detector says at every location, as one tensor.

The columns of a row are ``[class logits (C) | quality logit | box (4) | reference box (4)]``. Being
one tensor, they are the task's logits, which systems, stores and losses pass on as those of any
other task.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from congener.errors import ShapeError

__all__ = ["DenseRows", "join_rows", "split_rows"]

BESIDE_CLASSES = 9


class DenseRows(NamedTuple):
    """The columns of dense rows by name, as views.

    Attributes:
        classes: (batch, locations, classes), logits; of an SSD and of Faster R-CNN the
            first is the background's.
        quality: (batch, locations), FCOS's centre-ness logit; a constant 0, which means nothing,
            where a design has none.
        boxes: (batch, locations, 4): left, top, right, bottom in pixels.
        references: (batch, locations, 4), the anchor of each location, a constant.
    """

    classes: Float[Tensor, "batch locations classes"]
    quality: Float[Tensor, "batch locations"]
    boxes: Float[Tensor, "batch locations 4"]
    references: Float[Tensor, "batch locations 4"]


def split_rows(rows: Float[Tensor, "batch locations columns"]) -> DenseRows:
    """The columns of dense rows by name.

    Args:
        rows: (batch, locations, C + 9).

    Raises:
        ShapeError: the rows have other axes, or no column for a class.
    """
    classes = rows.shape[-1] - BESIDE_CLASSES if rows.dim() == 3 else 0
    if classes < 1:
        raise ShapeError(
            f"Dense rows {tuple(rows.shape)} must be (batch, locations, classes + "
            f"{BESIDE_CLASSES}): class logits, a quality logit, a box and its reference; make them "
            "with join_rows."
        )
    logits, quality, boxes, references = rows.tensor_split(
        (classes, classes + 1, classes + 5), dim=2
    )
    return DenseRows(logits, quality.squeeze(2), boxes, references)


def join_rows(
    classes: Float[Tensor, "batch locations classes"],
    quality: Float[Tensor, "batch locations"] | None,
    boxes: Float[Tensor, "batch locations 4"],
    references: Float[Tensor, "#batch locations 4"],
) -> Float[Tensor, "batch locations columns"]:
    """Lay what a detector says at every location side by side.

    Args:
        classes: (batch, locations, classes), logits.
        quality: (batch, locations), logits; zeros where a design has none.
        boxes: (batch, locations, 4): left, top, right, bottom in pixels.
        references: (batch or 1, locations, 4), each location's anchor; no gradient flows into it.

    Returns:
        (batch, locations, classes + 9), of the widest type among them.

    Raises:
        ShapeError: the parts do not fit each other.
    """
    places = classes.shape[:2]
    if quality is None:
        quality = boxes.new_zeros(places)
    fits = classes.dim() == 3 and quality.shape == places and boxes.shape == (*places, 4)
    if not fits or references.shape not in ((*places, 4), (1, *places[1:], 4)):
        given = ", ".join(str(tuple(part.shape)) for part in (classes, quality, boxes, references))
        raise ShapeError(
            f"classes, quality, boxes and references are {given}; expected (batch, locations, "
            "classes), (batch, locations) and twice (batch, locations, 4), of the same locations."
        )
    references = references.detach().expand(boxes.shape)
    return torch.cat((classes, quality[..., None], boxes, references), dim=2)
