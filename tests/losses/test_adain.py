"""AdaIN-KD: statistics, the re-styled map, and what the rest of a teacher says to it."""

import math

import pytest
import torch
import torch.nn.functional as F
from tests.losses import golden, oracles
from torch import Tensor

from congener.errors import ShapeError
from congener.losses import (
    AdaINLoss,
    AdaINStatisticsLoss,
    adain,
    adain_loss,
    adain_statistics_loss,
    channel_statistics,
)

MASK = torch.tensor([True, False, True])


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def wave(shape: tuple[int, ...], phase: float) -> Tensor:
    return golden.wave((1, math.prod(shape)), phase).reshape(shape)


def maps() -> tuple[Tensor, Tensor]:
    """A student's and a teacher's map of 4 channels, whose sizes and spreads differ."""
    return 2 * random(3, 4, 3, 2) + 0.5, random(3, 4, 4, 5, seed=1) - 1


def statistics(values: list[float], eps: float, unbiased: bool) -> tuple[float, float]:
    mean = sum(values) / len(values)
    freedom = len(values) - 1 if unbiased and len(values) > 1 else len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / freedom + eps)


def statistics_loss(student: Tensor, teacher: Tensor, eps: float, unbiased: bool) -> float:
    errors = []
    for own, known in zip(student.flatten(2), teacher.flatten(2), strict=True):
        for a, b in zip(own.tolist(), known.tolist(), strict=True):
            (m, s), (mean, deviation) = (statistics(x, eps, unbiased) for x in (a, b))
            errors.append((m - mean) ** 2 + (s - deviation) ** 2)
    return sum(errors) / len(errors)


def test_golden_values() -> None:
    restyled = adain(0.5 * wave((2, 3, 2, 2), 1.3) + 0.25, wave((2, 3, 4, 4), 0.4))
    assert golden.close(restyled.sum(), 26.4196671497, 1e-9)
    assert golden.close(restyled.square().sum(), 22.2053118519, 1e-9)
    assert golden.close(restyled[1, 2, 3, 3], -0.2301265840, 1e-9)


@pytest.mark.parametrize("eps", [1e-5, 0.5])
@pytest.mark.parametrize("unbiased", [True, False])
def test_oracle(eps: float, unbiased: bool) -> None:
    student, teacher = maps()
    value = adain_statistics_loss(student, teacher, eps=eps, unbiased=unbiased)
    assert golden.close(value, statistics_loss(student, teacher, eps, unbiased))
    restyled = adain(student, teacher, eps=eps, unbiased=unbiased)
    for i in range(3):
        for c in range(4):
            own, known = student[i, c].flatten().tolist(), teacher[i, c].flatten().tolist()
            (m, s), (mean, deviation) = (statistics(x, eps, unbiased) for x in (own, known))
            expected = [(x - mean) / deviation * s + m for x in known]
            found = restyled[i, c].flatten()
            assert all(golden.close(a, b) for a, b in zip(found, expected, strict=True))


def test_own_statistics_change_nothing() -> None:
    _, teacher = maps()
    torch.testing.assert_close(adain(teacher, teacher), teacher)
    torch.testing.assert_close(adain(teacher.flip(3), teacher), teacher)


def test_what_a_restyled_map_has() -> None:
    """The student's mean, and the student's variance but for eps."""
    student, teacher = maps()
    eps = 0.1
    mean, variance = (f(adain(student, teacher, eps=eps)) for f in (means, variances))
    torch.testing.assert_close(mean, means(student))
    known = variances(teacher)
    torch.testing.assert_close(variance, known / (known + eps) * (variances(student) + eps))


def means(feature: Tensor) -> Tensor:
    return feature.mean(dim=(2, 3))


def variances(feature: Tensor) -> Tensor:
    return feature.var(dim=(2, 3), correction=1)


