"""IKD's adversarial term: three distances, and the alignment of channels."""

import pytest
import torch
from tests.losses import golden
from tests.losses.test_cwd import maps
from tests.losses.test_cwd import oracle as cwd
from torch import Tensor

from congener.errors import ShapeError
from congener.losses import IKDLoss, cwd_loss, ikd_loss


def oracle(student: Tensor, teacher: Tensor, distance: str, alpha: float, tau: float) -> float:
    if distance == "cwd":
        return alpha * cwd(student, teacher, tau, "channel")
    total = 0.0
    for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        total += (s - t) ** 2 if distance == "mse" else abs(s - t)
    return alpha * total / len(student)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("distance", ["mse", "l1", "cwd"])
def test_oracle(batch: int, distance: str) -> None:
    student, teacher = maps(0, batch)
    expected = oracle(student, teacher, distance, 0.3, 2.0)
    options = {"distance": distance, "alpha": 0.3, "temperature": 2.0}
    assert golden.close(ikd_loss(student, teacher, **options), expected)  # type: ignore[arg-type]
    assert golden.close(IKDLoss(4, 4, **options)(student, teacher), expected)  # type: ignore[arg-type]


def test_published_defaults() -> None:
    student, teacher = maps(1)
    assert golden.close(ikd_loss(student, teacher), oracle(student, teacher, "mse", 1e-5, 4.0))
    expected = 1e-5 * cwd_loss(student, teacher, temperature=4.0)
    torch.testing.assert_close(ikd_loss(student, teacher, distance="cwd"), expected)


@pytest.mark.parametrize("distance", ["mse", "l1", "cwd"])
def test_linear_in_alpha_and_a_mean_over_images(distance: str) -> None:
    student, teacher = maps(2, 4)
    options = {"distance": distance}
    whole = ikd_loss(student, teacher, alpha=2.0, **options)  # type: ignore[arg-type]
    halves = [
        ikd_loss(student[half], teacher[half], alpha=1.0, **options)  # type: ignore[arg-type]
        for half in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(whole, 2 * (halves[0] + 3 * halves[1]) / 4)
    assert ikd_loss(student, teacher, alpha=0.0, **options) == 0  # type: ignore[arg-type]


def test_channels_are_aligned_only_where_they_differ() -> None:
    assert list(IKDLoss(4, 4).parameters()) == []
    module = IKDLoss(2, 4, alpha=1.0).double()
    assert {n: tuple(p.shape) for n, p in module.named_parameters()} == {
        "align.weight": (4, 2, 1, 1),
        "align.bias": (4,),
    }
    student, teacher = maps(3)
    weight = module.align.weight[:, :, 0, 0]  # type: ignore[union-attr, index]
    aligned = torch.einsum("dc,nchw->ndhw", weight, student[:, :2])
    aligned = aligned + module.align.bias[:, None, None]  # type: ignore[union-attr, index]
    expected = oracle(aligned.detach(), teacher, "mse", 1.0, 4.0)
    assert golden.close(module(student[:, :2], teacher), expected)


def test_masked_images_do_not_reach_the_alignment() -> None:
    module = IKDLoss(2, 4).double()
    student, teacher = maps(4)
    mask = torch.tensor([True, False, True])
    module(student[mask][:, :2], teacher[mask]).backward()
    expected = [parameter.grad.clone() for parameter in module.parameters()]  # type: ignore[union-attr]
    module.zero_grad()
    student[1], teacher[1] = torch.nan, torch.inf
    module(student[:, :2], teacher, mask).backward()
    for parameter, gradient in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_refusals() -> None:
    student, teacher = maps(5)
    with pytest.raises(ShapeError, match=r"\(3, 4, 3, 5\) must be \(batch, 2, height, width\)"):
        IKDLoss(2, 4)(student, teacher)
    with pytest.raises(ShapeError, match="resize"):
        IKDLoss(4, 4)(student, teacher[:, :, :2])
    with pytest.raises(ValueError, match="distance must be one of 'mse', 'l1', 'cwd'"):
        ikd_loss(student, teacher, distance="l2")  # type: ignore[arg-type]
