"""VID: what it is, its best variance, and its projector."""

import math

import pytest
import torch
from tests.losses import golden, map_oracles
from torch import Tensor

from congener.errors import ShapeError
from congener.losses import VIDLoss, hint_loss, vid_loss


def maps(seed: int, *shapes: tuple[int, ...], batch: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, *s, generator=generator, dtype=torch.float64) for s in shapes]


def scale_of(variances: list[float], eps: float = 1e-5) -> Tensor:
    return torch.tensor([math.log(math.exp(v - eps) - 1) for v in variances], dtype=torch.float64)


def oracle(mean: Tensor, target: Tensor, log_scale: list[float], eps: float) -> float:
    terms = []
    for mu, t in zip(mean.tolist(), target.tolist(), strict=True):
        for c, alpha in enumerate(log_scale):
            variance = math.log(1 + math.exp(alpha)) + eps
            for row_mu, row_t in zip(mu[c], t[c], strict=True):
                for a, b in zip(row_mu, row_t, strict=True):
                    terms.append(0.5 * ((a - b) ** 2 / variance + math.log(variance)))
    return map_oracles.mean(terms)


@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_oracle(eps: float) -> None:
    mean, target = maps(0, (3, 2, 5), (3, 2, 5))
    log_scale = torch.tensor([-3.0, 0.5, 4.0], dtype=torch.float64)
    expected = oracle(mean, target, log_scale.tolist(), eps)
    assert golden.close(vid_loss(mean, target, log_scale, eps=eps), expected)


def test_a_number_by_hand() -> None:
    """Errors 1 and 3 at variances 1 and 4: (1 + 0 + 9/4 + log 4) / 4."""
    student, teacher = torch.tensor([[1.0, 5.0]]), torch.tensor([[2.0, 2.0]])
    loss = vid_loss(student.double(), teacher.double(), scale_of([1.0, 4.0]))
    assert golden.close(loss, (1 + 9 / 4 + math.log(4)) / 4)


def test_with_one_variance_it_is_a_hint() -> None:
    mean, target = maps(1, (3, 4, 4), (3, 4, 4))
    loss = vid_loss(mean, target, scale_of([2.5] * 3))
    torch.testing.assert_close(loss, hint_loss(mean, target) / 5 + math.log(2.5) / 2)


def test_the_best_variance_is_the_mean_squared_error() -> None:
    mean, target = maps(2, (2, 3, 3), (2, 3, 3))
    errors = (mean - target).square().mean(dim=(0, 2, 3))
    best = scale_of(errors.tolist()).requires_grad_()
    loss = vid_loss(mean, target, best)
    (gradient,) = torch.autograd.grad(loss, best)
    assert gradient.abs().max() < 1e-12
    assert golden.close(loss, 0.5 + errors.log().mean().item() / 2)
    for other in (errors * 1.1, errors * 0.9):
        assert vid_loss(mean, target, scale_of(other.tolist())) > loss


def test_at_the_match_it_is_the_log_variance_and_only_that_has_a_gradient() -> None:
    (mean,) = maps(3, (2, 3, 3))
    student = mean.clone().requires_grad_()
    log_scale = scale_of([0.5, 0.25]).requires_grad_()
    loss = vid_loss(student, mean, log_scale)
    assert golden.close(loss, math.log(0.125) / 4)
    assert loss < 0
    loss.backward()
    assert student.grad is not None
    assert (student.grad == 0).all()
    assert log_scale.grad is not None
    assert (log_scale.grad > 0).all()


@pytest.mark.parametrize("alpha", [-1e4, -200.0, 200.0, 1e4])
def test_extreme_scales_are_finite(alpha: float) -> None:
    mean, target = (x.float() for x in maps(4, (2, 3, 3), (2, 3, 3)))
    log_scale = torch.full((2,), alpha, requires_grad=True)
    loss = vid_loss(mean, target, log_scale)
    (gradient,) = torch.autograd.grad(loss, log_scale)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    if alpha > 0:
        assert golden.close(loss, math.log(alpha) / 2, 1e-2)


