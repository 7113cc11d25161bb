"""Skew KL: bounded by the mixture, equal to KL without it."""

from math import log

import pytest
import torch
from tests.losses import golden, oracles
from torch import Tensor

from congener.conformance.table.case import logits
from congener.losses import SkewKLLoss, gkd_loss, skew_kl_loss

P = [0.6, 0.25, 0.1, 0.05]
Q = [0.3, 0.3, 0.3, 0.1]
DIRECTIONS = ("forward", "reverse")


def fixture() -> tuple[Tensor, Tensor]:
    student, teacher = (torch.tensor([x], dtype=torch.float64).log() for x in (Q, P))
    return student, teacher


def oracle(student: Tensor, teacher: Tensor, alpha: float, direction: str, tau: float) -> float:
    total = 0.0
    for z_s, z_t in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = oracles.softmax(z_s, tau), oracles.softmax(z_t, tau)
        first, second = (p, q) if direction == "forward" else (q, p)
        for a, b in zip(first, second, strict=True):
            total += a * log(a / (alpha * a + (1 - alpha) * b))
    return total / len(student)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_oracle(alpha: float, direction: str, temperature: float) -> None:
    student, teacher = logits(0)
    expected = oracle(student, teacher, alpha, direction, temperature)
    loss = SkewKLLoss(alpha, direction, temperature)  # type: ignore[arg-type]
    assert golden.close(loss(student, teacher), expected, 1e-11)


def test_golden_values() -> None:
    assert golden.close(skew_kl_loss(*fixture(), alpha=0.1), 0.1822689548, 1e-9)
    reverse = skew_kl_loss(*fixture(), alpha=0.1, direction="reverse")
    assert golden.close(reverse, 0.1908704326, 1e-9)
    assert golden.close(skew_kl_loss(*fixture()), 0.1822689548, 1e-9)


def test_the_released_forward_form_adds_the_teachers_entropy() -> None:
    entropy = -sum(p * log(p) for p in P)
    assert abs(entropy - 1.0331140875) < 1e-9
    released = skew_kl_loss(*fixture(), alpha=0.1).item() + entropy
    assert abs(released - 1.2154) < 5e-5


def test_without_skew_it_is_the_divergence() -> None:
    student, teacher = logits(1)
    for direction, beta in zip(DIRECTIONS, (0.0, 1.0), strict=True):
        torch.testing.assert_close(
            skew_kl_loss(student, teacher, alpha=0.0, direction=direction),  # type: ignore[arg-type]
            gkd_loss(student, teacher, beta=beta),
        )


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.7])
def test_bounded_and_below_the_divergence(alpha: float, direction: str) -> None:
    apart = (torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]]))
    loss = skew_kl_loss(*apart, alpha=alpha, direction=direction)  # type: ignore[arg-type]
    assert golden.close(loss, -log(alpha), 1e-6)
    for seed in range(5):
        pair = logits(seed)
        loss = skew_kl_loss(*pair, alpha=alpha, direction=direction)  # type: ignore[arg-type]
        whole = skew_kl_loss(*pair, alpha=0.0, direction=direction)  # type: ignore[arg-type]
        assert 0 < loss < min(-log(alpha), (1 - alpha) * whole.item())


def test_without_skew_huge_logits_keep_their_value() -> None:
    student, teacher = torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]])
    for direction in DIRECTIONS:
        assert skew_kl_loss(student, teacher, alpha=0.0, direction=direction) == 1e4  # type: ignore[arg-type]


def test_the_directions_are_each_other_with_the_networks_exchanged() -> None:
    student, teacher = logits(2)
    torch.testing.assert_close(
        skew_kl_loss(student, teacher, alpha=0.2),
        skew_kl_loss(teacher, student, alpha=0.2, direction="reverse"),
    )


def test_two_skewed_ones_make_jensen_shannon() -> None:
    """β KL(p ‖ β p + (1−β) q) + (1−β) KL(q ‖ (1−β) q + β p)."""
    student, teacher = logits(3)
    forward = skew_kl_loss(student, teacher, alpha=0.3)
    reverse = skew_kl_loss(student, teacher, alpha=0.7, direction="reverse")
    torch.testing.assert_close(0.3 * forward + 0.7 * reverse, gkd_loss(student, teacher, beta=0.3))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("sides", [(0,), (1,), (0, 1)])
def test_excluded_tokens(direction: str, sides: tuple[int, ...]) -> None:
    pair = [*logits(4)]
    for side in sides:
        pair[side][:, 2] = -torch.inf
    pair[0].requires_grad_()
    loss = skew_kl_loss(*pair, direction=direction)  # type: ignore[arg-type]
    loss.backward()
    assert loss < -log(0.1)
    assert pair[0].grad is not None
    assert pair[0].grad.isfinite().all()
    if len(sides) == 2:
        kept = [x[:, [0, 1, 3, 4]] for x in pair]
        torch.testing.assert_close(loss, skew_kl_loss(*kept, direction=direction))  # type: ignore[arg-type]


def test_what_is_wrong_is_told() -> None:
    for alpha in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\), not"):
            SkewKLLoss(alpha)
    with pytest.raises(ValueError, match="direction must be one of 'forward', 'reverse'"):
        skew_kl_loss(*logits(5), direction="backward")  # type: ignore[arg-type]
