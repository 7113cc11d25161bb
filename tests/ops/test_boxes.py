"""Generalised overlaps against torchvision's, and where boxes are empty."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from congener.ops.boxes import generalized_overlaps


def boxes(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner, side = torch.rand(2, 3, 40, 2, generator=generator, dtype=torch.float64)
    return torch.cat((10 * corner, 10 * corner + 1 + 20 * side), dim=-1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_torchvision(dtype: torch.dtype) -> None:
    """It adds 1e-7 to areas of at least a pixel."""
    first, second = boxes(0).to(dtype).requires_grad_(), boxes(1).to(dtype)
    found = generalized_overlaps(first, second)
    expected = 1 - generalized_box_iou_loss(first, second)
    assert found.shape == (3, 40)
    assert found.min() < -0.2
    assert found.max() > 0.5
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), first, retain_graph=True)
    (other,) = torch.autograd.grad(expected.sum(), first)
    torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-6)


def test_a_box_and_itself() -> None:
    same = boxes(2).requires_grad_()
    found = generalized_overlaps(same, same.detach())
    (gradient,) = torch.autograd.grad(found.sum(), same)
    assert (found == 1).all()
    assert gradient.abs().max() < 1e-15


def test_empty_and_inverted_boxes_are_finite() -> None:
    odd = torch.tensor([[1.0, 1, 1, 1], [3, 3, 1, 1], [0, 0, 1e-20, 1e-20], [0, 0, 2, 2]])
    first = odd.repeat_interleave(4, dim=0).requires_grad_()
    found = generalized_overlaps(first, odd.repeat(4, 1))
    (gradient,) = torch.autograd.grad(found.sum(), first)
    assert gradient.isfinite().all()
    assert ((found >= -1) & (found <= 1)).all()
    assert found[[0, -1]].tolist() == [0, 1]
