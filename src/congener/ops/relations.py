"""Relations of the samples of a batch: own rows against all rows in scope, in blocks."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from congener.ops.collectives import Scope, gather_rows
from congener.ops.reduction import blank_rows

__all__ = ["Gathered", "SquaredDistances", "block_size", "by_rows", "gather_batch", "unit_rows"]

_CPU_ENTRIES, _ENTRIES = 2**18, 2**23
"""How many entries of a matrix of relations are held at once, on a CPU and on other devices."""


class Gathered(NamedTuple):
    """The rows of all processes in scope, in rank order.

    Attributes:
        student: (rows, student width), masked rows zero.
        teacher: (rows, teacher width), likewise.
        kept: which rows count, (rows,).
        own: the place of this process' rows.
    """

    student: Tensor
    teacher: Tensor
    kept: Tensor
    own: slice

    @property
    def places(self) -> Tensor:
        """The place of each row, (rows,)."""
        return torch.arange(len(self.kept), device=self.kept.device)


def gather_batch(
    student: Tensor, teacher: Tensor, mask: Tensor | None, *, scope: Scope
) -> Gathered:
    """Gather features, (batch, width), that may lie on several processes."""
    kept = torch.ones_like(student[:, 0], dtype=torch.bool) if mask is None else mask
    everyone, own = gather_rows(blank_rows(student, mask), scope=scope)
    teachers, _ = gather_rows(blank_rows(teacher, mask), scope=scope)
    return Gathered(everyone, teachers, gather_rows(kept, scope=scope)[0], own)


def by_rows(function: Callable[..., Tensor], everyone: Sequence[Tensor], own: slice) -> Tensor:
    """Relate own rows to all rows in blocks, so that no matrix of relations is ever held whole.

    What a block computes is not kept for backward but computed again. A compiler is given one
    block: it plans the memory itself.

    Args:
        function: ``function(*block, *everyone)`` gets some rows of each tensor and then the whole
            of each, and returns one number for each of its rows. It must not communicate.
        everyone: what it reads of all rows; tensors of one length.
        own: which of the rows are this process'.
    """
    rows = [x[own] for x in everyone]
    size = block_size(len(everyone[0]), everyone[0].device)
    if len(rows[0]) <= size or torch.compiler.is_compiling():
        return function(*rows, *everyone)
    joined: Tensor = _ByRows.apply(function, size, *rows, *everyone)
    return joined


def block_size(width: int, device: torch.device) -> int:
    """How many rows of so many numbers fit a processor's cache, or keep a larger device busy."""
    return max(1, (_CPU_ENTRIES if device.type == "cpu" else _ENTRIES) // max(1, width))


class _ByRows(torch.autograd.Function):
    """A function of rows in blocks; backward computes each block again."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], size: int, *tensors: Tensor) -> Tensor:
        ctx.function, ctx.size = function, size
        ctx.save_for_backward(*tensors)
        half = len(tensors) // 2
        blocks = zip(*(torch.split(x, size) for x in tensors[:half]), strict=True)
        return torch.cat([function(*block, *tensors[half:]) for block in blocks])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [
            x.detach().requires_grad_(needed)
            for x, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[2:], strict=True)
        ]
        sums = {n: torch.zeros_like(x) for n, x in enumerate(inputs) if x.requires_grad}
        half = len(inputs) // 2
        for start in range(0, len(grad), ctx.size):
            place = slice(start, start + ctx.size)
            block = [x[place].detach().requires_grad_(x.requires_grad) for x in inputs[:half]]
            given = block + inputs[half:]
            with torch.enable_grad():
                value = ctx.function(*given)
            found = torch.autograd.grad(value, [given[number] for number in sums], grad[place])
            for number, piece in zip(sums, found, strict=True):
                sums[number][place if number < half else slice(None)] += piece
        return None, None, *(sums.get(number) for number in range(len(inputs)))


def unit_rows(x: Tensor, *, add: float = 0.0) -> Tensor:
    """Divide each row by its norm, to which a constant may be added.

    A row without direction, its norm at most 1e-12, becomes zero, with gradient 0.

    >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    directed = norm > 1e-12
    return torch.where(directed, x, 0) / torch.where(directed, norm + add, 1)


class SquaredDistances:
    """Squared Euclidean distances of points to all points, however close to each other.

    Of float32 points they are expanded into inner products in float64, of others (where float64
    has nothing wider) computed from differences. Points that float32 cannot tell apart, or nearer
    than 1e-12, are at distance 0. Autograd does not see them: use :meth:`gradient`.

    >>> SquaredDistances(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))[:1]
    tensor([[ 0., 25.]])
    """

    def __init__(self, points: Tensor) -> None:
        self._points = points.detach()
        self._expands = points.dtype != torch.float64 and points.device.type != "mps"
        wide = self._points.double() if self._expands else self._points
        self._wide = wide - wide.mean(dim=0)
        if self._expands:
            self._lengths = self._wide.square().sum(dim=1)

    def __getitem__(self, rows: slice) -> Tensor:
        """Those of some of the points, (rows, points)."""
        if not self._expands:
            squares = torch.cdist(
                self._points[rows], self._points, compute_mode="donot_use_mm_for_euclid_dist"
            ).square()
            return torch.where(squares > 1e-24, squares, 0)
        # |a - b|² = |a|² + |b|² - 2 a·b
        lengths = self._lengths[rows].unsqueeze(1) + self._lengths
        squares = torch.addmm(lengths, self._wide[rows], self._wide.T, alpha=-2)
        resolution = lengths.mul_(1e-14).clamp_(min=1e-24)
        return squares.masked_fill_(squares <= resolution, 0).to(self._points.dtype)

    def gradient(self, slope: Tensor) -> Tensor:
        """Gradient by the points, given that by all squared distances, (points, points).

        Where a distance is 0, so is its part.
        """
        both = (slope + slope.T).to(self._wide.dtype)
        pulls = both.sum(dim=1, keepdim=True) * self._wide - both @ self._wide
        return (2 * pulls).to(self._points.dtype)
