"""How far the rows of two Gram matrices are apart, without holding the matrices.

Three forms give the same numbers. With G = A·Aᵀ of the student's rows A and H of the teacher's:

``dense``
    the definition, both matrices held; it alone can be compiled and differentiated twice. As the
    others it has a backward of its own, which :mod:`torch.func` does not transform.
``tiled``
    stripes of G and H, computed again in backward: what is wide costs its products, no memory.
``moments``
    ⟨G_i, H_i⟩ = a_i·(AᵀB)·b_i and so on, in the space of the features: for many rows that are not
    wide. Sums over rows, so that processes exchange features × features once in each direction.

The expanded square of ``moments`` cancels where both matrices agree: there it is computed in
float64.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from congener.ops.collectives import (
    Scope,
    all_sum,
    gather_once,
    gather_rows,
    own_place,
    rank_sizes,
)

__all__ = ["Form", "cheapest_form", "gram_distances"]

Form = Literal["dense", "tiled", "moments"]

_EPS = 1e-12
"""The smallest norm to divide by, that of ``torch.nn.functional.normalize``."""
_ENTRIES = 2**20
"""How many entries of a stripe, or of a block of features, may be held at once."""
_CACHED = 2**18
"""How many stay in the caches; rows are not cut finer than products are efficient for."""
_SMALL = 256
"""Up to so many rows a Gram matrix is no burden."""
_SMALL_OF_RANKS = 128
"""Up to so many rows of all processes, each computes the whole rather than ask the others."""
_NEAR = 1e-3
"""One minus the cosine of the two matrices below which float32 moments lose the difference."""
_LARGE = 1e18
"""Moments whose squares float32 cannot hold."""


def gram_distances(
    student: Tensor,
    teacher: Tensor,
    *,
    normalize_rows: bool,
    scope: Scope = "local",
    form: Form | None = None,
) -> Tensor:
    """Squared distance of each row of the student's Gram matrix to the teacher's row.

    Args:
        student: (..., rows, width), at least float32; leading axes hold separate matrices.
        teacher: (..., rows, width), of any width and the same type; a constant.
        normalize_rows: divide each row of the Gram matrices by its norm first.
        scope: ``"global"`` lays the rows of all processes under each other; no leading axes then.
        form: how it is computed; by default what the shapes make cheapest.

    Returns:
        One number for each row of this process, (..., rows). With normalised rows, that of a row
        of zeros has no gradient.

    >>> student, teacher = torch.tensor([[1.0], [1.0]]), torch.eye(2)
    >>> gram_distances(student, teacher, normalize_rows=False)  # (1, 1) - (1, 0); (1, 1) - (0, 1)
    tensor([1., 1.])
    """
    teacher = teacher.detach()
    sizes = rank_sizes(student, scope=scope)
    if form is None:
        widest = max(student.shape[-1], teacher.shape[-1])
        form = cheapest_form(sum(sizes) if sizes else student.shape[-2], widest, sizes is not None)
        form = "dense" if torch.compiler.is_compiling() or student.device.type == "mps" else form
    if form == "dense":
        if torch.compiler.is_compiling():
            rows, others = (x @ gather_rows(x, scope=scope)[0].mT for x in (student, teacher))
            return _defined(rows, _directions(others) if normalize_rows else others, normalize_rows)
        distances: Tensor = _Dense.apply(student, teacher, normalize_rows, sizes)
        return distances
    if form == "tiled":
        distances = _Tiled.apply(student, teacher, normalize_rows, sizes)
    else:
        distances = _Moments.apply(student, teacher, normalize_rows, sizes is not None)
    if not normalize_rows:
        return distances
    # A row of zeros has no direction to turn: its own distance is a constant.
    directed = torch.linalg.vector_norm(student.detach(), dim=-1) != 0
    return torch.where(directed, distances, distances.detach())


def _directions(rows: Tensor) -> Tensor:
    """Rows of length 1; those of zeros stay, without gradient."""
    norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows * torch.where(norms > 0, norms.clamp(min=_EPS).reciprocal(), 0)


def _defined(rows: Tensor, others: Tensor, normalize_rows: bool) -> Tensor:
    """The definition, from rows of the student's Gram matrix and what they shall be."""
    return (others - (_directions(rows) if normalize_rows else rows)).square().sum(dim=-1)


