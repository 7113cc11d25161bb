"""Huber losses (δ = 1) of distances and of angles, summed, with their gradients, in blocks of rows.

Nothing of size rows² (distances) or rows³ (angles) is held: backward computes each block again, in
closed form.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from congener.ops.collectives import Scope, all_sum
from congener.ops.relations import Gathered, block_size, squared_distances

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
        both, blocks = (student, teacher), _blocks(own, len(kept), kept.device)
        count = kept.sum()
        pairs = (count * (count - 1)).clamp(min=1)
        totals = torch.zeros(2, dtype=student.dtype, device=student.device)
        for block in blocks:
            weight = _pairs(kept, block)
            totals += torch.stack([(_distances(x, block) * weight).sum() for x in both])
        means = all_sum(totals, scope=scope) / pairs
        means = torch.where(means > 0, means, 1)
        sums, leverage = student.new_zeros(2, own.stop - own.start).unbind()
        for block in blocks:
            weight, place = _pairs(kept, block), _within(block, own)
            distances, ratios = _ratios(both, block, means)
            sums[place] = (F.smooth_l1_loss(*ratios, reduction="none") * weight).sum(dim=1)
            slope = (ratios[0] - ratios[1]).clamp_(-1, 1)
            leverage[place] = (slope * distances * weight).sum(dim=1)
        ctx.save_for_backward(student, teacher, kept, means, pairs, leverage)
        ctx.own, ctx.scope = own, scope
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, kept, means, pairs, leverage = ctx.saved_tensors
        # Each distance moves the mean, and through it all ratios of all processes.
        pull = all_sum((grad * leverage).sum(), scope=ctx.scope) / means[0] / pairs
        centred = student - student.mean(dim=0)
        total = torch.zeros_like(student)
        for block in _blocks(ctx.own, len(kept), kept.device):
            distances, ratios = _ratios((student, teacher), block, means)
            slope = (ratios[0] - ratios[1]).clamp_(-1, 1)
            slope.mul_(grad[_within(block, ctx.own), None]).sub_(pull)
            slope.mul_(_pairs(kept, block)).div_(distances).div_(means[0])
            slope.masked_fill_(distances <= 1.0001e-6, 0)
            total[block] += slope.sum(dim=1, keepdim=True) * centred[block] - slope @ centred
            total += slope.sum(dim=0).unsqueeze(1) * centred - slope.T @ centred[block]
        return total, None, None, None, None


def _distances(points: Tensor, block: slice) -> Tensor:
    return squared_distances(points[block], points).clamp_(min=1e-12).sqrt_()


def _ratios(
    both: tuple[Tensor, Tensor], block: slice, means: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The student's distances, and both networks' over their means."""
    student, teacher = (_distances(points, block) for points in both)
    return student, (student / means[0], teacher.div_(means[1]))


def _pairs(kept: Tensor, block: slice) -> Tensor:
    """Which pairs of a row in the block with any row are of two that count, (rows, all rows)."""
    places = torch.arange(len(kept), device=kept.device)
    return kept & kept[block].unsqueeze(1) & (places != places[block].unsqueeze(1))


def _within(block: slice, own: slice) -> slice:
    return slice(block.start - own.start, block.stop - own.start)


class _HuberOfAngles(torch.autograd.Function):
    """With q the squared distances, cos_ijk = (q_ij + q_ik - q_jk) / (2 sqrt(q_ij q_ik))."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, own: slice) -> Tensor:
        ctx.save_for_backward(student, teacher)
        ctx.own = own
        sums = student.new_zeros(own.stop - own.start)
        for block in _blocks(own, student.numel(), student.device):
            cosines = _cosines(student, block)[0], _cosines(teacher, block)[0]
            huber = F.smooth_l1_loss(*cosines, reduction="none")
            sums[_within(block, own)] = huber.sum(dim=(1, 2))
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher = ctx.saved_tensors
        total = torch.zeros_like(student)
        for block in _blocks(ctx.own, student.numel(), student.device):
            cosines, inverse = _cosines(student, block)
            slope = (cosines - _cosines(teacher, block)[0]).clamp_(-1, 1)
            scale = grad[_within(block, ctx.own), None] * inverse
            turning = cosines.mul_(slope).sum(dim=2) * inverse
            slope.mul_(inverse.unsqueeze(1))
            total[block] += scale * (slope.sum(dim=2) - turning)
            for vertex in range(len(slope)):
                total.addcmul_(slope[vertex], scale[vertex].unsqueeze(1), value=-0.5)
        return total, None, None


def _cosines(squares: Tensor, vertices: slice) -> tuple[Tensor, Tensor]:
    """Cosines at some vertices, (vertices, rows, rows), and 1 / distance, (vertices, rows)."""
    square = squares[vertices]
    inverse = torch.where(square > 0, square.clamp(min=1e-30).rsqrt(), 0)
    cosines = square.unsqueeze(1) - squares
    start, factor = (square * inverse / 2).unsqueeze(2), (inverse / 2).unsqueeze(2)
    cosines = torch.addcmul(start, factor, cosines)
    return cosines.mul_(inverse.unsqueeze(1)), inverse
