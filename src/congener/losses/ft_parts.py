"""What factor transfer trains beside the student: the paraphraser, then the translator."""

from itertools import pairwise
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from congener.ops.checks import check_channels
from congener.ops.collectives import Scope
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples

__all__ = ["Paraphraser", "Translator"]


def _layers(kind: type[nn.Conv2d | nn.ConvTranspose2d], *widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [kind(before, after, kernel_size=3, padding=1), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


@final
class Translator(nn.Module):
    """Three 3×3 convolutions from the student's map to its factor, each with a leaky ReLU.

    Args:
        student_channels: of the student's map.
        factor_channels: of the factor.
    """

    def __init__(self, student_channels: int, factor_channels: int) -> None:
        super().__init__()
        self.encoder = _layers(
            nn.Conv2d, student_channels, student_channels, factor_channels, factor_channels
        )

    def forward(self, student_feature: Tensor) -> Tensor:
        """Turn (batch, channels, height, width) into a factor, (batch, factor channels, …)."""
        factor: Tensor = self.encoder(student_feature.to(next(self.parameters()).dtype))
        return factor


@final
class Paraphraser(nn.Module):
    """An autoencoder of the teacher's map; what lies between its halves is the factor.

    It is trained first, on :meth:`reconstruction_loss`, without labels.

    Args:
        teacher_channels: of the teacher's map.
        factor_channels: of the factor.
    """

    def __init__(self, teacher_channels: int, factor_channels: int) -> None:
        super().__init__()
        self.teacher_channels = teacher_channels
        outer, inner = teacher_channels, factor_channels
        self.encoder = _layers(nn.Conv2d, outer, outer, inner, inner)
        self.decoder = _layers(nn.ConvTranspose2d, inner, inner, outer, outer)

    def forward(self, teacher_feature: Tensor) -> Tensor:
        """Turn (batch, channels, height, width) into a factor, (batch, factor channels, …)."""
        factor: Tensor = self.encoder(teacher_feature.to(next(self.parameters()).dtype))
        return factor

    def reconstruction_loss(
        self,
        teacher_feature: Float[Tensor, "batch channels height width"],
        mask: Bool[Tensor, " batch"] | None = None,
        *,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Mean absolute error of the teacher's map and what the decoder makes of its factor.

        Args:
            teacher_feature: (batch, channels, height, width); no gradient flows into it.
            mask: (batch,), which samples count; the others are as if absent.
            reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
            scope: ``"global"``: the batch of all processes; ``"local"``: of this one.
        """
        channels = self.teacher_channels
        check_channels("teacher_feature", teacher_feature, channels, mask, is_map=True)
        check_reduction(reduction, scope)
        target = blank_rows(teacher_feature.detach(), mask)
        found = self.decoder(self(target))
        with torch.autocast(target.device.type, enabled=False):
            found, target = upcast(found, target)
            per_sample = (found - target).abs().flatten(1).mean(dim=1)
            return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)
