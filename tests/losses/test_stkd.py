"""STKD, as reconstructed: its terms and its limits."""

from math import log

import pytest
import torch
import torch.nn.functional as F
from tests.losses import golden, oracles

from congener.conformance.table.case import logits
from congener.losses import STKDLoss, kd_loss, mixed_cross_entropy_loss, stkd_loss

LABELS = torch.tensor([0, 3, 1, 4, 2, 2, 0])
OTHERS = LABELS.roll(1)
SHARES = torch.linspace(0, 1, 7, dtype=torch.float64)


def test_oracle() -> None:
    student, teacher = logits(0)
    expected, tau = 0.0, 3.0
    for i, share in enumerate(SHARES.tolist()):
        z_s, z_t = student[i].tolist(), teacher[i].tolist()
        p, p_s, p_t = oracles.softmax(z_s), oracles.softmax(z_s, tau), oracles.softmax(z_t, tau)
        mixed = -share * log(p[LABELS[i]]) - (1 - share) * log(p[OTHERS[i]])
        kl = sum(b * log(b / a) for a, b in zip(p_s, p_t, strict=True))
        expected += (0.2 * mixed + 0.7 * tau**2 * kl) / 7
    loss = STKDLoss(0.2, 0.7, tau)(student, teacher, LABELS, OTHERS, SHARES)
    assert golden.close(loss, expected)


def test_weights() -> None:
    student, teacher = logits(1)
    virtual = (student, teacher, LABELS, OTHERS, SHARES)
    torch.testing.assert_close(
        stkd_loss(*virtual, ce_weight=1.0, kl_weight=0.0),
        mixed_cross_entropy_loss(student, LABELS, OTHERS, SHARES),
    )
    torch.testing.assert_close(
        stkd_loss(*virtual, ce_weight=0.0, kl_weight=1.0, temperature=2.0),
        kd_loss(student, teacher, temperature=2.0),
    )


def test_unmixed_is_kd_with_the_task_loss() -> None:
    """λ = 1, or pairs of a sample with itself, whatever λ."""
    student, teacher = logits(2)
    expected = 0.1 * F.cross_entropy(student, LABELS) + 0.9 * kd_loss(student, teacher)
    for others, share in ((OTHERS, 1.0), (LABELS, 0.37)):
        torch.testing.assert_close(stkd_loss(student, teacher, LABELS, others, share), expected)


def test_pairs_that_swap_make_the_same_virtual_samples() -> None:
    """(λ, π) and (1 − λ, π⁻¹) name the same batch: with inputs mixed linearly, the same loss."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    w_s, w_t = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    labels, order = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([2, 0, 1, 4, 5, 3])

    def loss(permutation: torch.Tensor, share: float) -> torch.Tensor:
        virtual = share * x + (1 - share) * x[permutation]
        return stkd_loss(virtual @ w_s, virtual @ w_t, labels, labels[permutation], share)

    torch.testing.assert_close(loss(order, 0.3), loss(order.argsort(), 0.7))
    assert not torch.isclose(loss(order, 0.3), loss(order, 0.7), rtol=1e-3)


def test_match_leaves_the_mixed_labels() -> None:
    _, teacher = logits(4)
    student = teacher.clone().requires_grad_()
    loss = stkd_loss(student, teacher, LABELS, OTHERS, SHARES, ce_weight=0.0)
    loss.backward()
    assert loss.abs() < 1e-12
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


def test_shift_of_a_samples_logits_changes_nothing() -> None:
    student, teacher = logits(5)
    rest = (LABELS, OTHERS, SHARES)
    shift = torch.linspace(-9, 9, 7, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(
        stkd_loss(student + shift, teacher - shift, *rest), stkd_loss(student, teacher, *rest)
    )


def test_high_temperature_is_a_squared_distance() -> None:
    """τ² KL → mean ‖z̃_s − z̃_t‖² / 2C, of centred logits."""
    student, teacher = logits(6)
    centred = [z - z.mean(dim=1, keepdim=True) for z in (student, teacher)]
    limit = (centred[0] - centred[1]).square().sum(dim=1).mean() / 10
    loss = stkd_loss(
        student, teacher, LABELS, OTHERS, 0.5, ce_weight=0.0, kl_weight=1.0, temperature=1e4
    )
    torch.testing.assert_close(loss, limit, rtol=1e-3, atol=0)


def test_it_says_that_it_is_a_reconstruction() -> None:
    import congener.losses.stkd as module

    assert "reconstruct" in (module.__doc__ or "").lower()
    assert all(source.startswith("ours") for source in STKDLoss.sources.values())


def test_bad_temperature_is_told() -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        STKDLoss(temperature=0.0)
