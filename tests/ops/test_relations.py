"""Relations of samples in blocks: what their parts promise."""

import torch

from congener.ops.relations import SquaredDistances, unit_rows


def test_points_that_cannot_be_told_apart_are_at_distance_0() -> None:
    for dtype, step in ((torch.float64, 1e-13), (torch.float32, 1e-30)):
        points = torch.tensor([[0.0, 0.0], [step, 0.0], [3.0, 4.0]], dtype=dtype)
        points.requires_grad_()
        squares = SquaredDistances(points)[:2]
        assert squares[0, 1] == squares[1, 0] == 0
        torch.testing.assert_close(squares[0, 2].detach(), torch.tensor(25.0, dtype=dtype))
        (gradient,) = torch.autograd.grad(squares[0, 1] + squares[1, 0], points)
        assert not gradient.any()


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
