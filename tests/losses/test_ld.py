"""LD: the edges' distributions over distances, and the class term beside it."""

from math import log

import pytest
import torch
from tests.losses import golden
from tests.losses.oracles import kd, softmax
from torch import Tensor

from congener.conformance.table.case import logits
from congener.errors import ShapeError
from congener.losses import LDLoss, kd_loss, ld_class_loss, ld_loss


def edges(seed: int, batch: int = 5) -> tuple[Tensor, Tensor]:
    return logits(seed, batch, (4, 17))


def weights(seed: int, batch: int = 5) -> Tensor:
    return torch.rand(batch, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_location(student: list[list[float]], teacher: list[list[float]], tau: float) -> float:
    total = 0.0
    for z_s, z_t in zip(student, teacher, strict=True):
        pairs = zip(softmax(z_s, tau), softmax(z_t, tau), strict=True)
        total += tau * tau * sum(p_t * log(p_t / p_s) for p_s, p_t in pairs) / len(z_s)
    return total / len(student)


def oracle(student: Tensor, teacher: Tensor, w: Tensor, tau: float, normalize: str) -> float:
    own = [of_location(s, t, tau) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    total = sum(x * y for x, y in zip(own, w.tolist(), strict=True))
    return total / (sum(w.tolist()) if normalize == "weights" else len(own))


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("tau", [1.0, 10.0])
@pytest.mark.parametrize("normalize", ["weights", "locations"])
def test_oracle(batch: int, tau: float, normalize: str) -> None:
    student, teacher = edges(0, batch)
    w = weights(0, batch)
    options = {"temperature": tau, "normalize": normalize}
    expected = oracle(student, teacher, w, tau, normalize)
    assert golden.close(ld_loss(student, teacher, w, **options), expected)  # type: ignore[arg-type]
    assert golden.close(LDLoss(**options)(student, teacher, w), expected)  # type: ignore[arg-type]
    plain = oracle(student, teacher, torch.ones(batch), tau, normalize)
    assert golden.close(ld_loss(student, teacher, **options), plain)  # type: ignore[arg-type]


def test_published_defaults() -> None:
    student, teacher = edges(1)
    expected = oracle(student, teacher, weights(1), 10.0, "weights")
    assert golden.close(ld_loss(student, teacher, weights(1)), expected)


def test_the_released_sum_is_one_of_its_reductions() -> None:
    """Weighted by location and edge, averaged over bins, summed, divided by 4."""
    student, teacher = edges(2)
    w = weights(2)
    log_p = (student / 10).log_softmax(dim=2)
    rows = torch.nn.functional.kl_div(log_p, (teacher / 10).softmax(dim=2), reduction="none")
    expected = (100 * rows.mean(dim=2) * w[:, None]).sum() / 4
    released = LDLoss(normalize="locations", reduction="sum")
    torch.testing.assert_close(released(student, teacher, w), expected)


def test_it_is_a_mean_over_bins() -> None:
    student, teacher = edges(3)
    rows = kd_loss(student.flatten(0, 1), teacher.flatten(0, 1), temperature=10.0)
    torch.testing.assert_close(ld_loss(student, teacher), rows / 17)


def test_only_ratios_of_weights_count() -> None:
    student, teacher = edges(4)
    w = weights(4)
    expected = ld_loss(student, teacher, w)
    torch.testing.assert_close(ld_loss(student, teacher, 7 * w), expected)
    fixed = ld_loss(student, teacher, w, normalize="locations")
    torch.testing.assert_close(ld_loss(student, teacher, 7 * w, normalize="locations"), 7 * fixed)
    torch.testing.assert_close(fixed, expected * w.mean())
    w[2] = 0
    rest = torch.tensor([0, 1, 3, 4])
    torch.testing.assert_close(
        ld_loss(student, teacher, w), ld_loss(student[rest], teacher[rest], w[rest])
    )


@pytest.mark.parametrize("normalize", ["weights", "locations"])
def test_without_weight_it_is_zero(normalize: str) -> None:
    student, teacher = edges(5)
    student.requires_grad_()
    loss = ld_loss(student, teacher, torch.zeros(5).double(), normalize=normalize)  # type: ignore[arg-type]
    loss.backward()
    assert loss == 0
    assert student.grad is not None
    assert (student.grad == 0).all()


def test_masked_locations_may_hold_anything() -> None:
    student, teacher = edges(6)
    w = weights(6)
    mask = torch.tensor([True, True, False, True, False])
    expected = ld_loss(student[mask], teacher[mask], w[mask])
    w[~mask], student[~mask] = torch.nan, torch.inf
    torch.testing.assert_close(ld_loss(student, teacher, w, mask=mask), expected)


def test_weights_are_constants() -> None:
    student, teacher = edges(7)
    w = weights(7).requires_grad_()
    ld_loss(student.requires_grad_(), teacher, w).backward()
    assert w.grad is None


def test_a_constant_on_an_edge_changes_nothing_a_shift_of_bins_does() -> None:
    student, teacher = edges(8)
    expected = ld_loss(student, teacher)
    shift = torch.linspace(-9, 9, 20, dtype=torch.float64).reshape(5, 4, 1)
    torch.testing.assert_close(ld_loss(student + shift, teacher), expected)
    assert not torch.isclose(ld_loss(student.roll(1, dims=2), teacher), expected, rtol=1e-3)
    turned = (x[:, [1, 3, 0, 2]] for x in (student, teacher))
    torch.testing.assert_close(ld_loss(*turned), expected)


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_class_term(tau: float) -> None:
    student, teacher = logits(9, 5, (8,))
    expected = kd(student.tolist(), teacher.tolist(), tau) / 8
    assert golden.close(ld_class_loss(student, teacher, temperature=tau), expected)
    if tau == 2:
        assert golden.close(ld_class_loss(student, teacher), expected)


def test_refusals() -> None:
    student, teacher = edges(10)
    with pytest.raises(ShapeError, match=r"reshape \(locations, 4 · bins\)"):
        ld_loss(student.flatten(1), teacher.flatten(1))
    with pytest.raises(ShapeError, match=r"location_weights \(4,\) must be .* \(5,\)"):
        ld_loss(student, teacher, weights(0, 4))
    with pytest.raises(ValueError, match="location_weights must be floating point"):
        ld_loss(student, teacher, torch.ones(5, dtype=torch.long))
    with pytest.raises(ValueError, match="normalize must be one of 'weights', 'locations'"):
        LDLoss(normalize="none")  # type: ignore[arg-type]
