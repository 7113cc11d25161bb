"""The scores of CRD and what it makes of them; the definition is in :mod:`congener.losses.crd`."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from congener.errors import ShapeError
from congener.ops.checks import check_floating, check_mask
from congener.ops.collectives import Scope, batch_size, gather_rows
from congener.ops.precision import upcast
from congener.ops.reduction import blank_rows

__all__ = ["Scores", "check_pairs", "contrast", "log_normalizers_of", "scores_of"]

_EPS = 1e-7
_ROWS = 16


def check_pairs(
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    contrast_index: Tensor,
    student_bank: Tensor,
    teacher_bank: Tensor,
    mask: Tensor | None,
) -> None:
    """Embeddings, banks and candidates must fit each other.

    Raises:
        ShapeError: they do not.
        ValueError: a tensor has the wrong type.
    """
    check_floating(student_embedding=student_embedding, teacher_embedding=teacher_embedding)
    check_floating(student_bank=student_bank, teacher_bank=teacher_bank)
    student, teacher = tuple(student_embedding.shape), tuple(teacher_embedding.shape)
    if student != teacher or len(student) != 2:
        raise ShapeError(
            f"student_embedding {student} and teacher_embedding {teacher} must have one shape, "
            "(batch, width); embed both features with linear layers of one width."
        )
    banks = tuple(student_bank.shape), tuple(teacher_bank.shape)
    if banks[0] != banks[1] or len(banks[0]) != 2 or banks[0][1] != student[1]:
        raise ShapeError(
            f"student_bank {banks[0]} and teacher_bank {banks[1]} must have one shape, (samples, "
            f"width), for student_embedding {student}; give each training sample a row."
        )
    index = tuple(contrast_index.shape)
    if len(index) != 2 or index[0] != student[0] or index[1] < 2:
        raise ShapeError(
            f"contrast_index {index} must be (batch, 1 + negatives) for student_embedding "
            f"{student}; put the positive's row of the banks first, then at least one negative's."
        )
    if contrast_index.dtype != torch.int64:
        raise ValueError(f"contrast_index must be int64, not {contrast_index.dtype}; call .long().")
    check_mask(mask, student_embedding, "student_embedding")


class Scores(NamedTuple):
    """Of each sample's positive, (batch,), and of its negatives, (batch, K)."""

    positive: Tensor
    negative: Tensor


def scores_of(
    embeddings: tuple[Tensor, Tensor],
    banks: tuple[Tensor, Tensor],
    contrast_index: Tensor,
    temperature: float,
    mask: Tensor | None,
) -> tuple[Scores, Scores]:
    """Inner products of each embedding with the chosen rows of its bank, over the temperature.

    Args:
        embeddings: the student's and the teacher's, (batch, width).
        banks: the teacher's and the student's, (samples, width).
        contrast_index: (batch, 1 + K), rows of the banks, the positive's first.
        temperature: τ.
        mask: which samples count, (batch,).

    Returns:
        The student's and the teacher's.
    """
    first, second, *known = upcast(*embeddings, *banks)
    first, second = (blank_rows(x, mask) / temperature for x in (first, second))
    index = blank_rows(contrast_index, mask)
    return _chosen(first, known[0].detach(), index), _chosen(second, known[1].detach(), index)


def _chosen(embedding: Tensor, bank: Tensor, index: Tensor) -> Scores:
    """Inner products with some rows: with the whole bank, then the choice, a few samples at once.

    That needs far less memory and time than a copy of the chosen rows.
    """
    positive, negative = [], []
    for rows, chosen in zip(torch.split(embedding, _ROWS), torch.split(index, _ROWS), strict=True):
        scores = _Choice.apply(rows @ bank.T, chosen[:, :1], chosen[:, 1:])
        positive.append(scores[0])
        negative.append(scores[1])
    return Scores(torch.cat(positive).squeeze(1), torch.cat(negative))


class _Choice(torch.autograd.Function):
    """Some entries of each row; unlike ``gather``, it does not keep the rows for backward."""

    @staticmethod
    def forward(ctx: Any, products: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
        ctx.shape = products.shape
        ctx.save_for_backward(*columns)
        return tuple(products.gather(1, x) for x in columns)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        result = grads[0].new_zeros(ctx.shape)
        for columns, grad in zip(ctx.saved_tensors, grads, strict=True):
            result.scatter_add_(1, columns, grad)
        return result, None, None


def log_normalizers_of(
    scores: tuple[Scores, Scores], samples: int, mask: Tensor | None, scope: Scope
) -> Tensor:
    """Logarithms of both Z, (2,): the mean of exp(score) over the batch, times ``samples``.

    They are -inf where nothing counts.
    """
    sums = [x.negative.detach().logsumexp(dim=1).logaddexp(x.positive.detach()) for x in scores]
    rows = torch.stack(sums, dim=1)
    if mask is not None:
        rows = rows.masked_fill(~mask.unsqueeze(1), -torch.inf)
    everyone, _ = gather_rows(rows, scope=scope)
    count = batch_size(rows, mask, scope=scope) * (1 + scores[0].negative.shape[1])
    return everyone.logsumexp(dim=0) - count.log() + math.log(samples)


def contrast(scores: tuple[Scores, Scores], log_normalizers: Tensor, samples: int) -> Tensor:
    """What each sample adds to the loss, (batch,), given log Z of both scores; it uses them up."""
    negatives = scores[0].negative.shape[1]
    chance = negatives / samples
    per_sample = torch.full_like(scores[0].positive, 2 * negatives * math.log1p(_EPS / chance))
    for score, log_z in zip(scores, log_normalizers.nan_to_num(neginf=0.0), strict=True):
        # With log h / (c + ε), the log-odds, both logarithms are a softplus.
        even = log_z.detach().to(per_sample.dtype) + math.log(chance + _EPS)
        per_sample = per_sample + F.softplus(even - score.positive, threshold=40)
        odds = score.negative.sub_(even)  # in place: a copy is a fifth of the memory needed
        per_sample = per_sample + F.softplus(odds, threshold=40).sum(dim=1)
    return per_sample
