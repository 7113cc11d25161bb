"""Trainable maps from the student's channels to the teacher's, blind to masked samples."""

from torch import Tensor, nn

from congener.ops.batch_norm import BatchNorm
from congener.ops.checks import check_channels
from congener.ops.collectives import Scope
from congener.ops.levels import as_map
from congener.ops.reduction import blank_rows

__all__ = ["ConvNorm"]


class ConvNorm(nn.Module):
    """A convolution without bias that keeps the size, batch normalisation, and ReLU if asked for.

    Runs in the type of its weights, or under autocast as the networks do.

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out.
        kernel_size: odd.
        relu: whether a ReLU comes last.
        scope: whose batch the normalisation is over.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        relu: bool = False,
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=False)
        self.bn = BatchNorm(out_channels, scope=scope)
        self.relu = relu

    def forward(self, student_feature: Tensor, mask: Tensor | None = None) -> Tensor:
        """Project a map, or a pooled feature (batch, channels) as a map of one position."""
        check_channels("student_feature", student_feature, self.conv.in_channels)
        kept = blank_rows(as_map(student_feature), mask).to(self.conv.weight.dtype)
        projected: Tensor = self.bn(self.conv(kept), mask)
        projected = projected.relu() if self.relu else projected
        return projected if student_feature.dim() > 2 else projected.flatten(1)

    def extra_repr(self) -> str:
        """Name the settings."""
        return f"relu={self.relu}"