def cheapest_form(rows: int, width: int, spans_ranks: bool = False) -> Form:
    """The form that costs least for so many rows of so many features."""
    if rows <= (_SMALL_OF_RANKS if spans_ranks else _SMALL):
        return "dense"
    return "moments" if rows > 2 * width and rows > _SMALL else "tiled"


def _expanded_square(products: Tensor, normalize_rows: bool) -> tuple[Tensor, Tensor]:
    """|G_i - H_i|² of each row from ⟨G_i, G_i⟩, ⟨G_i, H_i⟩ and ⟨H_i, H_i⟩, each row by itself.

    Returns:
        The distances, and their derivatives by the first two products, (2, ...).
    """
    students, mixed, teachers = products.unbind()
    by_students, by_mixed = torch.ones_like(mixed), torch.full_like(mixed, -2)
    if normalize_rows:
        squares, teacher_squares = students.clamp(_EPS**2), teachers.clamp(_EPS**2)
        by_mixed = -2 / (squares.sqrt() * teacher_squares.sqrt())
        # a norm held at _EPS is constant, of any other the quotient below is
        turned = -by_mixed * mixed / (2 * squares)
        by_students = torch.where(students >= _EPS**2, turned, 1 / squares)
        students, teachers = students / squares, teachers / teacher_squares
    distances = students + teachers + by_mixed * mixed
    slopes = torch.stack((by_students, by_mixed)) * (distances >= 0)
    return distances.clamp(min=0), slopes


def _blocks(rows: int, entries_of_a_row: int, copies: int = 1) -> Iterator[slice]:
    entries = max(1, entries_of_a_row)
    size = max(_CACHED // (copies * entries), min(256, _ENTRIES // entries), 1)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _gather_both(
    student: Tensor, teacher: Tensor, sizes: list[int] | None
) -> tuple[Tensor, Tensor]:
    """The rows of all processes in scope, in one message."""
    if sizes is None:
        return student, teacher
    both = gather_once(torch.cat((student, teacher), dim=-1), sizes)
    return both[..., : student.shape[-1]], both[..., student.shape[-1] :]