def test_it_is_affine_in_each_channel_of_the_teacher() -> None:
    student, teacher = maps()
    (m_s, s_s), (m_t, s_t) = channel_statistics(student), channel_statistics(teacher)
    scale = (s_s / s_t)[..., None, None]
    shift = m_s[..., None, None] - m_t[..., None, None] * scale
    torch.testing.assert_close(adain(student, teacher), scale * teacher + shift)


def test_only_statistics_of_the_student_count() -> None:
    student, teacher = maps()
    moved = student.flatten(2)[..., torch.tensor([3, 1, 5, 0, 4, 2])].reshape(student.shape)
    torch.testing.assert_close(adain(moved, teacher), adain(student, teacher))
    torch.testing.assert_close(
        adain_statistics_loss(moved, teacher), adain_statistics_loss(student, teacher)
    )
    within = student[:, :, :2]
    assert not torch.allclose(adain(within, teacher), adain(student, teacher), rtol=1e-3)


def tail(feature: Tensor, *, convolution: bool) -> Tensor:
    """The rest of a teacher."""
    if convolution:
        feature = F.conv2d(feature, random(4, 4, 3, 3, seed=5), padding=1).relu()
    return feature.mean(dim=(2, 3)) @ random(4, 6, seed=6)


def gradient(*, convolution: bool) -> Tensor:
    student, teacher = maps()
    student.requires_grad_()
    outputs = (tail(x, convolution=convolution) for x in (adain(student, teacher), teacher))
    (found,) = torch.autograd.grad(adain_loss(*outputs), student)
    return found


def test_behind_the_last_map_only_the_mean_has_an_effect() -> None:
    flat, uneven = (gradient(convolution=convolution).flatten(2) for convolution in (False, True))
    assert flat.std(dim=2).max() < 1e-12 < 1e-5 < flat.abs().max()
    assert uneven.std(dim=2).min() > 1e-7
    student, teacher = maps()
    restyled = tail(adain(student, teacher), convolution=False)
    torch.testing.assert_close(restyled, means(student) @ random(4, 6, seed=6))


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = (x.requires_grad_() for x in maps())
    adain(student, teacher).square().sum().backward()
    assert student.grad is not None
    assert student.grad.any()
    assert teacher.grad is None


def test_samples_do_not_meet() -> None:
    student, teacher = maps()
    restyled = adain(student, teacher)
    rows = adain_statistics_loss(student, teacher, reduction="none")
    for i in range(3):
        torch.testing.assert_close(adain(student[i : i + 1], teacher[i : i + 1])[0], restyled[i])
        lone = adain_statistics_loss(student[i : i + 1], teacher[i : i + 1])
        torch.testing.assert_close(rows[i], lone)


@pytest.mark.parametrize("unbiased", [True, False])
def test_one_position_has_no_variance(unbiased: bool) -> None:
    student, teacher = random(2, 3, 1, 1).requires_grad_(), random(2, 3, seed=1)
    value = adain_statistics_loss(student, teacher, unbiased=unbiased)
    torch.testing.assert_close(value, F.mse_loss(student.flatten(1), teacher))
    restyled = adain(student, teacher, unbiased=unbiased)
    torch.testing.assert_close(restyled, student.flatten(1))
    (found,) = torch.autograd.grad(value + restyled.sum(), student)
    assert found.isfinite().all()
    assert channel_statistics(teacher, eps=0.25)[1].eq(0.5).all()


