"""Huber losses (δ = 1) of distances and of angles, summed, with their gradients, in blocks of rows.

Of more than one block, nothing of size rows² (distances) or rows³ (angles) is held: backward, in
closed form, computes each block again.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from congener.ops.collectives import Scope, all_sum
from congener.ops.relations import Gathered, SquaredDistances, block_size

__all__ = ["huber_of_angles", "huber_of_distances"]


def huber_of_distances(batch: Gathered, *, scope: Scope) -> Tensor:
    """Sum over j of the Huber loss between d_ij / mean(d) of the student and of the teacher.

    Distances are at least 1e-6; pairs and means are of two different rows that count.

    Returns:
        One sum for each own row; those of rows that do not count mean nothing.
    """
    rows: Tensor = _HuberOfDistances.apply(
        batch.student, batch.teacher, batch.kept, batch.own, scope
    )
    return rows


def huber_of_angles(batch: Gathered) -> Tensor:
    """Sum over j and k of the Huber loss between the cosines of the angles j-i-k.

    Returns:
        One sum for each own row, the vertex i; a row that does not count has no direction.
    """
    rows: Tensor = _HuberOfAngles.apply(batch.student, batch.teacher, batch.kept, batch.own)
    return rows


def _blocks(own: slice, width: int, device: torch.device) -> list[slice]:
    size = block_size(width, device)
    starts = range(own.start, own.stop, size)
    return [slice(start, min(start + size, own.stop)) for start in starts]


class _HuberOfDistances(torch.autograd.Function):
    """First the mean distances, then each row's sum of l(d_ij / mean - d_ij' / mean')."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, kept: Tensor, own: slice, scope: Scope
    ) -> Tensor:
        distances = _Distances(student, teacher, own)
        count = kept.sum()
        pairs = (count * (count - 1)).clamp(min=1)
        totals = torch.zeros(2, dtype=student.dtype, device=student.device)
        for block, both in distances:
            weight = _pairs(kept, block)
            totals += torch.stack([(x * weight).sum() for x in both])
        means = all_sum(totals, scope=scope) / pairs
        means = torch.where(means > 0, means, 1)
        sums, leverage = student.new_zeros(2, own.stop - own.start).unbind()
        for block, both in distances:
            weight, place = _pairs(kept, block), _within(block, own)
            ratios = both[0] / means[0], both[1] / means[1]
            huber = F.smooth_l1_loss(*ratios, reduction="none")
            sums[place] = huber.mul_(weight).sum(dim=1)
            slope = (ratios[0] - ratios[1]).clamp_(-1, 1)
            leverage[place] = slope.mul_(both[0]).mul_(weight).sum(dim=1)
        ctx.save_for_backward(student, teacher, kept, means, pairs, leverage, *distances.known)
        ctx.own, ctx.scope = own, scope
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, kept, means, pairs, leverage, *known = ctx.saved_tensors
        # Each distance moves the mean, and through it all ratios of all processes.
        pull = all_sum((grad * leverage).sum(), scope=ctx.scope) / means[0] / pairs
        centred = student - student.mean(dim=0)
        total = torch.zeros_like(student)
        for block, both in _Distances(student, teacher, ctx.own, known):
            slope = (both[0] / means[0] - both[1] / means[1]).clamp_(-1, 1)
            slope.mul_(grad[_within(block, ctx.own), None]).sub_(pull)
            slope.mul_(_pairs(kept, block)).div_(both[0]).div_(means[0])
            slope.masked_fill_(both[0] <= 1.0001e-6, 0)
            total[block] += slope.sum(dim=1, keepdim=True) * centred[block] - slope @ centred
            total += slope.sum(dim=0).unsqueeze(1) * centred - slope.T @ centred[block]
        return total, None, None, None, None


class _Distances:
    """Blocks of own rows, each with both networks' distances to all rows.

    Of one block alone, they are known after the first time.
    """

    def __init__(
        self, student: Tensor, teacher: Tensor, own: slice, known: Sequence[Tensor] = ()
    ) -> None:
        self.blocks = _blocks(own, len(student), student.device)
        if not known:
            self.squares = SquaredDistances(student), SquaredDistances(teacher)
        if not known and len(self.blocks) == 1:
            known = self.find(self.blocks[0])
        self.known = known

    def __iter__(self) -> Iterator[tuple[slice, Sequence[Tensor]]]:
        for block in self.blocks:
            yield block, self.known or self.find(block)

    def find(self, block: slice) -> Sequence[Tensor]:
        return [squares[block].clamp_(min=1e-12).sqrt_() for squares in self.squares]


def _pairs(kept: Tensor, block: slice) -> Tensor:
    """Which pairs of a row in the block with any row are of two that count, (rows, all rows)."""
    places = torch.arange(len(kept), device=kept.device)
    return kept & kept[block].unsqueeze(1) & (places != places[block].unsqueeze(1))


