"""CWD: each channel's distribution over the places."""

from math import exp, inf, log

import pytest
import torch
from tests.losses import golden
from torch import Tensor

from congener.conformance.table.case import logits
from congener.errors import ShapeError
from congener.losses import CWDLoss, cwd_loss, kd_loss


def divergence(student: list[float], teacher: list[float], tau: float) -> float:
    def log_softmax(row: list[float]) -> list[float]:
        top = max(row) / tau
        total = sum(exp(z / tau - top) for z in row)
        return [z / tau - top - log(total) for z in row]

    pairs = zip(log_softmax(student), log_softmax(teacher), strict=True)
    return sum(exp(t) * (t - s) for s, t in pairs)


def oracle(student: Tensor, teacher: Tensor, tau: float, normalize: str) -> float:
    images, channels, height, width = student.shape
    places = [(i, j) for i in range(height) for j in range(width)]
    total, count = 0.0, 0
    for n in range(images):
        if normalize == "channel":
            for c in range(channels):
                rows = [[float(x[n, c, i, j]) for i, j in places] for x in (student, teacher)]
                total, count = total + divergence(*rows, tau), count + 1
        else:
            for i, j in places:
                rows = [[float(x[n, c, i, j]) for c in range(channels)] for x in (student, teacher)]
                total, count = total + divergence(*rows, tau), count + 1
    return tau * tau * total / count


def maps(seed: int, batch: int = 3) -> tuple[Tensor, Tensor]:
    return logits(seed, batch, (4, 3, 5))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("normalize", ["channel", "spatial"])
def test_oracle(batch: int, tau: float, normalize: str) -> None:
    student, teacher = maps(0, batch)
    expected = oracle(student, teacher, tau, normalize)
    assert golden.close(cwd_loss(student, teacher, temperature=tau, normalize=normalize), expected)  # type: ignore[arg-type]
    assert golden.close(CWDLoss(tau, normalize)(student, teacher), expected)  # type: ignore[arg-type]


def test_it_is_not_symmetric_and_its_default_is_four() -> None:
    student, teacher = maps(1)
    assert golden.close(cwd_loss(student, teacher), oracle(student, teacher, 4.0, "channel"))
    assert not torch.isclose(cwd_loss(teacher, student), cwd_loss(student, teacher), rtol=1e-3)


def test_a_constant_on_a_channel_changes_nothing_a_factor_does() -> None:
    student, teacher = maps(2)
    expected = cwd_loss(student, teacher)
    shift = torch.linspace(-30, 30, 4, dtype=torch.float64).reshape(1, 4, 1, 1)
    torch.testing.assert_close(cwd_loss(student + shift, teacher), expected)
    torch.testing.assert_close(cwd_loss(student, teacher - shift), expected)
    assert not torch.isclose(cwd_loss(1.1 * student, teacher), expected, rtol=1e-3)
    spatial = cwd_loss(student, teacher, normalize="spatial")
    assert not torch.isclose(
        cwd_loss(student + shift, teacher, normalize="spatial"), spatial, rtol=1e-3
    )
    shift = torch.linspace(-30, 30, 15, dtype=torch.float64).reshape(1, 1, 3, 5)
    torch.testing.assert_close(cwd_loss(student + shift, teacher, normalize="spatial"), spatial)


def test_a_single_place_tells_nothing() -> None:
    student, teacher = logits(3, 4, (6, 1, 1))
    student.requires_grad_()
    loss = cwd_loss(student, teacher)
    loss.backward()
    assert loss == 0
    assert student.grad is not None
    assert (student.grad == 0).all()
    pooled = kd_loss(student[:, :, 0, 0], teacher[:, :, 0, 0])
    torch.testing.assert_close(cwd_loss(student, teacher, normalize="spatial"), pooled)


def test_a_channel_is_a_row_of_kd() -> None:
    student, teacher = maps(4)
    rows = [x.flatten(2).flatten(0, 1) for x in (student, teacher)]
    torch.testing.assert_close(cwd_loss(student, teacher), kd_loss(*rows))


def test_places_and_channels_may_be_reordered_in_both() -> None:
    student, teacher = maps(5)
    expected = cwd_loss(student, teacher)
    turned = [x.flip(1).transpose(2, 3) for x in (student, teacher)]
    torch.testing.assert_close(cwd_loss(*turned), expected)
    assert not torch.isclose(cwd_loss(student.flip(3), teacher), expected, rtol=1e-3)


def test_underflow_is_exact_where_the_logarithm_of_a_softmax_is_infinite() -> None:
    teacher = torch.tensor([[[[0.0, -800.0]]]])
    student = torch.tensor([[[[-800.0, 0.0]]]], requires_grad=True)
    assert student.softmax(dim=3).log().min() == -inf
    loss = cwd_loss(student, teacher, temperature=1.0)
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(800.0))
    assert student.grad is not None
    torch.testing.assert_close(student.grad.flatten(), torch.tensor([-1.0, 1.0]))


def test_at_high_temperature_it_is_the_squared_error_of_centred_channels() -> None:
    """τ² KL → half the variance over the places of the difference, as τ → ∞."""
    student, teacher = maps(6)
    gap = (student - teacher).flatten(2)
    limit = gap.var(dim=2, unbiased=False).mean() / 2
    torch.testing.assert_close(
        cwd_loss(student, teacher, temperature=1e4), limit, rtol=1e-3, atol=0
    )


def test_refusals() -> None:
    student, teacher = maps(7)
    with pytest.raises(ShapeError, match=r"\(3, 4, 3, 5\).*\(3, 4, 3, 4\).*resize"):
        cwd_loss(student, teacher[..., :4])
    with pytest.raises(ShapeError, match="height, width"):
        cwd_loss(student.flatten(2), teacher.flatten(2))
    with pytest.raises(ValueError, match="normalize must be one of 'channel', 'spatial'"):
        cwd_loss(student, teacher, normalize="pixel")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature must be positive"):
        CWDLoss(0.0)
