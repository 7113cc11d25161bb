"""NST: what it is, its two forms, and what leaves it unchanged."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.losses import golden, map_oracles
from tests.losses.oracles import dot, norm
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from congener.errors import ShapeError
from congener.losses import NSTLoss, nst_loss

FEW_PLACES = [((3, 2, 2), (3, 2, 2)), ((5, 2, 1), (4, 2, 1)), ((6, 3, 4), (4, 2, 6))]
MANY_PLACES = [((3, 4, 4), (3, 4, 4)), ((1, 5, 3), (2, 5, 3)), ((3, 6, 4), (2, 4, 8))]


def maps(seed: int, *shapes: Sequence[int], batch: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, *s, generator=generator, dtype=torch.float64) for s in shapes]


def oracle(student: Tensor, teacher: Tensor) -> float:
    def patterns(sample: list, size: tuple[int, int]) -> list[list[float]]:
        planes = map_oracles.channels(sample, *size)
        return [[x / (norm(plane) or 1.0) for x in plane] for plane in planes]

    def kernel(xs: list[list[float]], ys: list[list[float]]) -> float:
        return map_oracles.mean([dot(x, y) ** 2 for x in xs for y in ys])

    values = []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        size = map_oracles.smaller(s, t)
        x, y = patterns(s, size), patterns(t, size)
        values.append(kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
    return map_oracles.mean(values)


@pytest.mark.parametrize("shapes", FEW_PLACES + MANY_PLACES)
def test_oracle(shapes) -> None:
    student, teacher = maps(0, *shapes)
    student[1, 0], teacher[2] = 0, 0  # a silent channel, and a silent map
    assert golden.close(NSTLoss()(student, teacher), oracle(student, teacher))


def test_a_number_by_hand() -> None:
    """Two channels at right angles against one between them: 1/2 + 1 - 2 · 1/2."""
    student = torch.eye(2, dtype=torch.float64).reshape(1, 2, 1, 2)
    teacher = torch.ones(1, 1, 1, 2, dtype=torch.float64)
    assert golden.close(nst_loss(student, teacher), 0.5)


@pytest.mark.parametrize("places", [(4, 4), (7, 3)])
def test_both_forms_give_one_value_and_gradient(places) -> None:
    """Channels twenty times over change no mean over channels, but the form that is cheaper."""
    student, teacher = maps(1, (3, *places), (2, *places))
    student.requires_grad_()
    once = nst_loss(student, teacher)
    often = nst_loss(student.repeat(1, 20, 1, 1), teacher.repeat(1, 20, 1, 1))
    torch.testing.assert_close(often, once, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (once, often)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("shapes", [FEW_PLACES[1], MANY_PLACES[1]])
def test_order_sign_and_scale_of_channels_change_nothing(shapes) -> None:
    student, teacher = maps(2, *shapes)
    expected = nst_loss(student, teacher)
    torch.testing.assert_close(nst_loss(student.flip(1), teacher), expected)
    scales = torch.linspace(-3, 2.5, student.shape[1], dtype=torch.float64).reshape(-1, 1, 1)
    torch.testing.assert_close(nst_loss(scales * student, teacher), expected)
    torch.testing.assert_close(nst_loss(student.flip(2), teacher.flip(2)), expected)
    assert not torch.isclose(nst_loss(student.flip(2), teacher), expected, rtol=1e-3)


@pytest.mark.parametrize("shape", [(6, 2, 2), (3, 4, 4)])
def test_it_is_zero_for_the_same_channels_in_any_order(shape) -> None:
    (teacher,) = maps(3, shape)
    student = teacher.flip(1).requires_grad_()
    loss = nst_loss(student, teacher)
    assert abs(loss.item()) < 1e-15
    assert torch.autograd.grad(loss, student)[0].abs().max() < 1e-15
    twice = nst_loss(teacher.repeat(1, 2, 1, 1), teacher)
    assert abs(twice.item()) < 1e-15


def test_it_is_never_negative() -> None:
    for seed in range(5):
        for shapes in FEW_PLACES + MANY_PLACES:
            student, teacher = maps(seed, *shapes)
            assert (nst_loss(student, teacher, reduction="none") >= 0).all()


@pytest.mark.parametrize("shape", [(64, 4, 4), (8, 16, 16)])
def test_float32_near_the_match(shape) -> None:
    """The gradient is right where the value has all but cancelled."""
    teacher, noise = (x.float() for x in maps(4, shape, shape))
    student = (teacher + 1e-3 * noise).requires_grad_()
    loss = nst_loss(student, teacher)
    (gradient,) = torch.autograd.grad(loss, student)
    exact = student.detach().double().requires_grad_()
    exact_loss = nst_loss(exact, teacher.double())
    (exact_gradient,) = torch.autograd.grad(exact_loss, exact)
    assert abs(loss.item() - exact_loss.item()) < 1e-7
    error = (gradient - exact_gradient).norm() / exact_gradient.norm()
    assert error < 1e-3
    if shape[0] == 64:  # compared as places: nothing cancels
        assert abs(loss.item() / exact_loss.item() - 1) < 1e-3
    equal = teacher.clone().requires_grad_()
    same = nst_loss(equal, teacher)
    assert abs(same.item()) < 1e-7
    assert torch.autograd.grad(same, equal)[0].abs().max() < 1e-7


@pytest.mark.parametrize("shape", [(8, 2, 2), (3, 4, 4)])
def test_a_channel_whose_norm_overflows_is_silent(shape) -> None:
    student, teacher = (x.float() for x in maps(7, shape, shape))
    silent = student.clone()
    student[0, 1], student[2, :2], silent[0, 1], silent[2, :2] = 1e25, -1e25, 0, 0
    gradients = []
    for x in (student, silent):
        loss = nst_loss(x.requires_grad_(), teacher)
        gradients.append(torch.autograd.grad(loss, x)[0])
        torch.testing.assert_close(loss, nst_loss(silent, teacher))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("shapes", [FEW_PLACES[1], MANY_PLACES[1]])
def test_a_faint_channel_counts_like_any_other(shapes) -> None:
    student, teacher = maps(9, *shapes)
    faint = student.clone()
    faint[:, 0] *= 1e-9
    torch.testing.assert_close(nst_loss(faint, teacher), nst_loss(student, teacher))


@pytest.mark.parametrize("shapes", [FEW_PLACES[1], MANY_PLACES[1]])
def test_second_derivatives_and_functional_gradients(shapes) -> None:
    student, teacher = maps(8, *shapes, batch=2)
    assert torch.autograd.gradcheck(
        lambda x: nst_loss(x, teacher), student.requires_grad_(), rtol=1e-6, atol=1e-10
    )
    assert torch.autograd.gradgradcheck(lambda x: nst_loss(x, teacher), student)
    (expected,) = torch.autograd.grad(nst_loss(student, teacher), student)
    student = student.detach()
    torch.testing.assert_close(torch.func.grad(nst_loss)(student, teacher), expected)
    each = torch.func.vmap(torch.func.grad(nst_loss))(student.unsqueeze(1), teacher.unsqueeze(1))
    torch.testing.assert_close(each.squeeze(1) / 2, expected)


class _LargestTensor(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor):
                self.numel = max(self.numel, x.numel())
        return out


@pytest.mark.parametrize("shape", [(64, 4, 4), (16, 16, 16)])
def test_no_tensor_has_channels_squared_and_places(shape) -> None:
    student, teacher = (x.float().requires_grad_() for x in maps(5, shape, shape, batch=2))
    with _LargestTensor() as largest:
        nst_loss(student, teacher).backward()
    assert largest.numel <= 2 * 16 * 16 * 16


def test_errors() -> None:
    student, teacher = maps(6, (3, 2, 2), (3, 2, 2))
    with pytest.raises(ShapeError, match=r"\(4, 12\) .* must be maps"):
        nst_loss(student.flatten(1), teacher)
