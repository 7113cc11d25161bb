"""DKD: what it is, its limits, and what leaves it unchanged."""

from math import log

import pytest
import torch
from tests.losses import golden, oracles

from congener.conformance.table.case import logits
from congener.errors import ShapeError
from congener.losses import (
    DKDLoss,
    dkd_loss,
    kd_loss,
    lskd_loss,
    nckd_loss,
    standardize_logits,
    tckd_loss,
)

LABELS = torch.tensor([0, 3, 1, 4, 2, 2, 0])


def parts(
    student: oracles.Matrix, teacher: oracles.Matrix, labels: list[int], tau: float
) -> tuple[float, float]:
    """TCKD and NCKD in plain Python."""
    tckd = nckd = 0.0
    for z_s, z_t, y in zip(student, teacher, labels, strict=True):
        p_s, p_t = oracles.softmax(z_s, tau), oracles.softmax(z_t, tau)
        rest_s, rest_t = (sum(p) - p[y] for p in (p_s, p_t))
        tckd += p_t[y] * log(p_t[y] / p_s[y]) + rest_t * log(rest_t / rest_s)
        for j in range(len(z_s)):
            if j != y:
                nckd += p_t[j] / rest_t * log((p_t[j] / rest_t) / (p_s[j] / rest_s))
    return tau**2 * tckd / len(labels), tau**2 * nckd / len(labels)


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_oracle(tau: float) -> None:
    student, teacher = logits(0)
    tckd, nckd = parts(student.tolist(), teacher.tolist(), LABELS.tolist(), tau)
    assert golden.close(tckd_loss(student, teacher, LABELS, temperature=tau), tckd)
    assert golden.close(nckd_loss(student, teacher, LABELS, temperature=tau), nckd)
    loss = DKDLoss(alpha=0.3, beta=7.0, temperature=tau)(student, teacher, LABELS)
    assert golden.close(loss, 0.3 * tckd + 7 * nckd)


def test_golden_values() -> None:
    student, teacher = golden.logits()
    labels = torch.arange(4)
    assert golden.close(tckd_loss(student, teacher, labels), 0.27758180478308214)
    assert golden.close(nckd_loss(student, teacher, labels), 2.9669048187834988)
    expected = 0.27758180478308214 + 8 * 2.9669048187834988
    assert golden.close(dkd_loss(student, teacher, labels), expected)


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_kd_is_dkd_with_the_teachers_doubt_as_beta(tau: float) -> None:
    """KD(τ) = τ² mean[TCKDᵢ + (1 − pᵗ of the label) · NCKDᵢ]."""
    student, teacher = logits(1)
    tckd, nckd = (
        part(student, teacher, LABELS, temperature=tau, reduction="none")
        for part in (tckd_loss, nckd_loss)
    )
    doubt = 1 - torch.softmax(teacher / tau, dim=1)[torch.arange(7), LABELS]
    torch.testing.assert_close(
        (tckd + doubt * nckd).mean(), kd_loss(student, teacher, temperature=tau)
    )


def test_two_classes_have_no_others() -> None:
    student, teacher = (x[:, :2].clone().requires_grad_() for x in logits(2))
    labels = LABELS % 2
    nckd = nckd_loss(student, teacher, labels)
    nckd.backward()
    assert nckd == 0
    assert student.grad is not None
    assert (student.grad == 0).all()
    torch.testing.assert_close(tckd_loss(student, teacher, labels), kd_loss(student, teacher))
    torch.testing.assert_close(dkd_loss(student, teacher, labels), kd_loss(student, teacher))


