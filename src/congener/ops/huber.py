"""Huber losses (δ = 1) of distances and of angles, summed, with their gradients, in blocks of rows.

Nothing of size rows² (distances, of more than one block) or rows³ (angles) is held: backward, in
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


def huber_of_angles(student: Tensor, teacher: Tensor, own: slice) -> Tensor:
    """Sum over j and k of the Huber loss between the cosines of the angles j-i-k.

    Args:
        student: squared distances between all rows, (rows, rows); 0 for rows without direction.
        teacher: likewise.
        own: the place of the vertices i.

    Returns:
        One sum for each vertex.
    """
    rows: Tensor = _HuberOfAngles.apply(student, teacher, own)
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

    Of j and k, about half are computed: a tile has some rows j, and k from its first row on.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, own: slice) -> Tensor:
        ctx.save_for_backward(student, teacher)
        ctx.own = own
        sums = student.new_zeros(own.stop - own.start)
        blocks, rows = _tiles(own, len(student), student.device)
        for block in blocks:
            both = [(x, *_lengths(x[block])) for x in (student, teacher)]
            for place in rows:
                cosines, teachers = (_cosines(*network, place) for network in both)
                huber = F.smooth_l1_loss(cosines, teachers, reduction="none")
                huber[:, :, place.stop - place.start :].mul_(2)
                sums[_within(block, own)] += huber.sum(dim=(1, 2))
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher = ctx.saved_tensors
        total = torch.zeros_like(student)
        blocks, rows = _tiles(ctx.own, len(student), student.device)
        for block in blocks:
            both = [(x, *_lengths(x[block])) for x in (student, teacher)]
            inverse = both[0][2]
            near = inverse * grad[_within(block, ctx.own), None] / 2
            pull, turn = torch.zeros(2, *near.shape, dtype=near.dtype, device=near.device)
            for place in rows:
                onward = slice(place.start, None)
                cosines, slope = (_cosines(*network, place) for network in both)
                slope = torch.sub(cosines, slope, out=slope).clamp_(-1, 1)
                slope[:, :, place.stop - place.start :].mul_(2)
                cosines.mul_(slope)
                turn[:, place] += cosines.sum(dim=2)
                turn[:, onward] += cosines.sum(dim=1)
                slope.mul_(near[:, place].unsqueeze(2)).mul_(inverse[:, onward].unsqueeze(1))
                pull[:, place] += slope.sum(dim=2)
                pull[:, onward] += slope.sum(dim=1)
                total[place, onward] -= slope.sum(dim=0)
            total[block] += pull - turn * near * inverse
        return total, None, None


def _lengths(square: Tensor) -> tuple[Tensor, Tensor]:
    """Half the distances, and 1 / distance, which is 0 at 0."""
    inverse = torch.where(square > 0, square.clamp(min=1e-30).rsqrt(), 0)
    return square * inverse / 2, inverse


def _cosines(squares: Tensor, half: Tensor, inverse: Tensor, rows: slice) -> Tensor:
    """Cosines at some vertices between some rows and those from their first on.

    A CPU is fast where at most one factor is constant along the last axis.
    """
    onward = slice(rows.start, None)
    far = inverse[:, onward].unsqueeze(1)
    start = half[:, onward].unsqueeze(1)
    cosines = torch.addcmul(start, far, squares[rows, onward], value=-0.5)
    cosines.mul_(inverse[:, rows].unsqueeze(2))
    return cosines.addcmul_(half[:, rows].unsqueeze(2), far)


def _tiles(own: slice, width: int, device: torch.device) -> tuple[list[slice], list[slice]]:
    """Blocks of vertices and of rows: a tile has those of one, those of the other, and a width."""
    size = max(1, min(-(-width // 4), block_size(width, device)))
    rows = [slice(start, min(start + size, width)) for start in range(0, width, size)]
    return _blocks(own, size * width, device), rows
