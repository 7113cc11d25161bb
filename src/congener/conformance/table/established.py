"""The losses of the first release: KD, SP, CSKD and CSWT, DIST, and hard labels."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from congener import losses
from congener.conformance.table.case import LossCase, dense_logits, features

__all__ = ["LOSSES"]


def cskd_and_cswt(student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    return losses.cskd_loss(student, teacher, **options) + losses.cswt_loss(
        student, teacher, **options
    )


def cskd_per_sample(student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    """L_CS at temperatures of the caller's, here some that follow the teacher."""
    temperature = 1 + teacher.detach().double().abs().amax(dim=tuple(range(1, teacher.dim())))
    return losses.cskd_loss(student, teacher, temperature=temperature, **options)


def frozen_cswt(student: Tensor, teacher: Tensor) -> Callable[..., Tensor]:
    """L_CSWT at temperatures that do not move with the student: what its gradient is of."""
    temperature = losses.cswt_temperatures(student, teacher)
    return partial(losses.cskd_loss, temperature=temperature)


def frozen_cskd_and_cswt(student: Tensor, teacher: Tensor) -> Callable[..., Tensor]:
    cswt = frozen_cswt(student, teacher)
    return lambda s, t: losses.cskd_loss(s, t) + cswt(s, t)


LOSSES: dict[str, LossCase] = {
    "kd": LossCase(
        ("KDLoss", "kd_loss"), losses.kd_loss, module=losses.KDLoss, batch_coupled=False
    ),
    "soft_cross_entropy": LossCase(
        ("SoftCrossEntropyLoss", "soft_cross_entropy_loss"),
        losses.soft_cross_entropy_loss,
        module=losses.SoftCrossEntropyLoss,
        zero_at_match=False,
        batch_coupled=False,
    ),
    "hard_label": LossCase(
        ("HardLabelLoss", "hard_label_loss"),
        losses.hard_label_loss,
        module=losses.HardLabelLoss,
        zero_at_match=False,
        batch_coupled=False,
    ),
    "sp": LossCase(
        ("SPLoss", "sp_loss"),
        losses.sp_loss,
        make=features,
        module=losses.SPLoss,
        lone=0.0,
    ),
    "sp_features": LossCase(
        (),
        partial(losses.sp_loss, normalize="features"),
        make=features,
        module=partial(losses.SPLoss, normalize="features"),
        lone=0.0,
    ),
    "cskd": LossCase(
        ("CSKDLoss",),
        cskd_and_cswt,
        module=losses.CSKDLoss,
        lone=0.0,
        match=1e-4,
        frozen=frozen_cskd_and_cswt,
    ),
    "cskd_fixed": LossCase(
        ("cskd_loss",),
        losses.cskd_loss,
        module=partial(losses.CSKDLoss, cswt=False),
        lone=0.0,
        match=1e-4,
    ),
    "cskd_per_sample": LossCase(
        (),
        cskd_per_sample,
        lone=0.0,
        match=1e-4,
    ),
    "cswt": LossCase(("cswt_loss",), losses.cswt_loss, lone=0.0, match=1e-4, frozen=frozen_cswt),
    "cskd_class": LossCase(("cskd_class_loss",), losses.cskd_class_loss, match=1e-6, rate=1.0),
    "cskd_batch": LossCase(
        ("cskd_batch_loss",), losses.cskd_batch_loss, lone=0.0, match=1e-6, rate=1.0
    ),
    "dist": LossCase(
        ("DISTLoss", "dist_loss"), losses.dist_loss, module=losses.DISTLoss, match=1e-5
    ),
    "dist_paper": LossCase(
        (),
        partial(losses.dist_loss, variant="paper", beta=2.0, gamma=0.5, temperature=4.0),
        module=partial(losses.DISTLoss, 2.0, 0.5, 4.0, variant="paper"),
        match=1e-4,
    ),
    "dist_dense": LossCase(
        (), losses.dist_loss, make=dense_logits, module=losses.DISTLoss, match=1e-5
    ),
    "dist_inter": LossCase(
        ("dist_inter_loss",), losses.dist_inter_loss, batch_coupled=False, match=1e-5
    ),
    "dist_intra": LossCase(("dist_intra_loss",), losses.dist_intra_loss, lone=1.0, match=1e-5),
}
