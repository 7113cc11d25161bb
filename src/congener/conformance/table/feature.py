"""Losses of feature maps: hints, attention, statistics, factors."""

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
    """Maps of one shape, (batch, 5, 4, 2)."""
    return logits(seed, batch, (CHANNELS, 4, 2))


def unlike_maps(seed: int, batch: int = 7) -> tuple[Tensor, Tensor]:
    """Maps of other channels and sizes, (batch, 5, 4, 2) and (batch, 3, 2, 6)."""
    student, _ = logits(seed, batch, (CHANNELS, 4, 2))
    _, teacher = logits(seed, batch, (3, 2, 6))
    return student, teacher


def wide_maps(seed: int, batch: int = 7) -> tuple[Tensor, Tensor]:
    """Maps of few channels and many places, (batch, 2, 4, 4) and (batch, 3, 4, 4)."""
    student, _ = logits(seed, batch, (2, 4, 4))
    _, teacher = logits(seed, batch, (3, 4, 4))
    return student, teacher


def stages(feature: Tensor) -> list[Tensor]:
    """Three maps of one batch, from one tensor."""
    if feature.dim() != 4:
        return [feature, feature, feature]
    return [feature, F.avg_pool2d(upcast(feature)[0], 2), feature.flip(1)[:, 1:]]


def fsp(student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    return losses.fsp_loss(stages(student), stages(teacher), **options)


class StagedFSP(nn.Module):
    """:class:`FSPLoss` of the stages of one tensor."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.loss = losses.FSPLoss(**options)

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__
        return found(name) if name.startswith("_") or name == "loss" else getattr(self.loss, name)

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        value: Tensor = self.loss(stages(student), stages(teacher), mask)
        return value


def vid(student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    """The student predicts the mean; the variances are given."""
    log_scale = torch.arange(1.0, CHANNELS + 1).to(student)
    return losses.vid_loss(student, teacher, log_scale, **options)


LOSSES: dict[str, LossCase] = {
    "fitnets": LossCase(
        ("FitNetsLoss", "hint_loss"),
        losses.hint_loss,
        make=maps,
        module=losses.FitNetsLoss,
        batch_coupled=False,
    ),
    "fitnets_paper": LossCase(
        (),
        partial(losses.hint_loss, variant="paper"),
        make=maps,
        module=partial(losses.FitNetsLoss, variant="paper"),
        batch_coupled=False,
    ),
    "fitnets_projector": LossCase(
        (),
        losses.hint_loss,
        make=maps,
        module=partial(losses.FitNetsLoss, (CHANNELS, 4, 2), (CHANNELS, 4, 2)),
        batch_coupled=False,
    ),
    "at": LossCase(
        ("ATLoss", "at_loss"),
        losses.at_loss,
        make=unlike_maps,
        module=losses.ATLoss,
        batch_coupled=False,
    ),
    "at_paper": LossCase(
        (),
        partial(losses.at_loss, power=3, variant="paper"),
        make=unlike_maps,
        module=partial(losses.ATLoss, 3, variant="paper"),
        batch_coupled=False,
    ),
    "vid": LossCase(
        ("VIDLoss", "vid_loss"),
        vid,
        make=maps,
        module=partial(losses.VIDLoss, CHANNELS, CHANNELS),
        zero_at_match=False,
        batch_coupled=False,
        floor=None,
    ),
    "nst": LossCase(
        ("NSTLoss", "nst_loss"),
        losses.nst_loss,
        make=unlike_maps,
        module=losses.NSTLoss,
        batch_coupled=False,
    ),
    "nst_wide": LossCase(
        (), losses.nst_loss, make=wide_maps, module=losses.NSTLoss, batch_coupled=False
    ),
    "fsp": LossCase(
        ("FSPLoss", "fsp_loss"), fsp, make=maps, module=StagedFSP, batch_coupled=False, rate=0.01
    ),
    "fsp_paper": LossCase(
        (),
        partial(fsp, variant="paper"),
        make=maps,
        module=partial(StagedFSP, variant="paper"),
        batch_coupled=False,
        rate=1e-3,
    ),
    "ab": LossCase(
        ("ABLoss", "ab_loss"),
        losses.ab_loss,
        make=maps,
        module=losses.ABLoss,
        zero_at_match=False,
        batch_coupled=False,
    ),
    "ft": LossCase(
        ("FTLoss", "ft_loss"),
        losses.ft_loss,
        make=maps,
        module=partial(losses.FTLoss, CHANNELS, CHANNELS),
        batch_coupled=False,
    ),
}
