"""MHKD: its head terms, and where gradients go."""

from math import log

import pytest
import torch
import torch.nn.functional as F
from tests.losses import golden, oracles
from torch import Tensor

from congener.conformance.table.case import logits
from congener.errors import ShapeError
from congener.losses import MHKDLoss, head_cross_entropy_loss, kd_loss, mhkd_loss

LABELS = torch.tensor([0, 3, 1, 4, 2, 2, 0])
MASK = torch.tensor([True, False, True, True, False, True, True])


def heads(seed: int, count: int = 3) -> tuple[list[Tensor], list[Tensor]]:
    pairs = [logits(10 * seed + head) for head in range(count)]
    return [student for student, _ in pairs], [teacher for _, teacher in pairs]


def head_terms(student: oracles.Matrix, teacher: oracles.Matrix, tau: float) -> tuple[float, float]:
    """τ² KL and cross-entropy of one pair in plain Python."""
    kl = ce = 0.0
    for z_s, z_t, y in zip(student, teacher, LABELS.tolist(), strict=True):
        p_s, p_t = oracles.softmax(z_s, tau), oracles.softmax(z_t, tau)
        kl += tau**2 * sum(b * log(b / a) for a, b in zip(p_s, p_t, strict=True))
        ce -= log(oracles.softmax(z_s)[y])
    return kl / len(student), ce / len(student)


@pytest.mark.parametrize("count", [1, 3])
def test_oracle(count: int) -> None:
    student, teacher = heads(0, count)
    terms = [head_terms(s.tolist(), t.tolist(), 3.0) for s, t in zip(student, teacher, strict=True)]
    expected = sum(0.7 * kl + 0.2 * ce for kl, ce in terms)
    assert golden.close(MHKDLoss(0.7, 0.2, 3.0)(student, teacher, LABELS), expected)
    expected = sum(ce for _, ce in terms)
    assert golden.close(head_cross_entropy_loss(student, LABELS), expected)


def test_defaults_are_the_authors() -> None:
    student, teacher = heads(1)
    expected = sum(
        0.9 * kd_loss(s, t, temperature=4.0) + 0.1 * F.cross_entropy(s, LABELS)
        for s, t in zip(student, teacher, strict=True)
    )
    torch.testing.assert_close(mhkd_loss(student, teacher, LABELS), expected)


def test_order_of_the_pairs_does_not_matter_but_pairs_do() -> None:
    student, teacher = heads(2)
    expected = mhkd_loss(student, teacher, LABELS)
    torch.testing.assert_close(mhkd_loss(student[::-1], teacher[::-1], LABELS), expected)
    crossed = mhkd_loss(student, teacher[::-1], LABELS)
    assert not torch.isclose(crossed, expected, rtol=1e-3)


def test_heads_equal_up_to_a_shift_leave_the_labels() -> None:
    _, teacher = heads(3)
    shift = torch.linspace(-5, 5, 7, dtype=torch.float64).unsqueeze(1)
    student = [(t + shift).requires_grad_() for t in teacher]
    loss = mhkd_loss(student, teacher, LABELS, ce_weight=0.0)
    loss.backward()
    assert loss.abs() < 1e-12
    for head in student:
        assert head.grad is not None
        assert head.grad.abs().max() < 1e-12


def test_teachers_heads_learn_the_labels_alone() -> None:
    """Jointly trained, their gradient is that of their cross-entropy, whatever the student."""
    student, teacher = heads(4)
    for factor in (1.0, 5.0):
        own = [t.clone().requires_grad_() for t in teacher]
        mine = [(factor * s).requires_grad_() for s in student]
        loss = mhkd_loss(mine, own, LABELS) + head_cross_entropy_loss(own, LABELS)
        loss.backward()
        for head, t in zip(own, teacher, strict=True):
            rows = (torch.softmax(t, dim=1) - F.one_hot(LABELS, 5)) / 7
            assert head.grad is not None
            torch.testing.assert_close(head.grad, rows)
        assert all(head.grad is not None and head.grad.abs().max() > 1e-3 for head in mine)


