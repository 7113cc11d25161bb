"""The cross-entropy with mixed labels: what it is, and how the share may come."""

from math import log
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.losses import golden, oracles
from torch import Tensor

from congener.conformance.table.case import logits
from congener.errors import ShapeError
from congener.losses import (
    kd_loss,
    mixed_cross_entropy_loss,
    mixkd_distance_loss,
    mixkd_loss,
    stkd_loss,
)

LABELS = torch.tensor([0, 3, 1, 4, 2, 2, 0])
OTHERS = LABELS.roll(1)
SHARES = torch.linspace(0, 1, 7, dtype=torch.float64)
MASK = torch.tensor([True, False, True, True, False, True, True])


def mixed(rows: oracles.Matrix, labels: list[int], others: list[int], shares: oracles.Row) -> float:
    total = 0.0
    for z, y, other, share in zip(rows, labels, others, shares, strict=True):
        p = oracles.softmax(z)
        total -= share * log(p[y]) + (1 - share) * log(p[other])
    return total / len(rows)


def test_oracle() -> None:
    student, _ = logits(0)
    arguments = (student.tolist(), LABELS.tolist(), OTHERS.tolist())
    found = mixed_cross_entropy_loss(student, LABELS, OTHERS, SHARES)
    assert golden.close(found, mixed(*arguments, SHARES.tolist()))
    expected = mixed(*arguments, [0.3] * 7)
    for share in (0.3, torch.tensor(0.3, dtype=torch.float64)):
        assert golden.close(mixed_cross_entropy_loss(student, LABELS, OTHERS, share), expected)


def test_golden_value() -> None:
    student, _ = golden.logits()
    labels = torch.arange(4)
    found = mixed_cross_entropy_loss(student, labels, labels.roll(-1), 0.3)
    assert golden.close(found, 2.4951162378335203)


def test_it_is_the_cross_entropy_with_the_mixed_label() -> None:
    student, _ = logits(1)
    one_hot = [F.one_hot(y, 5).double() for y in (LABELS, OTHERS)]
    soft = SHARES[:, None] * one_hot[0] + (1 - SHARES[:, None]) * one_hot[1]
    torch.testing.assert_close(soft.sum(dim=1), torch.ones_like(SHARES))
    torch.testing.assert_close(
        mixed_cross_entropy_loss(student, LABELS, OTHERS, SHARES), F.cross_entropy(student, soft)
    )


def test_pairs_may_be_named_the_other_way_round() -> None:
    student, _ = logits(2)
    torch.testing.assert_close(
        mixed_cross_entropy_loss(student, OTHERS, LABELS, 1 - SHARES),
        mixed_cross_entropy_loss(student, LABELS, OTHERS, SHARES),
    )


@pytest.mark.parametrize(("share", "labels"), [(1.0, LABELS), (0.0, OTHERS)])
def test_unmixed_is_plain_cross_entropy(share: float, labels: Tensor) -> None:
    student, _ = logits(3)
    expected = F.cross_entropy(student, labels)
    torch.testing.assert_close(mixed_cross_entropy_loss(student, LABELS, OTHERS, share), expected)
    same = mixed_cross_entropy_loss(student, labels, labels, SHARES)
    torch.testing.assert_close(same, expected)


def test_masked_samples_may_hold_anything() -> None:
    student, _ = logits(4)
    kept = [x[MASK] for x in (student, LABELS, OTHERS, SHARES)]
    shares, labels = SHARES.clone(), LABELS.clone()
    student[~MASK], labels[~MASK], shares[~MASK] = torch.nan, -100, torch.nan
    own = student.requires_grad_()
    loss = mixed_cross_entropy_loss(own, labels, OTHERS, shares, mask=MASK)
    torch.testing.assert_close(loss, mixed_cross_entropy_loss(*kept))
    loss.backward()
    assert own.grad is not None
    assert own.grad.isfinite().all()
    assert (own.grad[~MASK] == 0).all()
    none = mixed_cross_entropy_loss(own, labels, OTHERS, shares, mask=MASK, reduction="none")
    assert (none[~MASK] == 0).all()
    torch.testing.assert_close(none.sum() / 5, loss)


