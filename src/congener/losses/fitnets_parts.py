"""The projector of FitNets as RepDistiller has it: from the student's map to the teacher's."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from congener.errors import ShapeError
from congener.ops.batch_norm import BatchNorm
from congener.ops.checks import check_channels, check_mask
from congener.ops.collectives import Scope
from congener.ops.reduction import blank_rows

__all__ = ["ConvProjector"]


class ConvProjector(nn.Module):
    """One convolution that brings a map to a shape, batch normalisation, and ReLU.

    A map twice the size is halved by a 3×3 convolution of stride 2, one half the size is doubled by
    a transposed 4×4 convolution of stride 2, and any larger one is cut by a convolution of size
    1 + difference, 1×1 for maps of one size.

    Args:
        student_shape: (channels, height, width) of the student's map.
        teacher_shape: (channels, height, width) of the teacher's map.
        relu: whether ReLU comes last, as for a hint after an activation.
        scope: whose batch the normalisation is over: ``"global"``, of all processes.

    Raises:
        ShapeError: the student's map is smaller than the teacher's, and not by half.
    """

    def __init__(
        self,
        student_shape: Sequence[int],
        teacher_shape: Sequence[int],
        *,
        relu: bool = True,
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        self.conv = _convolution(tuple(student_shape), tuple(teacher_shape))
        self.bn = BatchNorm(teacher_shape[0], scope=scope)
        self.relu = relu

    def forward(self, student_feature: Tensor, mask: Tensor | None = None) -> Tensor:
        """Project (batch, channels, height, width), whatever the masked rows hold."""
        check_channels("student_feature", student_feature, self.conv.in_channels)
        check_mask(mask, student_feature, "student_feature")
        kept = blank_rows(student_feature, mask).to(self.conv.weight.dtype)
        projected: Tensor = self.bn(self.conv(kept), mask)
        return torch.relu(projected) if self.relu else projected

    def extra_repr(self) -> str:
        """Name the settings."""
        return f"relu={self.relu}"


def _convolution(
    student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]
) -> nn.Conv2d | nn.ConvTranspose2d:
    if not len(student_shape) == len(teacher_shape) == 3:
        raise ShapeError(
            f"student_shape {student_shape} and teacher_shape {teacher_shape} must be (channels, "
            "height, width) of one sample; leave the batch size out."
        )
    channels, sizes = (student_shape[0], teacher_shape[0]), (student_shape[1:], teacher_shape[1:])
    pairs = list(zip(*sizes, strict=True))
    if all(mine == 2 * theirs for mine, theirs in pairs):
        return nn.Conv2d(*channels, kernel_size=3, stride=2, padding=1)
    if all(2 * mine == theirs for mine, theirs in pairs):
        return nn.ConvTranspose2d(*channels, kernel_size=4, stride=2, padding=1)
    if all(mine >= theirs for mine, theirs in pairs):
        height, width = (1 + mine - theirs for mine, theirs in pairs)
        return nn.Conv2d(*channels, kernel_size=(height, width))
    raise ShapeError(
        f"No projector brings student_shape {student_shape} to teacher_shape {teacher_shape}: the "
        "student's map may be larger, or half the size; resize one of the two, or tap another "
        "layer."
    )
