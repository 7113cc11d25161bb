"""The divergence of backward-pass distillation: what it is, and what climbing it does."""

from math import log
from typing import Any, Literal

import pytest
import torch
from tests.losses import golden, oracles
from torch import Tensor, nn

from congener.conformance.table.case import logits
from congener.errors import ShapeError
from congener.losses import backward_divergence

Divergence = Literal["l2_logits", "l2_prob", "kl"]
each_divergence = pytest.mark.parametrize("divergence", ["l2_logits", "l2_prob", "kl"])


def linear_networks() -> tuple[Tensor, Tensor, Tensor]:
    """W_S, W_T and x of the golden values."""
    return golden.wave((3, 5), 0.2), golden.wave((3, 5), 0.6), golden.wave((2, 5), 0.8)


def networks(seed: int = 0) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(seed)
    student, teacher = (
        nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3)).double().eval()
        for width in (5, 8)
    )
    return student, teacher


def inputs(seed: int = 0, batch: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 4, generator=generator, dtype=torch.float64)


def climb(student: Any, teacher: Any, x: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """D of each sample, and the gradient with respect to the samples."""
    x = x.detach().requires_grad_()
    each = backward_divergence(student(x), teacher(x), reduction="none", **options)
    total = backward_divergence(student(x), teacher(x), **options)
    (gradient,) = torch.autograd.grad(total, x)
    return each.detach(), gradient


@each_divergence
def test_oracle(divergence: Divergence) -> None:
    student, teacher = logits(0)
    expected = []
    for z_s, z_t in zip(student.tolist(), teacher.tolist(), strict=True):
        p_s, p_t = oracles.softmax(z_s), oracles.softmax(z_t)
        if divergence == "kl":
            expected.append(sum(b * log(b / a) for a, b in zip(p_s, p_t, strict=True)))
        else:
            pair = (z_s, z_t) if divergence == "l2_logits" else (p_s, p_t)
            expected.append(sum((a - b) ** 2 for a, b in zip(*pair, strict=True)))
    each = backward_divergence(student, teacher, divergence=divergence, reduction="none")
    torch.testing.assert_close(each, torch.tensor(expected, dtype=torch.float64))
    assert golden.close(backward_divergence(student, teacher, divergence=divergence), sum(expected))


def test_golden_values() -> None:
    w_s, w_t, x = linear_networks()
    each, gradient = climb(lambda x: x @ w_s.T, lambda x: x @ w_t.T, x)
    assert golden.close(each[0], 2.0232077738, 1e-9)
    assert golden.close(each[1], 0.9601361438, 1e-9)
    assert golden.close(gradient.norm(), 2.8263345407, 1e-9)
    each, _ = climb(lambda x: x @ w_s.T, lambda x: x @ w_t.T, x + 0.1 * gradient)
    assert golden.close(each[0], 2.6872386515, 1e-9)
    assert golden.close(each[1], 1.1516473836, 1e-9)


@each_divergence
def test_equal_networks_have_nowhere_to_climb(divergence: Divergence) -> None:
    student, _ = networks()
    each, gradient = climb(student, student, inputs(), divergence=divergence)
    assert each.abs().max() < 1e-15
    assert gradient.abs().max() < 1e-15
    if divergence != "kl":
        assert (gradient == 0).all()


@pytest.mark.parametrize("step", [1e-3, 0.1, 10.0])
def test_of_linear_networks_every_step_climbs(step: float) -> None:
    """∇D = 2 x M with M = (W_S − W_T)ᵀ (W_S − W_T), and D grows for every step length."""
    w_s, w_t, x = linear_networks()
    before, gradient = climb(lambda x: x @ w_s.T, lambda x: x @ w_t.T, x)
    torch.testing.assert_close(gradient, 2 * x @ (w_s - w_t).T @ (w_s - w_t))
    after, _ = climb(lambda x: x @ w_s.T, lambda x: x @ w_t.T, x + step * gradient)
    assert (after > before).all()


@each_divergence
def test_a_small_step_climbs_by_the_squared_gradient(divergence: Divergence) -> None:
    student, teacher = networks()
    before, gradient = climb(student, teacher, inputs(), divergence=divergence)
    errors = []
    for step in (1e-3, 1e-4):
        x = inputs() + step * gradient
        after, _ = climb(student, teacher, x, divergence=divergence)
        assert (after > before).all()
        rise = step * gradient.square().sum(dim=1)
        errors.append(((after - before) / rise - 1).abs().max().item())
    assert errors[1] < 1e-2
    assert errors[1] < 0.2 * errors[0]


def test_no_step_is_plain_distillation() -> None:
    student, teacher = networks()
    before, gradient = climb(student, teacher, inputs())
    after, _ = climb(student, teacher, inputs() + 0.0 * gradient)
    assert torch.equal(before, after)


@each_divergence
def test_a_samples_gradient_is_its_own(divergence: Divergence) -> None:
    """The sum over the batch gives each sample the gradient that it has alone."""
    student, teacher = networks()
    x = inputs(batch=6)
    _, together = climb(student, teacher, x, divergence=divergence)
    for i in range(6):
        _, alone = climb(student, teacher, x[i : i + 1], divergence=divergence)
        torch.testing.assert_close(together[i : i + 1], alone)
    assert together.abs().max() > 1e-3


@each_divergence
def test_the_teacher_is_differentiated_too(divergence: Divergence) -> None:
    student, teacher = (z.requires_grad_() for z in logits(1))
    assert torch.autograd.gradcheck(
        lambda s, t: backward_divergence(s, t, divergence=divergence, reduction="none"),
        (student, teacher),
    )
    backward_divergence(student, teacher, divergence=divergence).backward()
    assert teacher.grad is not None
    assert teacher.grad.abs().max() > 1e-4


def test_a_joint_rotation_of_the_outputs_changes_nothing() -> None:
    student, teacher = logits(2)
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(square)[0]
    torch.testing.assert_close(
        backward_divergence(student @ rotation, teacher @ rotation),
        backward_divergence(student, teacher),
    )


@each_divergence
@pytest.mark.parametrize("value", [0.0, 1e4, -1e4])
def test_extremes_are_finite(divergence: Divergence, value: float) -> None:
    student = torch.zeros(3, 4)
    student[:, 0] = value
    teacher = torch.full((3, 4), value)
    student.requires_grad_()
    teacher.requires_grad_()
    loss = backward_divergence(student, teacher, divergence=divergence)
    loss.backward()
    assert loss.isfinite()
    for side in (student, teacher):
        assert side.grad is not None
        assert side.grad.isfinite().all()


@each_divergence
def test_masked_samples_count_nothing(divergence: Divergence) -> None:
    student, teacher = logits(3)
    mask = torch.tensor([True, False, True, True, False, True, True])
    expected = backward_divergence(student[mask], teacher[mask], divergence=divergence)
    student[~mask], teacher[~mask] = torch.nan, torch.inf
    for side in (student, teacher):
        side.requires_grad_()
    found = backward_divergence(student, teacher, divergence=divergence, mask=mask)
    torch.testing.assert_close(found, expected)
    found.backward()
    for side in (student, teacher):
        assert side.grad is not None
        assert side.grad.isfinite().all()
        assert (side.grad[~mask] == 0).all()


def test_half_precision_is_computed_in_float32() -> None:
    student, teacher = (x.half() for x in logits(4))
    found = backward_divergence(student, teacher)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, backward_divergence(student.float(), teacher.float()))


def test_bad_input_is_told() -> None:
    student, teacher = logits(5)
    with pytest.raises(ValueError, match="divergence must be one of"):
        backward_divergence(student, teacher, divergence="l1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reduction must be one of 'sum', 'none', not 'mean'"):
        backward_divergence(student, teacher, reduction="mean")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="must have one shape"):
        backward_divergence(student, teacher[:, :3])
