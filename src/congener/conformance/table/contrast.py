"""Losses that tell pairs apart, hash codes, and losses of feature direction."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from congener import losses
from congener.conformance.table.case import LossCase, logits, pooled, with_labels
from congener.conformance.table.response import wrapped
from congener.losses.crd_parts import log_normalizers_of, scores_of

__all__ = ["LOSSES"]

Call = Callable[..., Tensor]

_VIEWS = 4
_REPORTED_AS_ROWS = {
    "wrong_arguments_are_told": "its rows are views of samples: tests/losses/test_sskd.py"
}


def views(seed: int, batch: int = 7) -> tuple[Tensor, Tensor]:
    """Four views of each sample, five channels each."""
    return logits(seed, batch, (_VIEWS * 5,))


def on_views(loss: Call) -> Call:
    """The rows of a loss that takes views, from one row for each sample."""

    def call(student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
        return loss(_rows(student), _rows(teacher), **options)

    return call


def on_labelled_views(loss: Call) -> Call:
    """Likewise; the teacher's likeliest class of the untransformed view is the truth."""

    def call(student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
        rows = _rows(teacher)
        labels = rows[::_VIEWS].detach().argmax(dim=1)
        return loss(_rows(student), rows, labels, **options)

    return call


def _rows(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0] * _VIEWS, x.shape[1] // _VIEWS)


def head(student: Tensor, _teacher: Tensor, **options: Any) -> Tensor:
    return losses.sskd_head_loss(_rows(student), **options)


def _directions(rows: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, generator=generator), dim=1)


_MEANS = _directions(6, 6, 40)
_BANKS = _directions(20, 6, 41), _directions(20, 6, 42)


def with_class_means(loss: Call) -> Call:
    """ND: directions of six classes, and the teacher's largest feature as the label."""

    def call(student: Tensor, teacher: Tensor, labels: Tensor, **options: Any) -> Tensor:
        return loss(student, teacher, labels, _MEANS, **options)

    return with_labels(call)


def with_teacher_fixed(loss: Call) -> Call:
    """A loss that trains both sides, with one of them held."""

    def call(student: Tensor, teacher: Tensor, labels: Tensor, **options: Any) -> Tensor:
        return loss(student, teacher.detach(), labels, **options)

    return with_labels(call)


def with_tags(loss: Call) -> Call:
    """Likewise, where a sample has two labels: the teacher's largest code and its smallest."""

    def call(student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
        rows = teacher.detach().unsqueeze(-1).flatten(1)
        tags = (rows == rows.amax(1, True)) | (rows == rows.amin(1, True))
        return loss(student, teacher.detach(), tags, **options)

    return call


def _candidates(teacher: Tensor) -> Tensor:
    """Which of twenty samples each row is, told from itself to follow it, and nine negatives."""
    first = teacher.detach().double()
    first = first[:, :1] if first.dim() > 1 else first.unsqueeze(1)
    index = (1000 * first.nan_to_num(0, 0, 0).abs().clamp(max=1e6)).long()
    return (index + torch.arange(10)) % len(_BANKS[0])


def crd(student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    """Features in place of embeddings, at a temperature of their size."""
    options = {"temperature": 0.7, **options}
    return losses.crd_loss(student, teacher.detach(), _candidates(teacher), *_BANKS, **options)


def crd_with_constant_z(student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    return crd(student, teacher, log_normalizers=torch.tensor([3.0, 4.0]), **options)


def crd_frozen(student: Tensor, teacher: Tensor) -> Call:
    scores = scores_of((student, teacher), _BANKS[::-1], _candidates(teacher), 0.7, None)
    z = log_normalizers_of(scores, len(_BANKS[0]), None, "global")
    return partial(crd, log_normalizers=z)


def with_candidates(loss: Call) -> Call:
    def call(student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
        candidates = _candidates(teacher)
        return loss(student, teacher, candidates[:, 0], candidates, **options)

    return call


_HASHING: dict[str, Any] = {"margin": 6.0, "first_margin": 5.0, "second_margin": 4.0}

LOSSES: dict[str, LossCase] = {
    "ckd": LossCase(
        ("CKDLoss", "ckd_loss"),
        losses.ckd_loss,
        module=losses.CKDLoss,
        zero_at_match=False,
        lone=0.0,
    ),
    "ckd_paper": LossCase(
        (),
        partial(losses.ckd_loss, variant="paper", temperature=0.5),
        module=partial(losses.CKDLoss, 0.5, variant="paper"),
        zero_at_match=False,
        lone=0.0,
    ),
    "sskd": LossCase(
        ("SSKDLoss", "sskd_loss"),
        on_views(losses.sskd_loss),
        make=views,
        module=wrapped(on_views, losses.SSKDLoss),
        lone=0.0,
        exempt=_REPORTED_AS_ROWS,
    ),
    "sskd_transformed": LossCase(
        ("SSKDTransformedLoss", "sskd_transformed_loss"),
        on_labelled_views(partial(losses.sskd_transformed_loss, ratio=0.5)),
        make=views,
        module=wrapped(on_labelled_views, partial(losses.SSKDTransformedLoss, ratio=0.5)),
        exempt=_REPORTED_AS_ROWS,
    ),
    "sskd_transformed_all": LossCase(
        (),
        on_labelled_views(losses.sskd_transformed_loss),
        make=views,
        module=wrapped(on_labelled_views, losses.SSKDTransformedLoss),
        batch_coupled=False,
        exempt=_REPORTED_AS_ROWS,
    ),
    "sskd_head": LossCase(
        ("sskd_head_loss",),
        head,
        make=views,
        zero_at_match=False,
        lone=0.0,
        exempt={
            **_REPORTED_AS_ROWS,
            "not_a_number_is_told": "it reads one network; tests/losses/test_sskd.py has its NaN",
        },
    ),
    "nd": LossCase(
        ("NDLoss", "nd_loss"),
        with_class_means(losses.nd_loss),
        make=pooled,
        module=wrapped(with_class_means, losses.NDLoss),
        zero_at_match=False,
        batch_coupled=False,
    ),
    "crd": LossCase(
        ("CRDLoss", "crd_loss"),
        crd,
        make=pooled,
        module=wrapped(with_candidates, partial(losses.CRDLoss, 6, 6, 20, 8)),
        zero_at_match=False,
        frozen=crd_frozen,
        rate=1e-3,
    ),
    "crd_constant_z": LossCase(
        (),
        crd_with_constant_z,
        make=pooled,
        zero_at_match=False,
        batch_coupled=False,
        rate=1e-3,
    ),
    "mm_hashing": LossCase(
        ("MMHashingLoss", "mm_hashing_loss"),
        with_teacher_fixed(partial(losses.mm_hashing_loss, **_HASHING)),
        make=pooled,
        module=wrapped(with_teacher_fixed, partial(losses.MMHashingLoss, **_HASHING)),
        zero_at_match=False,
    ),
    "mm_hashing_tags": LossCase(
        (),
        with_tags(partial(losses.mm_hashing_loss, **_HASHING)),
        make=pooled,
        module=wrapped(with_tags, partial(losses.MMHashingLoss, **_HASHING)),
        zero_at_match=False,
    ),
}
