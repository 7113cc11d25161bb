"""The projector of SimKD, which the teacher's classifier reads."""

from torch import Tensor, nn

from congener.ops.collectives import Scope
from congener.ops.projectors import ConvNorm

__all__ = ["SimKDProjector"]


class SimKDProjector(nn.Module):
    """A bottleneck of 1x1, 3x3 and 1x1 convolutions, each with batch normalisation and ReLU.

    Part of the exported student: the teacher's classifier reads what it gives.

    Args:
        student_channels: channels of the student's last map.
        teacher_channels: channels of the teacher's last map.
        factor: how many times fewer channels the middle has than the teacher.
        scope: whose batch the normalisations are over.
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        factor: int = 2,
        *,
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        if not 1 <= factor <= teacher_channels:
            raise ValueError(
                f"factor must lie between 1 and teacher_channels {teacher_channels}, not {factor}."
            )
        middle = teacher_channels // factor
        self.reduce = ConvNorm(student_channels, middle, relu=True, scope=scope)
        self.mix = ConvNorm(middle, middle, kernel_size=3, relu=True, scope=scope)
        self.expand = ConvNorm(middle, teacher_channels, relu=True, scope=scope)

    def forward(self, student_feature: Tensor, mask: Tensor | None = None) -> Tensor:
        """Project (batch, student_channels, height, width); masked samples are as if absent."""
        projected: Tensor = self.reduce(student_feature, mask)
        for block in (self.mix, self.expand):
            projected = block(projected, mask)
        return projected
