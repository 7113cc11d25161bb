"""CSKD, its weighted temperatures and the parts of its published trainer."""

import pytest
import torch
from tests.losses import golden, oracles
from torch import Tensor

from congener.conformance.table.case import logits
from congener.errors import ShapeError
from congener.losses import (
    CSKDLoss,
    cskd_batch_loss,
    cskd_class_loss,
    cskd_loss,
    cswt_loss,
    cswt_temperatures,
)
from congener.ops.collectives import lone_sample_expected


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("shape", [(2, 2), (3, 6), (8, 4)])
def test_oracle(temperature: float, shape: tuple[int, int]) -> None:
    student, teacher = logits(0, shape[0], shape[1:])
    lists = (student.tolist(), teacher.tolist())
    fixed = [temperature] * shape[0]
    assert golden.close(
        cskd_loss(student, teacher, temperature=temperature, alpha=1.5),
        oracles.cskd(*lists, fixed, alpha=1.5),
        1e-11,
    )
    assert golden.close(
        cskd_class_loss(student, teacher, temperature=temperature),
        oracles.class_correlation(*lists, temperature),
    )
    assert golden.close(
        cskd_batch_loss(student, teacher, temperature=temperature),
        oracles.batch_correlation(*lists, temperature),
    )
    temperatures = oracles.cswt_temperatures(*lists)
    torch.testing.assert_close(
        cswt_temperatures(student, teacher), torch.tensor(temperatures, dtype=torch.float64)
    )
    assert golden.close(cswt_loss(student, teacher), oracles.cskd(*lists, temperatures), 1e-11)


def test_golden_values() -> None:
    student, teacher = golden.logits()
    assert golden.close(cskd_loss(student, teacher), 3.643153644434136)
    assert golden.close(cskd_loss(student, teacher, temperature=1.0), 0.8729248678194934)
    assert golden.close(cswt_loss(student, teacher), 3.475931902697612)
    expected = torch.tensor([2.76910326, 5.77235104, 2.0, 6.0], dtype=torch.float64)
    torch.testing.assert_close(cswt_temperatures(student, teacher), expected, rtol=0, atol=5e-9)
    assert golden.close(cskd_class_loss(student, teacher), 0.04050192524626972)
    assert golden.close(cskd_batch_loss(student, teacher), 0.018748487266378788)
    assert golden.close(CSKDLoss()(student, teacher), 3.643153644434136 + 3.475931902697612)
    assert golden.close(CSKDLoss(cswt=False)(student, teacher), 3.643153644434136)


def test_contributions_to_the_batch_correlation_are_those_of_its_rows() -> None:
    student, teacher = logits(13)
    p_s, p_t = ((z / 4).softmax(dim=1) for z in (student, teacher))
    expected = 1 - torch.cosine_similarity(p_s @ p_s.T, p_t @ p_t.T, dim=1)
    rows = cskd_batch_loss(student, teacher, reduction="none")
    torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-6)


def test_one_temperature_for_all_is_a_number() -> None:
    student, teacher = logits(1)
    same = torch.full((7,), 3.0, dtype=torch.float64)
    torch.testing.assert_close(
        cskd_loss(student, teacher, temperature=same), cskd_loss(student, teacher, temperature=3.0)
    )
    torch.testing.assert_close(
        cswt_loss(student, teacher, low_temperature=3.0, high_temperature=3.0),
        cskd_loss(student, teacher, temperature=3.0),
    )


def test_factor_is_the_square_of_the_mean_temperature() -> None:
    student, teacher = logits(2)
    temperature = torch.linspace(1, 5, 7, dtype=torch.float64)
    # Logits that already carry the temperature leave nothing but the factor.
    softened = [z / temperature.unsqueeze(1) for z in (student, teacher)]
    torch.testing.assert_close(
        cskd_loss(student, teacher, temperature=temperature),
        temperature.mean() ** 2 * cskd_loss(*softened, temperature=1.0),
    )


def test_length_of_a_class_column_is_free() -> None:
    """Scale columns of probabilities and keep the rows sums: logits that differ, no loss."""
    generator = torch.Generator().manual_seed(3)
    teacher = torch.rand(3, 5, generator=generator, dtype=torch.float64) + 0.1
    teacher = teacher / teacher.sum(dim=1, keepdim=True)
    # P (d − 1) = 0 has solutions while samples are fewer than classes.
    null = torch.linalg.svd(teacher).Vh[-1]
    student = teacher * (1 + 0.9 * null / null.abs().max())
    torch.testing.assert_close(student.sum(dim=1), torch.ones(3, dtype=torch.float64))
    assert (student - teacher).abs().max() > 0.02
    loss = cskd_loss(student.log(), teacher.log(), temperature=1.0)
    assert loss < 1e-6
    assert cskd_loss(student.log().flip(0), teacher.log(), temperature=1.0) > 1e-3