def test_module_starts_at_its_variance_and_learns_it() -> None:
    student, teacher = maps(5, (3, 4, 4), (2, 4, 4))
    for variance in (0.1, 5.0, 1e3):
        module = VIDLoss(3, 2, init_variance=variance).double()
        found = torch.nn.functional.softplus(module.log_scale) + 1e-5
        torch.testing.assert_close(found, torch.full_like(found, variance), rtol=1e-5, atol=0)
    module = VIDLoss(3, 2).double()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    before = module.log_scale.detach().clone(), module(student, teacher).item()
    for _ in range(5):
        optimizer.zero_grad()
        module(student, teacher).backward()
        optimizer.step()
    assert (module.log_scale < before[0]).all()  # the variance of 5 is too large
    assert module(student, teacher) < before[1]
    assert "log_scale" in module.state_dict()


def test_module_projects_and_pools() -> None:
    student, teacher = maps(6, (3, 4, 2), (2, 2, 6))
    module = VIDLoss(3, 2, 7).double()
    assert [x.shape for x in module.projector.parameters()] == [
        (7, 3, 1, 1), (7, 7, 1, 1), (2, 7, 1, 1)
    ]  # fmt: skip
    pooled = torch.nn.functional.adaptive_avg_pool2d(student, (2, 2))
    target = torch.nn.functional.adaptive_avg_pool2d(teacher, (2, 2))
    first, second, third = (w[:, :, 0, 0] for w in module.projector.parameters())
    hidden = torch.einsum("oc,bchw->bohw", first, pooled).relu()
    hidden = torch.einsum("oc,bchw->bohw", second, hidden).relu()
    mean = torch.einsum("oc,bchw->bohw", third, hidden)
    expected = vid_loss(mean, target, module.log_scale)
    torch.testing.assert_close(module(student, teacher), expected)
    assert VIDLoss(3, 2).projector[0].weight.shape == (2, 3, 1, 1)


def test_masked_rows_do_not_reach_the_module() -> None:
    student, teacher = maps(7, (3, 4, 4), (2, 2, 2))
    module = VIDLoss(3, 2).double()
    mask = torch.tensor([True, False, True, False])
    expected = module(student[mask], teacher[mask])
    wanted = torch.autograd.grad(expected, list(module.parameters()))
    student[~mask], teacher[~mask] = torch.nan, torch.inf
    loss = module(student, teacher, mask)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, list(module.parameters())), wanted)


def test_module_takes_half_precision() -> None:
    student, teacher = (x.half() for x in maps(8, (3, 4, 4), (2, 2, 2)))
    loss = VIDLoss(3, 2)(student, teacher)
    assert loss.dtype == torch.float32
    assert loss.isfinite()


def test_errors() -> None:
    student, teacher = maps(9, (3, 4, 4), (2, 4, 4))
    with pytest.raises(ShapeError, match=r"\(4, 3, 4, 4\) .* \(4, 2, 4, 4\) .* one shape; .*VIDLo"):
        vid_loss(student, teacher, torch.zeros(2))
    with pytest.raises(ShapeError, match=r"log_scale \(2,\) must be .* \(4, 3, 4, 4\)"):
        vid_loss(student, student, torch.zeros(2))
    for scale in (torch.tensor(1.0), torch.zeros(3, 1)):
        with pytest.raises(ShapeError, match=r"log_scale .* must be"):
            vid_loss(student, student, scale)
    with pytest.raises(ValueError, match="log_scale must be floating point"):
        vid_loss(student, student, torch.ones(3, dtype=torch.long))
    for eps in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="eps must be finite and not negative"):
            vid_loss(student, student, torch.zeros(3), eps=eps)
    with pytest.raises(ShapeError, match=r"student_feature \(4, 2, 4, 4\) must be \(batch, 3"):
        VIDLoss(3, 2).double()(teacher, teacher)
    with pytest.raises(ShapeError, match=r"teacher_feature \(4, 3, 4, 4\) must be \(batch, 2"):
        VIDLoss(3, 2).double()(student, student)
    with pytest.raises(ValueError, match=r"init_variance 1e-05 must be larger than eps 1e-05"):
        VIDLoss(3, 2, init_variance=1e-5)