def test_a_virtual_sample_without_both_labels_does_not_count() -> None:
    student, _ = logits(9)
    labels, others = LABELS.clone(), OTHERS.clone()
    labels[1], others[2] = -100, -1
    known = torch.tensor([True, False, False, True, True, True, True])
    expected = mixed_cross_entropy_loss(*(x[known] for x in (student, LABELS, OTHERS, SHARES)))
    found = mixed_cross_entropy_loss(student, labels, others, SHARES)
    torch.testing.assert_close(found, expected)
    found = mixed_cross_entropy_loss(student, labels, others, SHARES, reduction="sum")
    torch.testing.assert_close(found, 5 * expected)


def test_the_teachers_part_takes_unlabelled_samples() -> None:
    student, teacher = logits(10)
    labels, others = LABELS.clone(), OTHERS.clone()
    labels[1], others[2] = -100, -1
    mixed = (labels, others, SHARES)
    for mask in (None, MASK):
        ce = mixed_cross_entropy_loss(student, *mixed, mask=mask)
        for loss, part, weights in (
            (stkd_loss, kd_loss, {"ce_weight": 0.3, "kl_weight": 0.7}),
            (mixkd_loss, mixkd_distance_loss, {"alpha_sm": 0.3, "alpha_tmkd": 0.7}),
        ):
            found = loss(student, teacher, *mixed, mask=mask, **weights)
            torch.testing.assert_close(found, 0.3 * ce + 0.7 * part(student, teacher, mask=mask))
            none = loss(student, teacher, *mixed, mask=mask, reduction="none", **weights)
            torch.testing.assert_close((none if mask is None else none[mask]).mean(), found)


def test_the_share_is_a_constant() -> None:
    share = SHARES.clone().requires_grad_()
    student = logits(5)[0].requires_grad_()
    mixed_cross_entropy_loss(student, LABELS, OTHERS, share).backward()
    assert share.grad is None


@pytest.mark.parametrize("share", [0.25, torch.tensor(0.25), torch.full((7,), 0.25)])
def test_half_precision_is_computed_in_float32(share: Any) -> None:
    student = logits(6)[0].half()
    loss = mixed_cross_entropy_loss(student, LABELS, OTHERS, share)
    assert loss.dtype == torch.float32
    assert mixed_cross_entropy_loss(student, LABELS, OTHERS, SHARES).dtype == torch.float32
    expected = mixed_cross_entropy_loss(student.double(), LABELS, OTHERS, 0.25)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


def test_nothing_left_is_zero() -> None:
    student = logits(7)[0].requires_grad_()
    loss = mixed_cross_entropy_loss(student, LABELS, OTHERS, SHARES, mask=~(MASK | ~MASK))
    loss.backward()
    assert loss == 0
    assert student.grad is not None
    assert (student.grad == 0).all()
    empty = LABELS[:0]
    assert mixed_cross_entropy_loss(student[:0], empty, empty, 0.5) == 0


@pytest.mark.parametrize("value", [1e4, -1e4])
def test_extremes_are_finite(value: float) -> None:
    student = torch.zeros(7, 5)
    student[:, 0] = value
    student.requires_grad_()
    loss = mixed_cross_entropy_loss(student, LABELS, OTHERS, SHARES)
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_bad_input_is_told() -> None:
    student, _ = logits(8)
    for share in (-0.1, 1.1, torch.nan):
        with pytest.raises(ValueError, match="share must lie between 0 and 1"):
            mixed_cross_entropy_loss(student, LABELS, OTHERS, share)
    with pytest.raises(ShapeError, match=r"share \(5,\) must be one number or \(batch,\) = \(7,\)"):
        mixed_cross_entropy_loss(student, LABELS, OTHERS, SHARES[:5])
    with pytest.raises(ValueError, match="share must be floating point"):
        mixed_cross_entropy_loss(student, LABELS, OTHERS, LABELS)
    with pytest.raises(ValueError, match="labels must lie in 0…4, not 9"):
        mixed_cross_entropy_loss(student, LABELS, torch.full_like(OTHERS, 9), 0.5)
    with pytest.raises(ShapeError, match=r"student_logits \(7, 5, 1\) must be \(batch, classes\)"):
        mixed_cross_entropy_loss(student.unsqueeze(2), LABELS, OTHERS, 0.5)
    with pytest.raises(ValueError, match="student_logits must be floating point"):
        mixed_cross_entropy_loss(student.long(), LABELS, OTHERS, 0.5)
    with pytest.raises(ValueError, match="reduction must be one of"):
        mixed_cross_entropy_loss(student, LABELS, OTHERS, 0.5, reduction="batch")  # type: ignore[arg-type]
