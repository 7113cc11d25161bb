"""The projector of FitNets as RepDistiller has it: from the student's map to the teacher's."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from congener.errors import ShapeError
from congener.ops.batch_norm import BatchNorm
from congener.ops.checks import check_channels
from congener.ops.collectives import Scope
from congener.ops.projectors import project

__all__ = ["ConvProjector", "projector_between"]


class ConvProjector(nn.Module):
    """One convolution that brings a map to a shape, batch normalisation, and ReLU.

    A map twice the size is halved by a 3×3 convolution of stride 2, one half the size is doubled by
    a transposed 4×4 convolution of stride 2, and any larger one is cut by a convolution of size
    1 + difference, 1×1 for maps of one size.

    Args:
        student_shape: (channels, height, width) of the student's map; (channels, length) or
            (channels,) of a feature with fewer axes.
        teacher_shape: of the teacher's map, with as many axes.
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
        cut = isinstance(self.conv, nn.Conv2d) and self.conv.stride == (1, 1)
        self.least = self.conv.kernel_size if cut else (1, 1)
        self.bn = BatchNorm(teacher_shape[0], scope=scope)
        self.relu, self.axes = relu, 1 + len(student_shape)

    def forward(self, student_feature: Tensor, mask: Tensor | None = None) -> Tensor:
        """Project (batch, channels, height, width), whatever the masked rows hold.

        Axes that are missing have one position, and are missing in the result.
        """
        channels, few = self.conv.in_channels, student_feature.dim() == self.axes < 4
        if few:
            student_feature = student_feature[(..., *[None] * (4 - self.axes))]
        check_channels("student_feature", student_feature, channels, mask, is_map=True)
        height, width = student_feature.shape[2:]
        if height < self.least[0] or width < self.least[1]:
            raise ShapeError(
                f"student_feature {tuple(student_feature.shape)} must be a map of at least "
                f"{self.least}; build the projector for the shape of the student's map."
            )
        convolved = project(self.conv, student_feature, mask, channels=channels)
        projected: Tensor = self.bn(convolved, mask)
        projected = torch.relu(projected) if self.relu else projected
        return projected.flatten(self.axes - 1) if few else projected

    def extra_repr(self) -> str:
        """Name the settings."""
        return f"relu={self.relu}"


def projector_between(
    student_shape: Sequence[int] | None,
    teacher_shape: Sequence[int] | None,
    *,
    relu: bool = True,
    scope: Scope = "global",
) -> ConvProjector | None:
    """A projector from one shape to another; none where neither is given.

    Raises:
        ShapeError: no projector brings the one to the other.
        ValueError: only one of the two is given.
    """
    if student_shape is None and teacher_shape is None:
        return None
    if student_shape is None or teacher_shape is None:
        raise ValueError("A projector needs both student_shape and teacher_shape; give both.")
    return ConvProjector(student_shape, teacher_shape, relu=relu, scope=scope)


def _convolution(
    student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]
) -> nn.Conv2d | nn.ConvTranspose2d:
    if not 1 <= len(student_shape) == len(teacher_shape) <= 3:
        raise ShapeError(
            f"student_shape {student_shape} and teacher_shape {teacher_shape} must be (channels, "
            "height, width) of one sample, or fewer axes of both; leave the batch size out."
        )
    missing = (1,) * (3 - len(student_shape))
    student_shape, teacher_shape = student_shape + missing, teacher_shape + missing
    channels, sizes = (student_shape[0], teacher_shape[0]), (student_shape[1:], teacher_shape[1:])
    pairs = list(zip(*sizes, strict=True))
    if all(mine == 2 * theirs for mine, theirs in pairs) and not missing:
        return nn.Conv2d(*channels, kernel_size=3, stride=2, padding=1)
    if all(2 * mine == theirs for mine, theirs in pairs) and not missing:
        return nn.ConvTranspose2d(*channels, kernel_size=4, stride=2, padding=1)
    if all(mine >= theirs for mine, theirs in pairs):
        height, width = (1 + mine - theirs for mine, theirs in pairs)
        return nn.Conv2d(*channels, kernel_size=(height, width))
    raise ShapeError(
        f"No projector brings student_shape {student_shape} to teacher_shape {teacher_shape}: the "
        "student's map may be larger, or half the size; resize one of the two, or tap another "
        "layer."
    )