def test_masked_samples_may_hold_anything() -> None:
    student, teacher = heads(5)
    kept = ([s[MASK] for s in student], [t[MASK] for t in teacher], LABELS[MASK])
    labels = LABELS.clone()
    labels[~MASK] = -100
    for head in (*student, *teacher):
        head[~MASK] = torch.nan
    found = mhkd_loss(student, teacher, labels, mask=MASK)
    torch.testing.assert_close(found, mhkd_loss(*kept))
    found = head_cross_entropy_loss(student, labels, mask=MASK)
    torch.testing.assert_close(found, head_cross_entropy_loss(kept[0], kept[2]))
    none = head_cross_entropy_loss(student, labels, mask=MASK, reduction="none")
    assert (none[~MASK] == 0).all()
    torch.testing.assert_close(none.sum() / 5, found)


def test_heads_may_differ_in_type() -> None:
    student, teacher = heads(6)
    mixed = [student[0].float(), student[1].half(), student[2]]
    widened = [head.double() for head in mixed]
    torch.testing.assert_close(
        mhkd_loss(mixed, teacher, LABELS), mhkd_loss(widened, teacher, LABELS), rtol=1e-6, atol=0
    )


def test_unlabelled_samples_keep_the_divergence() -> None:
    student, teacher = heads(9)
    labels = LABELS.clone()
    labels[2:4] = -100
    known = labels >= 0
    for mask in (None, MASK):
        kd = mhkd_loss(student, teacher, LABELS, ce_weight=0.0, mask=mask)
        count = known if mask is None else known & mask
        ce = head_cross_entropy_loss(student, LABELS, mask=count)
        torch.testing.assert_close(head_cross_entropy_loss(student, labels, mask=mask), ce)
        found = mhkd_loss(student, teacher, labels, ce_weight=0.3, mask=mask)
        torch.testing.assert_close(found, kd + 0.3 * ce)
        none = mhkd_loss(student, teacher, labels, ce_weight=0.3, mask=mask, reduction="none")
        torch.testing.assert_close((none if mask is None else none[mask]).mean(), found)
    unlabelled = torch.full_like(LABELS, -1)
    kd = mhkd_loss(student, teacher, LABELS, ce_weight=0.0)
    torch.testing.assert_close(mhkd_loss(student, teacher, unlabelled), kd)
    assert head_cross_entropy_loss(student, unlabelled) == 0


def test_nothing_left_is_zero() -> None:
    student = [head.requires_grad_() for head in heads(7)[0]]
    loss = head_cross_entropy_loss(student, LABELS, mask=~(MASK | ~MASK))
    loss.backward()
    assert loss == 0
    assert all(head.grad is not None and (head.grad == 0).all() for head in student)


def test_bad_heads_are_told() -> None:
    student, teacher = heads(8)
    with pytest.raises(ShapeError, match="3 heads and teacher_head_logits of 2 must be pairs"):
        mhkd_loss(student, teacher[:2], LABELS)
    with pytest.raises(ShapeError, match="one at least"):
        mhkd_loss([], [], LABELS)
    with pytest.raises(ShapeError, match="as lists of logits"):
        mhkd_loss(student, teacher[0], LABELS)
    with pytest.raises(ShapeError, match=r"\(7, 5\) and teacher_logits \(7, 3\)"):
        mhkd_loss(student, [teacher[0], teacher[1][:, :3], teacher[2]], LABELS)
    with pytest.raises(ShapeError, match=r"labels \(7,\) must be \(batch,\) = \(5,\)"):
        mhkd_loss([s[:5] for s in student], [t[:5] for t in teacher], LABELS)
    with pytest.raises(ValueError, match="temperature must be positive"):
        MHKDLoss(temperature=-1.0)
    with pytest.raises(ShapeError, match="one at least"):
        head_cross_entropy_loss([], LABELS)
    with pytest.raises(ShapeError, match=r"head_logits \(7,\) must be \(batch, classes\)"):
        head_cross_entropy_loss([student[0][:, 0]], LABELS)
    with pytest.raises(ValueError, match="head_logits must be floating point"):
        head_cross_entropy_loss([student[0].long()], LABELS)
    with pytest.raises(ValueError, match="labels must lie in 0…4"):
        head_cross_entropy_loss(student, LABELS + 1)