class _Dense(torch.autograd.Function):
    """Distances of rows, from both Gram matrices of all rows in scope, which each process computes.

    d L / d a_i = Σ_j V_ij a_j with V = W + Wᵀ and W = d L / d G.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, normalize_rows: bool, sizes: list[int] | None
    ) -> Tensor:
        everyone, teachers = _gather_both(student, teacher, sizes)
        rows, gap = everyone @ everyone.mT, teachers @ teachers.mT
        norms = rows
        if normalize_rows:
            norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
            rows /= norms.clamp(min=_EPS)
            gap /= torch.linalg.vector_norm(gap, dim=-1, keepdim=True).clamp_(min=_EPS)
        gap -= rows
        distances: Tensor = torch.linalg.vecdot(gap, gap)
        ctx.normalize_rows, ctx.sizes = normalize_rows, sizes
        ctx.own = slice(None) if sizes is None else own_place(sizes)
        ctx.save_for_backward(student, everyone, rows, gap, norms)
        return distances[..., ctx.own]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        student, everyone, rows, gap, norms = ctx.saved_tensors
        if torch.is_grad_enabled():  # it will be differentiated again
            columns = gather_rows(student, scope="global" if ctx.sizes else "local")[0]
            targets = (rows + gap)[..., ctx.own, :]
            distances = _defined(student @ columns.mT, targets, ctx.normalize_rows)
            (graphed,) = torch.autograd.grad(distances, student, grad, create_graph=True)
            return graphed, None, None, None
        weight = -2 * gather_once(grad, ctx.sizes).unsqueeze(-1)
        if ctx.normalize_rows:
            # a norm held at _EPS is constant, a row of zeros has no direction to turn
            along = torch.linalg.vecdot(gap, rows).unsqueeze(-1) * (norms >= _EPS)
            weight *= norms.sign() / norms.clamp(min=_EPS)
            by_entry = torch.addcmul(gap, along, rows, value=-1).mul_(weight)
        else:
            by_entry = gap * weight
        with torch.autocast(student.device.type, enabled=False):
            return (by_entry + by_entry.mT)[..., ctx.own, :] @ everyone, None, None, None


class _Tiled(torch.autograd.Function):
    """Distances of rows, from stripes of both Gram matrices; backward computes them again.

    d L / d a_i = Σ_j V_ij a_j with V = W + Wᵀ, W_ij = own_i · G_ij + other_i · H_ij: beside the
    features, a rank needs two numbers of each row of the other ranks, and nothing travels back.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, normalize_rows: bool, sizes: list[int] | None
    ) -> Tensor:
        columns, teacher_columns = _gather_both(student, teacher, sizes)
        distances = student.new_empty(student.shape[:-1])
        student_norms, teacher_norms = torch.ones_like(distances), torch.ones_like(distances)
        along = torch.zeros_like(distances)
        for block in _blocks(student.shape[-2], distances[..., :1].numel() * columns.shape[-2]):
            rows = student[..., block, :] @ columns.mT
            difference = teacher[..., block, :] @ teacher_columns.mT
            if normalize_rows:
                norms = torch.linalg.vector_norm(rows, dim=-1)
                student_norms[..., block] = norms.clamp(min=_EPS)
                teacher_norms[..., block] = torch.linalg.vector_norm(difference, dim=-1).clamp(_EPS)
                rows /= student_norms[..., block, None]
                difference /= teacher_norms[..., block, None]
            torch.sub(rows, difference, out=difference)
            distances[..., block] = torch.linalg.vecdot(difference, difference)
            if normalize_rows:
                # what the projection takes out of the gradient; a norm held at _EPS is constant
                shares = torch.linalg.vecdot(difference, rows)
                along[..., block] = torch.where(norms >= _EPS, shares, 0)
        ctx.sizes = sizes
        ctx.save_for_backward(
            student, teacher, columns, teacher_columns, student_norms, teacher_norms, along
        )
        return distances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, columns, teacher_columns, *norms, along = ctx.saved_tensors
        student_norms, teacher_norms = (x.double() for x in norms)
        weight = 2 * grad.double()
        own = weight * (1 - along) / student_norms.square()
        other = -weight / (student_norms * teacher_norms)
        columns_of = gather_once(torch.stack((own, other), dim=-1), ctx.sizes).unbind(-1)
        # Rounded now, so that every use of it is of the same number.
        ratio = (student_norms.sum() / teacher_norms.sum()).to(student.dtype)
        by_row = [x.to(student.dtype).unsqueeze(-1) for x in _differences(own, other, ratio)]
        by_column = [
            x.to(student.dtype).unsqueeze(-2)
            for x in _differences(columns_of[0], columns_of[1], ratio)
        ]
        result = torch.zeros_like(student)
        with torch.autocast(student.device.type, enabled=False):
            for block in _blocks(student.shape[-2], own[..., :1].numel() * columns.shape[-2]):
                # In one process V is symmetric: its lower half is the upper one's mirror image.
                right = slice(block.start if ctx.sizes is None else 0, None)
                factors = [
                    i[..., block, :] + j[..., right] for i, j in zip(by_row, by_column, strict=True)
                ]
                rows = student[..., block, :] @ columns[..., right, :].mT
                others = teacher[..., block, :] @ teacher_columns[..., right, :].mT
                stripe = factors[0].mul_(torch.addcmul(rows, others, ratio, value=-1))
                stripe.addcmul_(factors[1], rows).addcmul_(factors[2], others)
                result[..., block, :] += stripe @ columns[..., right, :]
                if ctx.sizes is None and block.stop < student.shape[-2]:
                    below = stripe[..., block.stop - block.start :]
                    result[..., block.stop :, :] += below.mT @ student[..., block, :]
        return result, None, None, None


