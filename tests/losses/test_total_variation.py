"""Total variation: half of what would have to move."""

import pytest
import torch
from tests.losses import golden, oracles

from congener.conformance.table.case import logits
from congener.losses import TotalVariationLoss, gkd_loss, total_variation_loss


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_oracle(temperature: float) -> None:
    student, teacher = logits(0)
    total = 0.0
    for z_s, z_t in zip(student.tolist(), teacher.tolist(), strict=True):
        p_s, p_t = oracles.softmax(z_s, temperature), oracles.softmax(z_t, temperature)
        total += sum(abs(a - b) for a, b in zip(p_s, p_t, strict=True)) / 2
    assert golden.close(TotalVariationLoss(temperature)(student, teacher), total / 7)


def test_golden_value() -> None:
    student = torch.tensor([[0.3, 0.3, 0.3, 0.1]], dtype=torch.float64).log()
    teacher = torch.tensor([[0.6, 0.25, 0.1, 0.05]], dtype=torch.float64).log()
    assert golden.close(total_variation_loss(student, teacher), 0.3)


def test_symmetric_and_bounded() -> None:
    for seed in range(5):
        student, teacher = logits(seed)
        loss = total_variation_loss(student, teacher)
        torch.testing.assert_close(total_variation_loss(teacher, student), loss)
        assert 0 < loss < 1
    apart = (torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]]))
    assert total_variation_loss(*apart) == 1


def test_the_divergences_bound_it() -> None:
    """Pinsker: TV² ≤ KL / 2, token by token."""
    student, teacher = logits(1, 50)
    variation = total_variation_loss(student, teacher, reduction="none")
    for beta in (0.0, 1.0):
        divergence = gkd_loss(student, teacher, beta=beta, reduction="none")
        assert (variation**2 <= divergence / 2).all()


def test_it_is_the_mass_above_the_teacher() -> None:
    student, teacher = logits(2)
    p_s, p_t = student.softmax(1), teacher.softmax(1)
    torch.testing.assert_close(
        total_variation_loss(student, teacher, reduction="none"), (p_s - p_t).relu().sum(1)
    )


def test_excluded_tokens_count_nothing() -> None:
    student, teacher = logits(3)
    kept = total_variation_loss(student[:, 1:], teacher[:, 1:])
    student[:, 0], teacher[:, 0] = -torch.inf, -torch.inf
    student.requires_grad_()
    loss = total_variation_loss(student, teacher)
    torch.testing.assert_close(loss, kept)
    loss.backward()
    assert student.grad is not None
    assert (student.grad[:, 0] == 0).all()