def test_a_dead_channel_becomes_the_students_mean() -> None:
    student, teacher = maps()
    teacher[:, 1] = 0
    student.requires_grad_()
    restyled = adain(student, teacher)[:, 1]
    torch.testing.assert_close(restyled, means(student)[:, 1, None, None].expand(3, 4, 5))
    (found,) = torch.autograd.grad(restyled.square().sum(), student)
    assert found[:, 1].std(dim=(1, 2)).max() < 1e-12
    constant = torch.full((3, 4, 2, 2), 7.0, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(adain(constant, teacher).square().sum(), constant)
    assert found.isfinite().all()


def test_masked_maps_become_zero_whatever_they_hold() -> None:
    student, teacher = maps()
    expected = adain(student[MASK], teacher[MASK])
    student[~MASK], teacher[~MASK] = torch.nan, torch.inf
    student.requires_grad_()
    restyled = adain(student, teacher, mask=MASK)
    torch.testing.assert_close(restyled[MASK], expected)
    assert not restyled[~MASK].any()
    (found,) = torch.autograd.grad(restyled.square().sum(), student)
    assert not found[~MASK].any()


def test_statistics_at_a_large_mean_in_float32() -> None:
    """Squares minus the square of the mean would leave nothing of a variance of 1."""
    feature = torch.tensor([-1.0, 1.0, -1.0, 1.0]).reshape(1, 1, 4) + 1e4
    mean, deviation = channel_statistics(feature, unbiased=False, eps=1e-12)
    assert (mean.item(), deviation.item()) == (1e4, 1.0)
    assert channel_statistics(feature.half())[0].dtype == torch.float32


def test_distances() -> None:
    restyled, teacher = random(3, 5), 2 * random(3, 5, seed=1)
    labels = torch.tensor([4, 0, 2])
    rows = restyled.tolist(), teacher.tolist()
    assert golden.close(adain_loss(restyled, teacher), oracles.kd(*rows, 4.0))
    assert golden.close(adain_loss(restyled, teacher, temperature=1.5), oracles.kd(*rows, 1.5))
    squares = [(a - b) ** 2 for u, v in zip(*rows, strict=True) for a, b in zip(u, v, strict=True)]
    value = adain_loss(restyled, teacher, distance="mse_logits")
    assert golden.close(value, sum(squares) / len(squares))
    surprise = [-math.log(oracles.softmax(z)[k]) for z, k in zip(rows[0], [4, 0, 2], strict=True)]
    value = adain_loss(restyled, teacher, labels, distance="ce")
    assert golden.close(value, sum(surprise) / 3)
    assert golden.close(AdaINLoss("ce")(restyled, teacher, labels), sum(surprise) / 3)


def test_labels_of_masked_samples_may_be_anything() -> None:
    restyled, teacher = random(3, 5), random(3, 5, seed=1)
    labels = torch.tensor([4, 99, 2])
    value = adain_loss(restyled, teacher, labels, distance="ce", mask=MASK)
    expected = adain_loss(restyled[MASK], teacher[MASK], labels[MASK], distance="ce")
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("eps", [0.0, -1e-5, math.nan, math.inf])
def test_eps_must_be_positive(eps: float) -> None:
    student, teacher = maps()
    for call in (adain, adain_statistics_loss):
        with pytest.raises(ValueError, match="eps must be positive"):
            call(student, teacher, eps=eps)
    with pytest.raises(ValueError, match="eps must be positive"):
        AdaINStatisticsLoss(eps)


def test_errors() -> None:
    student, teacher = maps()
    with pytest.raises(ShapeError, match=r"\(3, 4, 3, 2\).*\(3, 2, 4, 5\) must have as many"):
        adain(student, teacher[:, 2:])
    with pytest.raises(ValueError, match="feature must be floating point"):
        channel_statistics(student.long())
    with pytest.raises(ShapeError, match=r"feature \(4,\) .* 2 to 5 axes"):
        channel_statistics(random(4))
    with pytest.raises(ShapeError, match=r"restyled_logits \(3, 5\) .* \(3, 4\)"):
        adain_loss(random(3, 5), random(3, 4))
    with pytest.raises(ValueError, match="'ce' compares with the labels"):
        adain_loss(random(3, 5), random(3, 5), distance="ce")
    with pytest.raises(ValueError, match=r"labels must lie in 0…4, not 5"):
        adain_loss(random(3, 5), random(3, 5), torch.tensor([0, 5, 1]), distance="ce")
    for call in (AdaINLoss, lambda word: adain_loss(random(3, 5), random(3, 5), distance=word)):
        with pytest.raises(ValueError, match="distance must be one of"):
            call("l2")
