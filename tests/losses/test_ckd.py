"""CKD: whom it tells apart, and what leaves it unchanged."""

from math import exp, log, sqrt
from typing import Literal

import pytest
import torch
from tests.losses import golden
from torch import Tensor

from congener.conformance.table.case import logits
from congener.losses import CKDLoss, ckd_loss
from congener.ops.collectives import lone_sample_expected

Rows = list[list[float]]


def oracle(student: Rows, teacher: Rows, tau: float, variant: str = "authors") -> float:
    def cosine(u: list[float], v: list[float]) -> float:
        norms = sqrt(sum(a * a for a in u)) * sqrt(sum(b * b for b in v))
        return sum(a * b for a, b in zip(u, v, strict=True)) / norms

    total = 0.0
    for i in range(len(student)):
        anchor = teacher[i] if variant == "authors" else student[i]
        positive = exp(cosine(teacher[i], student[i]) / tau)
        negatives = [exp(cosine(anchor, s) / tau) for j, s in enumerate(student) if j != i]
        total -= log(positive / (positive + sum(negatives)))
    return total / len(student)


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("variant", ["authors", "paper"])
@pytest.mark.parametrize("tau", [0.1, 1.0, 2.0])
@lone_sample_expected()
def test_oracle(batch: int, variant: str, tau: float) -> None:
    student, teacher = logits(0, batch)
    expected = oracle(student.tolist(), teacher.tolist(), tau, variant)
    assert golden.close(CKDLoss(tau, variant=variant)(student, teacher), expected)  # type: ignore[arg-type]


def test_golden_values() -> None:
    student, teacher = 3 * golden.wave((4, 5), 0.1), 3 * golden.wave((4, 5), 0.9)
    student.requires_grad_()
    loss = ckd_loss(student, teacher)
    assert golden.close(loss, 0.9334697374, 1e-9)
    assert golden.close(ckd_loss(student, teacher, temperature=2.0), 1.1160054727, 1e-9)
    # students as anchors, the transposed and wrong reading
    assert golden.close(ckd_loss(teacher, student), 0.9402701083, 1e-9)
    (gradient,) = torch.autograd.grad(loss, student)
    assert golden.close(gradient.norm(), 0.0673038561, 1e-8)
    assert golden.close(gradient[0, 0], -0.0168121880, 1e-8)


def test_gradient_in_closed_form() -> None:
    student, teacher = logits(1)
    tau, batch = 0.5, len(student)
    own = student.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ckd_loss(own, teacher, temperature=tau), own)
    norms = student.norm(dim=1, keepdim=True)
    s, t = student / norms, teacher / teacher.norm(dim=1, keepdim=True)
    wrong = torch.softmax(t @ s.T / tau, dim=1) - torch.eye(batch, dtype=torch.float64)
    pull = wrong.T @ t / (batch * tau)
    expected = (pull - (pull * s).sum(dim=1, keepdim=True) * s) / norms
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15)
    assert (gradient * student).sum(dim=1).abs().max() < 1e-15


@pytest.mark.parametrize("variant", ["authors", "paper"])
def test_scale_of_each_sample_and_rotations_change_nothing(variant: str) -> None:
    student, teacher = logits(2)
    options = {"variant": variant}
    expected = ckd_loss(student, teacher, **options)  # type: ignore[arg-type]
    scale = torch.linspace(0.01, 30, 7, dtype=torch.float64).unsqueeze(1)
    rotation, _ = torch.linalg.qr(golden.wave((5, 5), 0.3))
    for pair in (
        (scale * student, teacher),
        (student, scale * teacher),
        (student @ rotation, teacher @ rotation),
        (student.roll(1, dims=1), teacher.roll(1, dims=1)),
    ):
        torch.testing.assert_close(ckd_loss(*pair, **options), expected)  # type: ignore[arg-type]
    assert not torch.isclose(
        ckd_loss(student @ rotation, teacher, **options),  # type: ignore[arg-type]
        expected,
        rtol=1e-3,
    )


def test_a_shift_changes_it() -> None:
    student, teacher = logits(3)
    assert not torch.isclose(ckd_loss(student + 2, teacher), ckd_loss(student, teacher), rtol=1e-3)


@lone_sample_expected()
def test_lone_sample_has_no_one_to_be_told_from() -> None:
    student, teacher = logits(4, 1)
    student.requires_grad_()
    loss = ckd_loss(student, teacher)
    loss.backward()
    assert loss == 0
    assert student.grad is not None
    assert not student.grad.any()


def simplex(points: int) -> Tensor:
    """Directions as far from each other as they can be."""
    return torch.eye(points, dtype=torch.float64) - 1 / points


@pytest.mark.parametrize("batch", [2, 32])
def test_bounds(batch: int) -> None:
    """Hot, it cannot tell at all; its least is far from 0, and equal logits are not its least."""
    student, teacher = logits(5, batch)
    assert golden.close(ckd_loss(student, teacher, temperature=1e9), log(batch), 1e-8)
    least = log(1 + (batch - 1) * exp(-(1 + 1 / (batch - 1))))
    best = ckd_loss(simplex(batch), simplex(batch))
    assert golden.close(best, least)
    if batch == 32:
        assert abs(least - 2.488) < 1e-3
    assert best < ckd_loss(teacher, teacher) < log(batch)


def test_equal_logits_are_not_stationary() -> None:
    _, teacher = logits(6)
    student = teacher.clone()
    losses = []
    for _ in range(50):
        student.requires_grad_()
        loss = ckd_loss(student, teacher)
        losses.append(loss.item())
        (gradient,) = torch.autograd.grad(loss, student)
        student = (student - 3 * gradient).detach()
    assert losses[-1] < losses[0] - 0.01
    assert torch.cosine_similarity(student, teacher).mean() < 0.999


def test_variants_differ_in_the_negatives_alone() -> None:
    student, teacher = logits(7)
    assert not torch.isclose(
        ckd_loss(student, teacher), ckd_loss(student, teacher, variant="paper"), rtol=1e-3
    )
    torch.testing.assert_close(
        ckd_loss(teacher, teacher), ckd_loss(teacher, teacher, variant="paper")
    )


def test_large_half_precision_logits_do_not_overflow() -> None:
    student = torch.full((3, 1000), 300.0, dtype=torch.float16)
    student[1, :500] = -300
    loss = ckd_loss(student, student.flip(1))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, ckd_loss(student.float(), student.flip(1).float()))


def test_masked_candidates_are_no_candidates() -> None:
    student, teacher = logits(8)
    mask = torch.tensor([True] * 5 + [False] * 2)
    expected = oracle(student[:5].tolist(), teacher[:5].tolist(), 1.0)
    assert golden.close(ckd_loss(student, teacher, mask=mask), expected)
    only = torch.tensor([True] + [False] * 6)
    assert ckd_loss(student, teacher, mask=only) == 0


def test_unknown_variant_is_told() -> None:
    with pytest.raises(ValueError, match="variant must be one of 'authors', 'paper'"):
        ckd_loss(*logits(9), variant="student")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("variant", ["authors", "paper"])
def test_zero_logits_point_nowhere(
    dtype: torch.dtype, variant: Literal["authors", "paper"]
) -> None:
    student, teacher = (x.to(dtype) for x in logits(15))
    student[2] = 0
    student.requires_grad_()
    ckd_loss(student, teacher, variant=variant).backward()
    assert student.grad is not None
    assert not student.grad[2].any()
    assert 0 < student.grad.abs().max() < 10
