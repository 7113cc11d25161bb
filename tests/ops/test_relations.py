"""Relations of samples in blocks: what their parts promise."""

import pytest
import torch

from congener.ops.relations import SquaredDistances, unit_rows


def test_points_that_cannot_be_told_apart_are_at_distance_0() -> None:
    for dtype, step in ((torch.float64, 1e-13), (torch.float32, 1e-30)):
        points = torch.tensor([[0.0, 0.0], [step, 0.0], [3.0, 4.0]], dtype=dtype)
        squares = SquaredDistances(points)[:2]
        assert squares[0, 1] == squares[1, 0] == 0
        torch.testing.assert_close(squares[0, 2], torch.tensor(25.0, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_of_squared_distances(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(5, 3, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    slope = torch.randn(5, 5, generator=generator, dtype=torch.float64).to(dtype)
    squares = (points.unsqueeze(1) - points).square().sum(dim=2)
    (expected,) = torch.autograd.grad(squares, points, slope)
    found = SquaredDistances(points)
    torch.testing.assert_close(found[1:4], squares[1:4].detach())
    torch.testing.assert_close(found.gradient(slope), expected)


def test_all_points_may_be_near() -> None:
    squares = SquaredDistances(torch.tensor([[0.0], [1e-13], [3e-12]]))[:1]
    assert squares[0, 1] == 0
    torch.testing.assert_close(squares[0, 2], torch.tensor(9e-24), rtol=1e-3, atol=0)


def test_unit_rows_with_a_constant_added_to_the_norm() -> None:
    rows = torch.tensor([[3.0, 4.0], [1e-13, 0.0]], requires_grad=True)
    unit = unit_rows(rows, add=5.0)
    torch.testing.assert_close(unit.detach(), torch.tensor([[0.3, 0.4], [0.0, 0.0]]))
    (gradient,) = torch.autograd.grad(unit.sum(), rows)
    assert not gradient[1].any()
    assert gradient[0].isfinite().all()
