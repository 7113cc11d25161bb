"""Losses of predictions: decoupled, standardised, multi-level, mixed, of tags, of heads."""

from collections.abc import Callable
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from congener import losses
from congener.conformance.table.case import LossCase, with_labels

__all__ = ["LOSSES"]


def with_mixed_labels(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The teacher's likeliest and least likely class, mixed by a share that follows their rows."""

    def call(student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
        labels = other_labels = share = teacher
        if teacher.dim() > 1:
            rows = teacher.detach().double()
            labels, other_labels = rows.argmax(dim=1), rows.argmin(dim=1)
            share = torch.sigmoid(rows.sum(dim=1))
        return loss(student, teacher, labels, other_labels, share, **options)

    return call


def unlabelled(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Samples of class 4 lose their label: how many they are sets the others' weight."""

    def call(student: Tensor, teacher: Tensor, labels: Tensor, *rest: Any, **options: Any) -> Any:
        return loss(student, teacher, torch.where(labels < 4, labels, -100), *rest, **options)

    return call


def with_heads(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Two pairs of heads, the second pair made from the first."""

    def call(student: Tensor, teacher: Tensor, *labels: Tensor, **options: Any) -> Tensor:
        return loss([student, student / 2], [teacher, teacher / 4], *labels, **options)

    return call


@final
class Wrapped(nn.Module):
    """A module that takes more than two tensors as one that takes two and a mask.

    It shows the hyper-parameters of the module as its own.
    """

    def __init__(self, wrap: Callable[..., Any], loss: nn.Module) -> None:
        super().__init__()
        self.wrap, self.loss = wrap, loss

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Any:
        return self.wrap(self.loss)(student, teacher, mask=mask)

    def __getattr__(self, name: str) -> Any:
        inside: Callable[[str], Any] = super().__getattr__
        return getattr(inside("loss"), name) if name in inside("loss").sources else inside(name)


def wrapped(wrap: Callable[..., Any], build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    return lambda **options: Wrapped(wrap, build(**options))


def with_labels_and_heads(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return with_labels(with_heads(loss))


def with_some_labels(loss: Callable[..., Tensor]) -> LossCase:
    return LossCase((), with_mixed_labels(unlabelled(loss)), zero_at_match=False)


_alone = partial(LossCase, batch_coupled=False)

LOSSES: dict[str, LossCase] = {
    "lskd": _alone(("LSKDLoss", "lskd_loss"), losses.lskd_loss, module=losses.LSKDLoss),
    "lskd_paper": _alone(
        (),
        partial(losses.lskd_loss, variant="paper", temperature=3.0),
        module=partial(losses.LSKDLoss, 3.0, variant="paper"),
    ),
    "multilabel_kd": _alone(
        ("MultiLabelKDLoss", "multilabel_kd_loss"),
        losses.multilabel_kd_loss,
        module=losses.MultiLabelKDLoss,
        zero_at_match=False,
    ),
    "dkd": _alone(
        ("DKDLoss", "dkd_loss"),
        with_labels(losses.dkd_loss),
        module=wrapped(with_labels, losses.DKDLoss),
    ),
    "dkd_standardized": _alone(
        (),
        with_labels(partial(losses.dkd_loss, alpha=2.0, beta=0.5, standardize=True)),
        module=wrapped(with_labels, partial(losses.DKDLoss, 2.0, 0.5, standardize=True)),
    ),
    "tckd": _alone(("tckd_loss",), with_labels(losses.tckd_loss)),
    "nckd": _alone(("nckd_loss",), with_labels(losses.nckd_loss)),
    "mlld": LossCase(("MLLDLoss", "mlld_loss"), losses.mlld_loss, module=losses.MLLDLoss),
    "mlld_standardized": LossCase(
        (),
        partial(losses.mlld_loss, temperatures=(1.0, 4.0), standardize=True),
        module=partial(losses.MLLDLoss, (1.0, 4.0), standardize=True),
    ),
    "mlld_class": LossCase(("mlld_class_loss",), losses.mlld_class_loss),
    "mlld_batch": LossCase(("mlld_batch_loss",), losses.mlld_batch_loss),
    "mhkd": _alone(
        ("MHKDLoss", "mhkd_loss"),
        with_labels_and_heads(losses.mhkd_loss),
        module=wrapped(with_labels_and_heads, losses.MHKDLoss),
        zero_at_match=False,
    ),
    "stkd": _alone(
        ("STKDLoss", "stkd_loss"),
        with_mixed_labels(losses.stkd_loss),
        module=wrapped(with_mixed_labels, losses.STKDLoss),
        zero_at_match=False,
    ),
    "mhkd_unlabelled": LossCase(
        (), with_labels(with_heads(unlabelled(losses.mhkd_loss))), zero_at_match=False
    ),
    "stkd_unlabelled": with_some_labels(losses.stkd_loss),
    "mixkd_unlabelled": with_some_labels(losses.mixkd_loss),
    "mixkd": _alone(
        ("MixKDLoss", "mixkd_loss"),
        with_mixed_labels(losses.mixkd_loss),
        module=wrapped(with_mixed_labels, losses.MixKDLoss),
        zero_at_match=False,
    ),
    "mixkd_kl": _alone(
        (),
        with_mixed_labels(partial(losses.mixkd_loss, distance="kl", temperature=2.0)),
        module=wrapped(with_mixed_labels, partial(losses.MixKDLoss, 1.0, 1.0, "kl", 2.0)),
        zero_at_match=False,
    ),
    "mixkd_distance": _alone(("mixkd_distance_loss",), losses.mixkd_distance_loss),
    "mixkd_distance_kl": _alone((), partial(losses.mixkd_distance_loss, distance="kl")),
}
