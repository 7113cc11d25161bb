"""The projectors of ReviewKD: the attention based fusion of a level with the deeper ones."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from congener.ops.checks import check_maps
from congener.ops.collectives import Scope
from congener.ops.levels import check_level_channels, check_levels
from congener.ops.projectors import ConvNorm
from congener.ops.spatial import as_map

__all__ = ["ReviewKDProjector"]


class ReviewKDProjector(nn.Module):
    """Fuse the student's levels from deep to shallow, each then in its teacher's shape.

    Args:
        student_channels: channels of the student's levels, shallow to deep.
        teacher_channels: channels of the teacher's levels.
        mid_channels: channels in which levels are fused; default min(512, the student's deepest).
        scope: whose batch the normalisations are over.

    Raises:
        ValueError: the two lists differ in length or are empty.
    """

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        mid_channels: int | None = None,
        *,
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_level_channels(student_channels, teacher_channels)
        middle = mid_channels or min(512, student_channels[-1])
        last = len(student_channels) - 1
        self.levels = nn.ModuleList(
            _Fusion(mine, middle, theirs, attention=level < last, scope=scope)
            for level, (mine, theirs) in enumerate(
                zip(student_channels, teacher_channels, strict=True)
            )
        )

    def forward(
        self,
        student_features: Sequence[Tensor],
        teacher_features: Sequence[Tensor],
        mask: Tensor | None = None,
    ) -> list[Tensor]:
        """Give the fused student features; of the teacher's only the sizes are read."""
        count = len(self.levels)
        check_levels(student_features, teacher_features, mask, same_shape=False, count=count)
        fused: list[Tensor] = []
        deeper = None
        levels = list(zip(self.levels, student_features, teacher_features, strict=True))
        for level, student, teacher in reversed(levels):
            check_maps(as_map(student), as_map(teacher))
            result, deeper = level(student, deeper, as_map(teacher).shape[2:], mask)
            fused.insert(0, result.flatten(1) if teacher.dim() == 2 else result)
        return fused


class _Fusion(nn.Module):
    """One level: its reduced channels, mixed with the deeper level by attention, and expanded."""

    def __init__(
        self, student: int, middle: int, teacher: int, *, attention: bool, scope: Scope
    ) -> None:
        super().__init__()
        self.reduce = ConvNorm(student, middle, scope=scope)
        self.attention = nn.Conv2d(2 * middle, 2, kernel_size=1) if attention else None
        self.expand = ConvNorm(middle, teacher, kernel_size=3, scope=scope)
        for block in (self.reduce, self.expand):
            nn.init.kaiming_uniform_(block.conv.weight, a=1)

    def forward(
        self, feature: Tensor, deeper: Tensor | None, size: torch.Size, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        mixed = self.reduce(as_map(feature), mask)
        if self.attention is not None and deeper is not None:
            deeper = F.interpolate(deeper, mixed.shape[2:], mode="nearest")
            both = torch.cat([mixed, deeper], dim=1).to(self.attention.weight.dtype)
            share = torch.sigmoid(self.attention(both))
            mixed = mixed * share[:, :1] + deeper * share[:, 1:]
        if mixed.shape[2:] != size:
            mixed = F.interpolate(mixed, size, mode="nearest")
        return self.expand(mixed, mask), mixed
