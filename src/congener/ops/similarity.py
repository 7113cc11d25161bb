"""Cosines and Gram matrices, over the rows of one process or of all."""

from typing import Literal

import torch
from torch import Tensor

from congener.ops.checks import check_choice
from congener.ops.collectives import Scope, all_sum, batch_size, gather_rows
from congener.ops.reduction import blank_rows

__all__ = [
    "column_correlations",
    "column_cosines",
    "cosine_shares",
    "gram",
    "norm_product",
    "row_correlations",
]


def norm_product(
    first: Tensor,
    second: Tensor,
    *,
    dim: int,
    eps: float = 1e-8,
    mode: Literal["add", "clamp"] = "add",
    scope: Scope = "local",
) -> Tensor:
    """The denominators of the cosines along an axis, which stays with length 1.

    Arguments are those of :func:`cosine_shares`.
    """
    check_choice("mode", mode, ("add", "clamp"))
    squares = torch.stack((first.square().sum(dim), second.square().sum(dim)))
    norms = _sqrt(all_sum(squares, scope=scope)).unsqueeze(dim + 1)
    return norms[0] * norms[1] + eps if mode == "add" else norms.clamp(min=eps).prod(dim=0)


def cosine_shares(
    first: Tensor,
    second: Tensor,
    *,
    dim: int,
    eps: float = 1e-8,
    mode: Literal["add", "clamp"] = "add",
    scope: Scope = "local",
) -> Tensor:
    """Split each cosine along an axis over the entries that make it up.

    Args:
        first: (rows, columns).
        second: (rows, columns).
        dim: the axis along which the vectors lie; the shares sum to the cosine along it.
        eps: keeps the cosine of zero vectors finite.
        mode: ``"add"`` adds ``eps`` to the product of the norms; ``"clamp"`` raises each norm to
            at least ``eps``.
        scope: ``"global"`` lets vectors along the rows run over all processes.

    Returns:
        The shares, (rows, columns). A zero vector has cosine 0, and a finite gradient.

    >>> a, b = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])
    >>> cosine_shares(a, b, dim=1)
    tensor([[0.4800, 0.4800]])
    """
    return first * second / norm_product(first, second, dim=dim, eps=eps, mode=mode, scope=scope)


def column_cosines(
    first: Tensor, second: Tensor, mask: Tensor | None = None, *, scope: Scope = "local"
) -> Tensor:
    """Split the mean cosine of the columns over the rows.

    Args:
        first: (rows, columns), masked rows zero.
        second: (rows, columns), likewise.
        mask: which rows count, (rows,).
        scope: ``"global"`` lets the columns run over all processes.

    Returns:
        One number for each row of this process; their mean over the rows in scope is the mean
        over the columns of the cosines, with ``eps`` added as in :func:`cosine_shares`.
    """
    rows = batch_size(first, mask, scope=scope)
    return rows * cosine_shares(first, second, dim=0, scope=scope).mean(dim=1)


def row_correlations(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation of each pair of rows, (rows,), ``eps`` added to the norms' product."""
    first, second = first - first.mean(dim=1, keepdim=True), second - second.mean(1, keepdim=True)
    return cosine_shares(first, second, dim=1).sum(dim=1)


def column_correlations(
    first: Tensor, second: Tensor, mask: Tensor | None = None, *, scope: Scope = "local"
) -> Tensor:
    """Split the mean Pearson correlation of the columns over the rows.

    Arguments and result are those of :func:`column_cosines`, of columns with their means removed.
    """
    sums = all_sum(torch.stack((first.sum(dim=0), second.sum(dim=0))), scope=scope)
    means = sums / batch_size(first, mask, scope=scope)
    first, second = blank_rows(first - means[0], mask), blank_rows(second - means[1], mask)
    return column_cosines(first, second, mask, scope=scope)


def gram(features: Tensor, *, scope: Scope = "local") -> Tensor:
    """Inner products of this process' rows with all rows in scope, (own rows, rows in scope)."""
    everyone, _ = gather_rows(features, scope=scope)
    return features @ everyone.T


def _sqrt(square: Tensor) -> Tensor:
    """The square root, with gradient 0 at 0 as a norm has it."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1).sqrt(), 0)
