"""Losses of whole stages, through fusion, a frozen teacher classifier, or its statistics."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from congener import losses
from congener.conformance.table.case import LossCase, logits
from congener.ops.precision import upcast

__all__ = ["LOSSES"]

CHANNELS = 5


def maps(seed: int, batch: int = 7) -> tuple[Tensor, Tensor]:
    """Maps of one shape, (batch, 5, 6, 3)."""
    return logits(seed, batch, (CHANNELS, 6, 3))


def sized_maps(seed: int, batch: int = 7) -> tuple[Tensor, Tensor]:
    """Maps whose sizes differ, (batch, 5, 4, 4) and (batch, 5, 2, 3)."""
    student, _ = logits(seed, batch, (CHANNELS, 4, 4))
    _, teacher = logits(seed, batch, (CHANNELS, 2, 3))
    return student, teacher


def levels(feature: Tensor) -> list[Tensor]:
    """Three levels of one batch, the deepest pooled, from one tensor."""
    if feature.dim() != 4:
        return [feature, feature, feature]
    (wide,) = upcast(feature)
    return [feature, F.avg_pool2d(wide, (2, 1)), wide[:, 1:, 0, 0]]


WIDTHS = (CHANNELS, CHANNELS, CHANNELS - 1)


def channel_values(like: Tensor, count: int = CHANNELS, start: float = 0.5) -> Tensor:
    return torch.linspace(start, start + 1, count, dtype=like.dtype, device=like.device)


def margins(feature: Tensor) -> list[Tensor]:
    """Margins in the reach of the features, one list for the three levels."""
    (wide,) = upcast(feature) if feature.is_floating_point() else (feature.float(),)
    return [-channel_values(wide, width) for width in WIDTHS]


def classifier(feature: Tensor, classes: int = 4) -> tuple[Tensor, Tensor]:
    """The teacher's last layer."""
    like = feature if feature.is_floating_point() else feature.float()
    channels = feature.shape[1] if feature.dim() > 1 else 1
    angles = torch.arange(
        float(classes * channels), dtype=upcast(like)[0].dtype, device=feature.device
    )
    return torch.cos(angles).reshape(classes, channels), channel_values(angles, classes)


def answer(feature: Tensor) -> Tensor:
    """The teacher's logits, by the mean over its map's positions."""
    if feature.dim() < 3 or not feature.is_floating_point():
        return feature.flatten(1)[:, :4] if feature.dim() > 1 else feature
    weight, bias = classifier(feature)
    means = feature.to(weight.dtype).flatten(2).mean(dim=2)
    return (means.unsqueeze(1) * weight).sum(dim=2) + bias


def rest(feature: Tensor) -> Tensor:
    """The rest of a teacher behind its tap: an activation, the mean over positions, a layer."""
    return answer(upcast(feature)[0].square())


def of_levels(student: Tensor, teacher: Tensor) -> tuple[Any, ...]:
    return levels(student), levels(teacher)


def with_margins(student: Tensor, teacher: Tensor) -> tuple[Any, ...]:
    return levels(student), levels(teacher), margins(teacher)


def with_classifier(student: Tensor, teacher: Tensor) -> tuple[Any, ...]:
    return student, teacher, answer(teacher), *classifier(teacher)


def hcl(student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    return losses.hcl_loss(*of_levels(student, teacher), **options)


def ofd(student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    return losses.ofd_loss(*with_margins(student, teacher), **options)


def partial_l2(student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    return losses.partial_l2_loss(student, teacher, margins(student)[0], **options)


def srrl(student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    return losses.srrl_loss(*with_classifier(student, teacher), **options)


def srrl_logits(student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    """What the classifier reads in pooled features, against logits."""
    return losses.srrl_logit_loss(student, teacher, *classifier(student, CHANNELS), **options)


def adain(student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    """The map behind a tap is re-styled, and the rest of the teacher runs on it."""
    restyled = losses.adain(student, teacher, mask=options.get("mask"))
    return losses.adain_loss(rest(restyled), rest(teacher), **options)


class Staged(nn.Module):
    """A loss of several levels, or of more tensors, as one of two tensors."""

    def __init__(
        self, loss: nn.Module, arguments: Callable[[Tensor, Tensor], tuple[Any, ...]]
    ) -> None:
        super().__init__()
        self.loss, self.arguments = loss, arguments

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__
        return found(name) if name.startswith("_") or name == "loss" else getattr(self.loss, name)

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        value: Tensor = self.loss(*self.arguments(student, teacher), mask=mask)
        return value


def reviewkd_module(**options: Any) -> nn.Module:
    return Staged(losses.ReviewKDLoss(WIDTHS, WIDTHS, **options), of_levels)


def ofd_module(**options: Any) -> nn.Module:
    return Staged(losses.OFDLoss(WIDTHS, WIDTHS, **options), with_margins)


def srrl_module(**options: Any) -> nn.Module:
    return Staged(losses.SRRLLoss(CHANNELS, CHANNELS, **options), with_classifier)


LOSSES: dict[str, LossCase] = {
    "reviewkd": LossCase(
        ("ReviewKDLoss", "hcl_loss"), hcl, make=maps, module=reviewkd_module, batch_coupled=False
    ),
    "simkd": LossCase(
        ("SimKDLoss", "simkd_loss"),
        losses.simkd_loss,
        make=maps,
        module=partial(losses.SimKDLoss, CHANNELS, CHANNELS),
        batch_coupled=False,
    ),
    "simkd_sizes": LossCase((), losses.simkd_loss, make=sized_maps, batch_coupled=False),
    "srrl": LossCase(
        ("SRRLLoss", "srrl_loss"), srrl, make=maps, module=srrl_module, batch_coupled=False
    ),
    "srrl_feature": LossCase(
        ("srrl_feature_loss",), losses.srrl_feature_loss, make=maps, batch_coupled=False
    ),
    "srrl_logit": LossCase(
        ("srrl_logit_loss",), srrl_logits, zero_at_match=False, batch_coupled=False, rate=0.01
    ),
    "ofd": LossCase(
        ("OFDLoss", "ofd_loss"), ofd, make=maps, module=ofd_module, batch_coupled=False
    ),
    "partial_l2": LossCase(("partial_l2_loss",), partial_l2, make=maps, batch_coupled=False),
    "adain": LossCase(
        ("AdaINLoss", "adain_loss"), losses.adain_loss, module=losses.AdaINLoss, batch_coupled=False
    ),
    "adain_restyled": LossCase((), adain, make=maps, batch_coupled=False),
    "adain_statistics": LossCase(
        ("AdaINStatisticsLoss", "adain_statistics_loss"),
        losses.adain_statistics_loss,
        make=maps,
        module=losses.AdaINStatisticsLoss,
        batch_coupled=False,
    ),
}
