"""Trainable maps from the student's channels to the teacher's, blind to masked samples."""

from torch import Tensor, nn

from congener.ops.batch_norm import BatchNorm
from congener.ops.checks import check_channels
from congener.ops.collectives import Scope
from congener.ops.reduction import blank_rows
from congener.ops.spatial import as_map

__all__ = ["ConvNorm", "align_channels", "project"]


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
        feature = as_map(student_feature)
        convolved = project(self.conv, feature, mask, channels=self.conv.in_channels)
        projected: Tensor = self.bn(convolved, mask)
        projected = projected.relu() if self.relu else projected
        return projected if student_feature.dim() > 2 else projected.flatten(1)

    def extra_repr(self) -> str:
        """Name the settings."""
        return f"relu={self.relu}"


def align_channels(student_channels: int, teacher_channels: int) -> nn.Module:
    """A 1×1 convolution to the teacher's channels, or nothing where they are the student's."""
    if student_channels == teacher_channels:
        return nn.Identity()
    return nn.Conv2d(student_channels, teacher_channels, kernel_size=1)


def project(
    projector: nn.Module,
    feature: Tensor,
    mask: Tensor | None = None,
    *,
    channels: int,
    name: str = "student_feature",
) -> Tensor:
    """Run a projector in the type of its weights, or under autocast as the networks do.

    Args:
        projector: any module without statistics of the batch.
        feature: (batch, channels, height, width).
        mask: which samples count, (batch,); the others reach the projector as zeros.
        channels: for how many the projector was built.
        name: of the feature.

    Raises:
        ShapeError: the feature is no map or has other channels, or the mask does not fit.
        ValueError: the feature is not floating point, or the mask is not boolean.
    """
    check_channels(name, feature, channels, mask, is_map=True)
    feature = blank_rows(feature, mask)
    weight = next(projector.parameters(), feature)
    projected: Tensor = projector(feature.to(weight.dtype))
    return projected