def test_each_part_looks_away_from_the_other() -> None:
    """TCKD ignores how the others share, NCKD the label's own logit; shifts change neither."""
    student, teacher = logits(3)
    nckd = nckd_loss(student, teacher, LABELS)
    raised = student.clone()
    raised[torch.arange(7), LABELS] += torch.linspace(-3, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(nckd_loss(raised, teacher, LABELS), nckd)
    assert not torch.isclose(
        tckd_loss(raised, teacher, LABELS), tckd_loss(student, teacher, LABELS)
    )
    shared = student.clone()
    for i, label in enumerate(LABELS.tolist()):
        others = [j for j in range(5) if j != label]
        shared[i, others] = student[i, others].flip(0)
    tckd = tckd_loss(student, teacher, LABELS)
    torch.testing.assert_close(tckd_loss(shared, teacher, LABELS), tckd)
    assert not torch.isclose(nckd_loss(shared, teacher, LABELS), nckd)
    shift = torch.linspace(-2e4, 2e4, 7, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(
        dkd_loss(student + shift, teacher - 2 * shift, LABELS), dkd_loss(student, teacher, LABELS)
    )


def test_gradients_of_the_parts() -> None:
    """d/dz of τ² KL(b ‖ ·) is τ (p_s − p_t) on the label; of NCKD it is 0 there."""
    student, teacher = logits(4)
    tau, rows = 2.0, torch.arange(7)
    p_s, p_t = (torch.softmax(z / tau, dim=1)[rows, LABELS] for z in (student, teacher))
    for part, expected in ((tckd_loss, tau * (p_s - p_t)), (nckd_loss, torch.zeros_like(p_s))):
        own = student.clone().requires_grad_()
        part(own, teacher, LABELS, temperature=tau, reduction="sum").backward()
        assert own.grad is not None
        torch.testing.assert_close(own.grad[rows, LABELS], expected)
        torch.testing.assert_close(own.grad.sum(dim=1), torch.zeros(7, dtype=torch.float64))


@pytest.mark.parametrize("sure", [6000.0, 1e4])
def test_sure_networks_keep_their_nckd(sure: float) -> None:
    """A logit of the label so large that a mask of -1000 would leak, or log(p) overflow."""
    student, teacher = (x.float() for x in logits(5))
    rows = torch.arange(7)
    expected = nckd_loss(student, teacher, LABELS)
    teacher[rows, LABELS] = sure
    student[rows, LABELS] = -sure
    own = student.requires_grad_()
    loss = nckd_loss(own, teacher, LABELS)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    assert own.grad is not None
    assert own.grad.isfinite().all()
    tckd = tckd_loss(student, teacher, LABELS)
    torch.testing.assert_close(tckd, torch.tensor(4 * sure), rtol=1e-3, atol=0)


def test_standardized_logits() -> None:
    student, teacher = logits(6)
    expected = dkd_loss(standardize_logits(student), standardize_logits(teacher), LABELS)
    actual = dkd_loss(student, teacher, LABELS, standardize=True)
    torch.testing.assert_close(actual, expected)
    assert not torch.isclose(actual, dkd_loss(student, teacher, LABELS))
    torch.testing.assert_close(
        dkd_loss(3 * student + 1, 0.2 * teacher - 4, LABELS, standardize=True),
        expected,
        rtol=1e-5,
        atol=0,
    )
    two = (student[:, :2], teacher[:, :2], LABELS % 2)
    torch.testing.assert_close(
        dkd_loss(*two, temperature=2.0, standardize=True), lskd_loss(*two[:2], temperature=2.0)
    )


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_labels_of_any_whole_type(dtype: torch.dtype) -> None:
    student, teacher = logits(7)
    expected = dkd_loss(student, teacher, LABELS)
    torch.testing.assert_close(dkd_loss(student, teacher, LABELS.to(dtype)), expected)


def test_samples_without_a_label_are_masked() -> None:
    student, teacher = logits(8)
    labels = LABELS.clone()
    labels[2:4] = -100
    student[2] = torch.nan
    own = student.requires_grad_()
    for loss in (dkd_loss, tckd_loss, nckd_loss):
        expected = loss(*(torch.cat((x[:2], x[4:])) for x in (student, teacher, labels)))
        torch.testing.assert_close(loss(student, teacher, labels), expected)
        one_more = torch.arange(7) != 6
        expected = loss(*(torch.cat((x[:2], x[4:6])) for x in (student, teacher, labels)))
        torch.testing.assert_close(loss(student, teacher, labels, mask=one_more), expected)
        loss(own, teacher, labels, reduction="none").sum().backward()
    assert own.grad is not None
    assert own.grad.isfinite().all()
    assert (own.grad[2:4] == 0).all()
    assert dkd_loss(own, teacher, torch.full_like(labels, -1)) == 0


def test_large_logits_keep_float32s_precision() -> None:
    """log Σ exp of the others lies beside ±1e4 only if it is not shifted first."""
    student, teacher = (1e4 * x.sign() for x in logits(10))
    for loss in (tckd_loss, nckd_loss):
        wide = loss(student, teacher, LABELS)
        found = loss(student.float(), teacher.float(), LABELS)
        torch.testing.assert_close(found.double(), wide, rtol=1e-6, atol=0)


def test_bad_labels_are_told() -> None:
    student, teacher = logits(9)
    with pytest.raises(ValueError, match=r"labels must lie in 0…4, not 5; mark .* by a negative"):
        DKDLoss()(student, teacher, LABELS + 1)
    with pytest.raises(ShapeError, match=r"labels \(5,\) must be \(batch,\) = \(7,\)"):
        dkd_loss(student, teacher, LABELS[:5])
    for wrong in (LABELS.float(), LABELS > 2):
        with pytest.raises(ValueError, match="labels must be integers"):
            dkd_loss(student, teacher, wrong)
    with pytest.raises(ShapeError, match="two classes or more"):
        dkd_loss(student[:, :1], teacher[:, :1], torch.zeros(7, dtype=torch.int64))
