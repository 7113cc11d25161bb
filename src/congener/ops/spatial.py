"""Dense predictions as rows."""

from torch import Tensor

__all__ = ["pixels_as_rows"]


def pixels_as_rows(logits: Tensor) -> Tensor:
    """Lay out (batch, classes, height, width) as (batch · height · width, classes).

    The rows of one image follow each other; (batch, classes) comes back as it is.
    """
    return logits if logits.dim() == 2 else logits.movedim(1, -1).flatten(0, -2)