def _differences(own: Tensor, other: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Write own · G + other · H as x · (G - ratio · H) + y · G + z · H where both nearly cancel.

    Where the student is close to the teacher, G - ratio · H is small, and what is rounded is small.
    """
    rest = own + other / ratio
    close = rest.abs() < own.abs() / 2
    return (
        torch.where(close, -other / ratio, 0),
        torch.where(close, rest, own),
        torch.where(close, 0, other),
    )


class _Moments(torch.autograd.Function):
    """Distances of rows, from ⟨G_i, G_i⟩, ⟨G_i, H_i⟩ and ⟨H_i, H_i⟩ of each row in float64."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, normalize_rows: bool, spans_ranks: bool
    ) -> Tensor:
        ctx.spans_ranks = spans_ranks
        moments = _moments(student, teacher, student.dtype, spans_ranks)
        if student.dtype != torch.float64 and _too_near(*moments):
            moments = _moments(student, teacher, torch.float64, spans_ranks)
        squares, mixed, teacher_squares = moments
        distances = student.new_empty(student.shape[:-1])
        slopes = mixed.new_empty(2, *distances.shape)  # of each distance, by the first two products
        for block in _feature_blocks(student, teacher):
            a, b = (x[..., block, :].to(mixed.dtype) for x in (student, teacher))
            pairs = ((a @ squares, a), (b @ mixed, a), (b @ teacher_squares, b))
            products = torch.stack([torch.linalg.vecdot(*pair) for pair in pairs]).double()
            distances[..., block], slopes[..., block] = _expanded_square(products, normalize_rows)
        ctx.save_for_backward(student, teacher, squares, mixed, slopes)
        return distances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, squares, mixed, slopes = ctx.saved_tensors
        grad = (grad.to(mixed.dtype) * slopes).unsqueeze(-1)
        result = torch.empty_like(student)
        with torch.autocast(student.device.type, enabled=False):
            on_squares, on_mixed = torch.zeros_like(squares), torch.zeros_like(mixed)
            for block in _feature_blocks(student, teacher):
                a, b = (x[..., block, :].to(mixed.dtype) for x in (student, teacher))
                on_squares += (2 * grad[0, ..., block, :] * a).mT @ a
                on_mixed += (grad[1, ..., block, :] * b).mT @ a
            on_squares, on_mixed = _sum_over_ranks((on_squares, on_mixed), ctx.spans_ranks)
            maps = torch.cat((2 * squares, on_squares, mixed, on_mixed), dim=-2)
            for block in _feature_blocks(student, teacher):
                a, b = (x[..., block, :].to(mixed.dtype) for x in (student, teacher))
                rows = (grad[0, ..., block, :] * a, a, grad[1, ..., block, :] * b, b)
                result[..., block, :] = torch.cat(rows, dim=-1) @ maps
        return result, None, None, None


def _feature_blocks(student: Tensor, teacher: Tensor) -> Iterator[slice]:
    matrices = student.shape[:-2].numel()
    entries = matrices * (student.shape[-1] + teacher.shape[-1])
    return _blocks(student.shape[-2], entries, copies=4)  # of a block, in backward


def _moments(
    student: Tensor, teacher: Tensor, dtype: torch.dtype, spans_ranks: bool
) -> tuple[Tensor, ...]:
    """AᵀA, BᵀA and BᵀB of the student's rows A and the teacher's rows B, of all ranks."""
    leading, width, teacher_width = student.shape[:-2], student.shape[-1], teacher.shape[-1]
    squares = student.new_zeros(*leading, width, width, dtype=dtype)
    mixed = student.new_zeros(*leading, teacher_width, width, dtype=dtype)
    teacher_squares = student.new_zeros(*leading, teacher_width, teacher_width, dtype=dtype)
    for block in _feature_blocks(student, teacher):
        a, b = (x[..., block, :].to(dtype) for x in (student, teacher))
        squares += a.mT @ a
        mixed += b.mT @ a
        teacher_squares += b.mT @ b
    return _sum_over_ranks((squares, mixed, teacher_squares), spans_ranks)


def _sum_over_ranks(matrices: tuple[Tensor, ...], spans_ranks: bool) -> tuple[Tensor, ...]:
    if not spans_ranks:
        return matrices
    flat = all_sum(torch.cat([matrix.flatten() for matrix in matrices]))
    parts = torch.split(flat, [matrix.numel() for matrix in matrices])
    return tuple(part.view_as(matrix) for part, matrix in zip(parts, matrices, strict=True))


def _too_near(squares: Tensor, mixed: Tensor, teacher_squares: Tensor) -> bool:
    """Whether float32 would lose what tells some pair of Gram matrices apart, or overflow.

    ⟨G, H⟩ = |BᵀA|²; every rank has the same moments, so that all decide alike.
    """
    norms = [torch.linalg.matrix_norm(x.double()) for x in (squares, mixed, teacher_squares)]
    apart = 1 - norms[1].square() / (norms[0] * norms[2]) >= _NEAR  # false where it is 0 / 0
    small = (norms[0] < _LARGE) & (norms[2] < _LARGE)
    return not bool((apart & small).all())
