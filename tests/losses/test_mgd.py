"""MGD: a summed squared error, and the places it hides."""

import pytest
import torch
from tests.losses import golden
from tests.losses.test_cwd import maps

from congener.errors import ShapeError
from congener.losses import MGDLoss, mgd_loss, mgd_visible


@pytest.mark.parametrize("batch", [1, 3])
def test_oracle(batch: int) -> None:
    student, teacher = maps(0, batch)
    total = 0.0
    for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        total += (s - t) ** 2
    assert golden.close(mgd_loss(student, teacher), 2e-5 * total / batch)
    assert golden.close(mgd_loss(student, teacher, alpha=0.3), 0.3 * total / batch)


def test_the_generator_sees_visible_places_alone() -> None:
    """By hand: conv 3×3, ReLU, conv 3×3 of the map with hidden places at zero."""
    torch.manual_seed(0)
    module = MGDLoss(4, 4, alpha=1.0).double()
    student, teacher = maps(1)
    visible = mgd_visible(torch.tensor([5, 6, 7]), (3, 5), mask_ratio=0.5)
    assert visible.any()
    assert not visible.all()
    hidden = student.clone()
    hidden.movedim(1, 3)[~visible] = 0
    first, _, second = module.projector

    def convolve(x: torch.Tensor, conv: torch.nn.Module) -> torch.Tensor:
        padded = torch.zeros(len(x), 4, 5, 7, dtype=torch.float64)
        padded[:, :, 1:-1, 1:-1] = x
        out = torch.zeros_like(x)
        for i in range(3):
            for j in range(3):
                part = padded[:, :, i : i + 3, j : j + 5]
                out += torch.einsum("dc,nchw->ndhw", conv.weight[:, :, i, j], part)
        return out + conv.bias[:, None, None]

    with torch.no_grad():
        generated = convolve(convolve(hidden, first).clamp(min=0), second)
        expected = (generated - teacher).square().sum() / 3
        torch.testing.assert_close(module(student, teacher, visible), expected)
        changed = student.clone()
        changed.movedim(1, 3)[~visible] = 100.0
        torch.testing.assert_close(module(changed, teacher, visible), expected)
        everything = torch.ones_like(visible)
        assert not torch.isclose(module(student, teacher, everything), expected, rtol=1e-4)


def test_channels_are_aligned_where_they_differ() -> None:
    assert not list(MGDLoss(4, 4).align.parameters())
    module = MGDLoss(2, 4).double()
    student, teacher = maps(2)
    visible = torch.ones(3, 3, 5, dtype=torch.bool)
    module(student[:, :2], teacher, visible).backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())
    assert sum(1 for _ in module.parameters()) == 6


def test_hidden_places_give_the_student_no_gradient_at_a_distance() -> None:
    module = MGDLoss(4, 4).double()
    student, teacher = maps(3)
    student.requires_grad_()
    visible = torch.zeros(3, 3, 5, dtype=torch.bool)
    visible[:, 0, 0] = True
    module(student, teacher, visible).backward()
    assert student.grad is not None
    assert student.grad[:, :, 0, 0].abs().min() > 0
    student.grad[:, :, 0, 0] = 0
    assert (student.grad == 0).all()


def test_masked_images_do_not_reach_the_generator() -> None:
    module = MGDLoss(2, 4).double()
    student, teacher = maps(4)
    visible = mgd_visible(torch.arange(3), (3, 5))
    mask = torch.tensor([True, False, True])
    module(student[mask][:, :2], teacher[mask], visible[mask]).backward()
    expected = [parameter.grad.clone() for parameter in module.parameters()]  # type: ignore[union-attr]
    module.zero_grad()
    student[1], teacher[1] = torch.nan, torch.inf
    module(student[:, :2], teacher, visible, mask).backward()
    for parameter, gradient in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_place_is_hidden_with_the_ratio() -> None:
    for ratio in (0.0, 0.45, 0.65, 1.0):
        visible = mgd_visible(torch.arange(50), (20, 20), mask_ratio=ratio)
        hidden = 1 - visible.double().mean().item()
        assert abs(hidden - ratio) <= 4 * (ratio * (1 - ratio) / 20_000) ** 0.5
        places = visible.double().mean(dim=0)
        assert (places - (1 - ratio)).abs().max() < 0.35
    assert torch.equal(
        mgd_visible(torch.arange(9), (4, 6)), mgd_visible(torch.arange(9), (4, 6), mask_ratio=0.65)
    )


def test_places_are_a_function_of_id_step_and_seed() -> None:
    index = torch.tensor([3, 10**12, 7])
    visible = mgd_visible(index, (6, 8), seed=1, step=2)
    assert visible.shape == (3, 6, 8)
    assert visible.dtype == torch.bool
    order = torch.tensor([2, 0])
    assert torch.equal(mgd_visible(index[order], (6, 8), seed=1, step=2), visible[order])
    for seed, step in ((1, 3), (2, 2), (0, 0)):
        assert not torch.equal(mgd_visible(index, (6, 8), seed=seed, step=step), visible)
    assert len({tuple(image.flatten().tolist()) for image in visible}) == 3
    assert mgd_visible(index[:0], (6, 8)).shape == (0, 6, 8)


def test_refusals() -> None:
    student, teacher = maps(5)
    visible = torch.ones(3, 3, 5, dtype=torch.bool)
    module = MGDLoss(4, 4).double()
    with pytest.raises(ShapeError, match=r"visible \(1, 3, 5\) must be .* \(3, 3, 5\)"):
        module(student, teacher, visible[:1])
    with pytest.raises(ValueError, match="visible must be boolean"):
        module(student, teacher, visible.double())
    with pytest.raises(ShapeError, match="must be"):
        MGDLoss(2, 4)(student, teacher, visible)
    with pytest.raises(ValueError, match="mask_ratio must lie in"):
        mgd_visible(torch.arange(2), (2, 2), mask_ratio=1.1)
    with pytest.raises(ValueError, match="index must be integers"):
        mgd_visible(torch.zeros(2), (2, 2))
    with pytest.raises(ShapeError, match="give one id a sample"):
        mgd_visible(torch.zeros(2, 1, dtype=torch.long), (2, 2))