def _within(block: slice, own: slice) -> slice:
    return slice(block.start - own.start, block.stop - own.start)


class _HuberOfAngles(torch.autograd.Function):
    """With q the squared distances, cos_ijk = (q_ij + q_ik - q_jk) / (2 sqrt(q_ij q_ik)).

    Of j and k, about half are computed: a tile has some rows j, and k from its first row on. Of one
    block alone, the derivatives are formed at once, while its cosines are at hand.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, kept: Tensor, own: slice) -> Tensor:
        distances = SquaredDistances(student)
        squares = torch.stack((distances[:], SquaredDistances(teacher)[:]))
        squares.masked_fill_(~(kept & kept.unsqueeze(1)), 0)
        sums = student.new_zeros(own.stop - own.start)
        blocks, tiles = _tiles(own, len(student), student.device)
        slopes: list[Tensor] = []
        for block in blocks:
            angles = _Angles(squares, block)
            for rows in tiles:
                both = angles.cosines(rows)
                sums[_within(block, own)] += _huber(*both)
                if len(blocks) == 1:
                    slopes.append(angles.slope(rows, *both))
                del both  # the next tile takes its memory
        ctx.own, ctx.distances = own, distances
        ctx.save_for_backward(squares, *slopes, *([angles.pull()] if slopes else []))
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        squares, *known = ctx.saved_tensors
        total = torch.zeros_like(squares[0])
        blocks, tiles = _tiles(ctx.own, len(total), total.device)
        for block in blocks:
            weight = grad[_within(block, ctx.own)]
            angles = None if known else _Angles(squares, block)
            for number, rows in enumerate(tiles):
                slope = angles.slope(rows, *angles.cosines(rows)) if angles else known[number]
                pulled = (weight @ slope.flatten(1)).view(slope.shape[1:])
                pulled[:, : len(pulled)] /= 2
                total[rows, rows.start :] -= pulled
            total[block] += weight.unsqueeze(1) * (angles.pull() if angles else known[-1])
        return ctx.distances.gradient(total), None, None, None


class _Angles:
    """The angles at a block of vertices i, of the student and of the teacher."""

    def __init__(self, squares: Tensor, block: slice) -> None:
        own = squares[:, block]
        self.squares = squares
        self.inverse = own.rsqrt().masked_fill_(own == 0, 0)
        self.half = own * self.inverse / 2
        self.turns, self.pulls = torch.zeros_like(own)

    def cosines(self, rows: slice) -> Tensor:
        """Cosines between some rows and those from their first on, (2, vertices, rows, onward).

        A CPU is fast where at most one factor is constant along the last axis.
        """
        onward = slice(rows.start, None)
        far, start = self.inverse[..., onward].unsqueeze(2), self.half[..., onward].unsqueeze(2)
        both = torch.addcmul(start, far, self.squares[:, rows, onward].unsqueeze(1), value=-0.5)
        both.mul_(self.inverse[..., rows].unsqueeze(3))
        cosines: Tensor = both.addcmul_(self.half[..., rows].unsqueeze(3), far)
        return cosines

    def slope(self, rows: slice, cosines: Tensor, teachers: Tensor) -> Tensor:
        """Derivatives by -q_jk / 2, of each vertex; the cosines are overwritten."""
        inverse = self.inverse[0]
        slope = (cosines - teachers).clamp_(-1, 1)
        turn = cosines.mul_(slope)
        slope.mul_(inverse[:, rows].unsqueeze(2)).mul_(inverse[:, rows.start :].unsqueeze(1))
        for total, x in ((self.turns, turn), (self.pulls, slope)):
            total[:, rows] += x.sum(dim=2)
            total[:, rows.stop :] += x[:, :, x.shape[1] :].sum(dim=1)
        return slope

    def pull(self) -> Tensor:
        """Derivatives by q_ij, once the slopes of all tiles are known."""
        pull: Tensor = self.pulls - self.turns * self.inverse[0].square()
        return pull


def _huber(cosines: Tensor, teachers: Tensor) -> Tensor:
    """Each vertex' sum over a tile, of which what lies beyond the diagonal counts twice."""
    huber = F.smooth_l1_loss(cosines, teachers, reduction="none")
    return huber.sum(dim=(1, 2)) + huber[:, :, huber.shape[1] :].sum(dim=(1, 2))


def _tiles(own: slice, width: int, device: torch.device) -> tuple[list[slice], list[slice]]:
    """Blocks of vertices and of rows: a tile has those of one, those of the other, and a width."""
    size = max(1, min(max(32, -(-width // 4)), block_size(width, device)))
    rows = [slice(start, min(start + size, width)) for start in range(0, width, size)]
    return _blocks(own, min(size, width) * width, device), rows