def test_shift_of_a_samples_logits_and_order_of_classes_change_nothing() -> None:
    student, teacher = logits(4)
    shift = torch.arange(7.0, dtype=torch.float64).unsqueeze(1)
    order = torch.tensor([2, 0, 4, 1, 3])
    for loss in (cskd_loss, cswt_loss, cskd_class_loss, cskd_batch_loss, CSKDLoss()):
        expected = loss(student, teacher)
        torch.testing.assert_close(loss(student + shift, teacher - shift), expected)
        torch.testing.assert_close(loss(student[:, order], teacher[:, order]), expected)
        moved = torch.isclose(loss(student[:, order], teacher), expected, rtol=1e-3)
        assert moved == (loss is cskd_batch_loss)  # which compares samples, not classes


def test_bounds() -> None:
    for seed in range(5):
        student, teacher = logits(seed)
        for temperature in (0.3, 1.0, 4.0):
            loss = cskd_loss(20 * student, 20 * teacher, temperature=temperature, alpha=2.0)
            assert 0 <= loss <= 2.0 * temperature**2


def test_limit_of_a_high_temperature() -> None:
    """L_CS tends to α/2 · mean over classes of the batch variance of centred logit differences."""
    student, teacher = logits(5)
    student, teacher = (z - z.mean(dim=1, keepdim=True) for z in (student, teacher))
    limit = (student - teacher).var(dim=0, correction=0).mean().item()
    # At T = 100 the added 1e-8 still weighs about 2 T² 1e-8 · C² / B: 7e-6.
    assert cskd_loss(student, teacher, temperature=100.0).item() == pytest.approx(limit, rel=0.05)
    assert cskd_loss(student, teacher, temperature=300.0).item() == pytest.approx(limit, rel=0.02)


def test_temperatures_span_the_range_and_fall_with_agreement() -> None:
    student, teacher = logits(6, batch=20)
    temperatures = cswt_temperatures(student, teacher, low_temperature=1.5, high_temperature=9.0)
    assert temperatures.min() == 1.5
    assert temperatures.max() == 9.0
    agreement = torch.cosine_similarity(student.softmax(dim=1), teacher.softmax(dim=1), dim=1)
    assert (temperatures[agreement.argsort()].diff() <= 0).all()


def test_temperatures_carry_no_gradient() -> None:
    student, teacher = logits(7)
    student.requires_grad_()
    assert not cswt_temperatures(student, teacher).requires_grad
    temperature = torch.linspace(1, 5, 7, dtype=torch.float64, requires_grad=True)
    loss = cskd_loss(student, teacher, temperature=temperature)
    loss.backward()
    assert temperature.grad is None


@pytest.mark.parametrize("batch", [1, 4])
@lone_sample_expected()
def test_equal_agreement_gets_the_low_temperature(batch: int) -> None:
    student, teacher = (z.expand(batch, -1) for z in logits(8, 1))
    assert (cswt_temperatures(student, teacher) == 2).all()
    assert (cswt_temperatures(student.float(), teacher.float()) == 2).all()
    own = student.clone().requires_grad_()
    cswt_loss(own, teacher).backward()
    assert own.grad is not None
    assert own.grad.isfinite().all()


def test_masked_samples_do_not_set_the_range() -> None:
    student, teacher = logits(9)
    mask = torch.ones(7, dtype=torch.bool)
    temperatures = cswt_temperatures(student, teacher)
    mask[temperatures.argmax()] = False
    masked = cswt_temperatures(student, teacher, mask=mask)
    torch.testing.assert_close(masked[mask], cswt_temperatures(student[mask], teacher[mask]))
    assert masked.isfinite().all()
    assert masked.max() == 6
    assert masked.min() == 2


def test_temperature_of_the_wrong_shape_is_told() -> None:
    student, teacher = logits(10)
    for loss in (cskd_loss, cskd_class_loss, cskd_batch_loss):
        with pytest.raises(ShapeError, match=r"temperature \(5,\) .* student_logits \(7, 5\)"):
            loss(student, teacher, temperature=torch.ones(5))
        with pytest.raises(ValueError, match="temperature must be floating point"):
            loss(student, teacher, temperature=torch.ones(7, dtype=torch.int64))


def test_range_of_temperatures_the_wrong_way_round_is_told() -> None:
    student, teacher = logits(10)
    for call in (cswt_loss, cswt_temperatures):
        with pytest.raises(ValueError, match=r"low_temperature 6\.0 must not exceed"):
            call(student, teacher, low_temperature=6.0, high_temperature=2.0)
    with pytest.raises(ValueError, match=r"low_temperature 6\.0 must not exceed"):
        CSKDLoss(low_temperature=6.0, high_temperature=2.0)


def test_two_views_share_the_weak_views_temperatures() -> None:
    weak, strong = logits(11), logits(12)
    temperature: Tensor = cswt_temperatures(*weak)
    shared = cskd_loss(*strong, temperature=temperature)
    assert not torch.isclose(shared, cswt_loss(*strong), rtol=1e-3)
