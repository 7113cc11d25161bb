"""MixKD: its terms, and what holds of mixtures."""

from math import log

import pytest
import torch
import torch.nn.functional as F
from tests.losses import golden, oracles

from congener.conformance.table.case import logits
from congener.losses import (
    MixKDLoss,
    kd_loss,
    mixed_cross_entropy_loss,
    mixkd_distance_loss,
    mixkd_loss,
)

LABELS = torch.tensor([0, 3, 1, 4, 2, 2, 0])
OTHERS = LABELS.roll(1)
SHARES = torch.linspace(0, 1, 7, dtype=torch.float64)


def distance_of(z_s: oracles.Row, z_t: oracles.Row, distance: str, tau: float) -> float:
    if distance == "mse":
        return sum((a - b) ** 2 for a, b in zip(z_s, z_t, strict=True)) / len(z_s)
    p_s, p_t = oracles.softmax(z_s, tau), oracles.softmax(z_t, tau)
    return tau**2 * sum(b * log(b / a) for a, b in zip(p_s, p_t, strict=True))


@pytest.mark.parametrize("distance", ["mse", "kl"])
def test_oracle(distance: str) -> None:
    student, teacher = logits(0)
    expected = mean_distance = 0.0
    for i, share in enumerate(SHARES.tolist()):
        z_s, z_t = student[i].tolist(), teacher[i].tolist()
        p = oracles.softmax(z_s)
        mixed = -share * log(p[LABELS[i]]) - (1 - share) * log(p[OTHERS[i]])
        mean_distance += distance_of(z_s, z_t, distance, 2.0) / 7
        expected += (0.5 * mixed + 3.0 * distance_of(z_s, z_t, distance, 2.0)) / 7
    module = MixKDLoss(0.5, 3.0, distance, 2.0)  # type: ignore[arg-type]
    assert golden.close(module(student, teacher, LABELS, OTHERS, SHARES), expected)
    found = mixkd_distance_loss(student, teacher, distance=distance, temperature=2.0)  # type: ignore[arg-type]
    assert golden.close(found, mean_distance)


def test_terms() -> None:
    student, teacher = logits(1)
    mixture = (student, teacher, LABELS, OTHERS, SHARES)
    torch.testing.assert_close(
        mixkd_loss(*mixture, alpha_tmkd=0.0),
        mixed_cross_entropy_loss(student, LABELS, OTHERS, SHARES),
    )
    torch.testing.assert_close(mixkd_loss(*mixture, alpha_sm=0.0), F.mse_loss(student, teacher))
    torch.testing.assert_close(
        mixkd_loss(*mixture, alpha_sm=0.0, distance="kl", temperature=3.0),
        kd_loss(student, teacher, temperature=3.0),
    )


def test_unmixed_is_the_task_loss_and_kd() -> None:
    student, teacher = logits(2)
    expected = F.cross_entropy(student, LABELS) + F.mse_loss(student, teacher)
    for others, share in ((OTHERS, 1.0), (LABELS, 0.37)):
        torch.testing.assert_close(mixkd_loss(student, teacher, LABELS, others, share), expected)


def test_temperature_leaves_mse_alone() -> None:
    student, teacher = logits(3)
    for distance, same in (("mse", True), ("kl", False)):
        cold, warm = (
            mixkd_distance_loss(student, teacher, distance=distance, temperature=t)  # type: ignore[arg-type]
            for t in (1.0, 4.0)
        )
        assert torch.isclose(cold, warm, rtol=1e-3).item() is same


def test_shift_tells_the_distances_apart() -> None:
    student, teacher = logits(4)
    shifted = student + 3
    torch.testing.assert_close(
        mixkd_distance_loss(shifted, teacher, distance="kl"),
        mixkd_distance_loss(student, teacher, distance="kl"),
    )
    changed = mixkd_distance_loss(shifted, teacher)
    assert not torch.isclose(changed, mixkd_distance_loss(student, teacher), rtol=1e-3)


@pytest.mark.parametrize("distance", ["mse", "kl"])
def test_equal_networks_answer_alike_on_every_mixture(distance: str) -> None:
    generator = torch.Generator().manual_seed(5)
    x, w = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((7, 4), (4, 5)))
    w.requires_grad_()
    for share in (0.0, 0.3, 1.0):
        mixture = share * x + (1 - share) * x.roll(1, 0)
        loss = mixkd_distance_loss(mixture @ w, mixture @ w, distance=distance)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(loss, w)
        assert loss.abs() < 1e-12
        assert gradient.abs().max() < 1e-12


def test_pairs_may_be_named_the_other_way_round() -> None:
    student, teacher = logits(6)
    torch.testing.assert_close(
        mixkd_loss(student, teacher, OTHERS, LABELS, 1 - SHARES),
        mixkd_loss(student, teacher, LABELS, OTHERS, SHARES),
    )


def test_unknown_distance_is_told() -> None:
    student, teacher = logits(7)
    with pytest.raises(ValueError, match="distance must be one of 'mse', 'kl'"):
        mixkd_distance_loss(student, teacher, distance="l1")  # type: ignore[arg-type]
