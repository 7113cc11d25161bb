r"""Sums, means and rows over all processes, with gradient.

Every collective is differentiated by its exact adjoint: the backward of a sum over ranks is the sum
over ranks of the incoming gradients. A rank's gradient is then that of the *sum* of all ranks'
losses, and what DDP makes of it, the mean over ranks, is the gradient of the mean of all ranks'
losses. Where every rank computes the same global loss, this is the gradient of one process that
holds the whole batch, with no factor to remember, ragged and empty ranks included.

Every rank must therefore call backward, as under DDP it does. Without a default process group of
more than one process nothing here communicates.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from congener.ops.checks import check_choice, check_mask
from congener.ops.precision import upcast

__all__ = [
    "Scope",
    "all_sum",
    "batch_size",
    "check_scope",
    "gather_once",
    "gather_rows",
    "global_mean",
    "lone_sample_expected",
    "own_place",
    "rank_sizes",
    "total_and_count",
    "warn_if_alone",
]

Scope = Literal["global", "local"]
"""Whose rows a batch is: those of ``"global"``, all processes, or of ``"local"``, this one."""


_WARNED: set[str] = set()
"""The losses that warned of a batch of one."""


def check_scope(scope: str) -> None:
    """A scope must be ``"global"`` or ``"local"``."""
    check_choice("scope", scope, ("global", "local"))


def warn_if_alone(rows: Tensor, name: str, *, scope: Scope) -> None:
    """Warn, once in a process, that a loss of relations says nothing about a batch of one.

    Only a batch whose size this process knows is looked at; a mask is not.

    Args:
        rows: rows of this process, (batch, ...).
        name: the loss.
        scope: whose rows make the batch.
    """
    if torch.compiler.is_compiling() or len(rows) != 1 or _spans_ranks(scope) or name in _WARNED:
        return
    warnings.warn(
        f"{name} relates the samples of a batch: a batch of one gives it no gradient; use larger "
        "batches, and drop a last batch of one sample (drop_last=True).",
        stacklevel=3,
    )
    _WARNED.add(name)


@contextmanager
def lone_sample_expected() -> Iterator[None]:
    """Within it, a batch of one is there on purpose: :func:`warn_if_alone` is as if not called."""
    before = set(_WARNED)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* a batch of one ")
        try:
            yield
        finally:
            _WARNED.intersection_update(before)


def all_sum(x: Tensor, *, scope: Scope = "global") -> Tensor:
    """Sum a tensor of one shape over all processes; in local scope, return it as it is."""
    return _sum_over_ranks(x) if _spans_ranks(scope) else x


def batch_size(x: Tensor, mask: Tensor | None = None, *, scope: Scope = "global") -> Tensor:
    """Count the unmasked rows of a batch; 1 where there are none, so that it can divide.

    Args:
        x: rows of this process, (batch, ...); its type is the type of the count.
        mask: which rows count, (batch,).
        scope: whose rows to count.
    """
    return all_sum(_kept(x, mask), scope=scope).clamp(min=1)


def _kept(x: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return torch.full((), x.shape[0], dtype=x.dtype, device=x.device)
    return mask.sum(dtype=x.dtype)


def global_mean(values: Tensor, mask: Tensor | None = None, *, scope: Scope = "global") -> Tensor:
    """Average the unmasked values of all processes.

    Args:
        values: one number for each row of this process, (batch,).
        mask: which rows count, (batch,); masked values may be anything, NaN included.
        scope: ``"local"`` averages the values of this process alone.

    Returns:
        The mean, the same on every rank; 0, still attached to ``values``, where nothing counts.

    >>> global_mean(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([True, True, False]))
    tensor(1.5000)
    """
    check_scope(scope)
    check_mask(mask, values, "values")
    total, count = total_and_count(values, mask, scope=scope)
    return total / count


def total_and_count(
    values: Tensor, mask: Tensor | None = None, *, scope: Scope = "global"
) -> tuple[Tensor, Tensor | int]:
    """The sum of the unmasked values and their number, 1 where there are none, in one message.

    Arguments are those of :func:`global_mean`, unchecked.
    """
    (values,) = upcast(values)
    spans_ranks = _spans_ranks(scope)
    if torch.is_grad_enabled() and not values.requires_grad and spans_ranks:
        # A rank whose values carry no gradient must not leave the others waiting in backward.
        values = values.detach().requires_grad_()
    if mask is None and not spans_ranks:
        return values.sum(), max(1, values.shape[0])
    total = (values if mask is None else values.masked_fill(~mask, 0)).sum()
    kept = _kept(values, mask)
    if spans_ranks:
        total, kept = all_sum(torch.stack((total, kept)), scope=scope).unbind()
    return total, kept.detach().clamp(min=1)


def gather_rows(x: Tensor, *, scope: Scope = "global") -> tuple[Tensor, slice]:
    """Lay the rows of all processes under each other, in rank order.

    Args:
        x: rows of this process, (batch, ...); their number may differ between ranks.
        scope: in ``"local"`` scope the rows are this process' own.

    Returns:
        The rows of all processes, with gradient, and the slice that is this process' own.
    """
    counts = rank_sizes(x, scope=scope)
    if counts is None:
        return x, slice(0, x.shape[0])
    everyone: Tensor = _GatherRows.apply(x, counts)
    return everyone, own_place(counts)


def own_place(sizes: list[int]) -> slice:
    """Where this process' rows lie among those of all, whose numbers :func:`rank_sizes` gives."""
    before = sum(sizes[: dist.get_rank()])
    return slice(before, before + sizes[dist.get_rank()])


def rank_sizes(x: Tensor, *, scope: Scope = "global") -> list[int] | None:
    """How many rows each process has, in rank order; None where no rows but its own are in scope.

    Args:
        x: rows of this process, (batch, ...).
        scope: whose rows make the batch.
    """
    if not _spans_ranks(scope):
        return None
    sizes = torch.zeros(_world_size(), dtype=torch.int64, device=x.device)
    sizes[dist.get_rank()] = x.shape[0]
    dist.all_reduce(sizes)
    counts: list[int] = sizes.tolist()
    return counts


def gather_once(x: Tensor, sizes: list[int] | None) -> Tensor:
    """Lay the rows of all processes under each other, without gradient.

    Args:
        x: rows of this process, (batch, ...).
        sizes: how many rows each process has, from :func:`rank_sizes`; with None, return ``x``.
    """
    if sizes is None:
        return x
    sent = (x.to(torch.uint8) if x.dtype == torch.bool else x.detach()).contiguous()
    gathered = _exchange(sent, sizes) if x.device.type == "cpu" else _all_gather(sent, sizes)
    return gathered.to(x.dtype)


def _exchange(sent: Tensor, sizes: list[int]) -> Tensor:
    """Each process sends its rows to each other: gloo's own gathering copies all of them twice."""
    everyone = sent.new_empty(sum(sizes), *sent.shape[1:])
    pending = []
    for rank, rows in enumerate(torch.split(everyone, sizes)):
        if rank == dist.get_rank():
            rows.copy_(sent)
            continue
        if rows.numel():
            pending.append(dist.irecv(rows, rank))
        if sent.numel():
            pending.append(dist.isend(sent, rank))
    for message in pending:
        assert message is not None
        message.wait()
    return everyone


def _all_gather(sent: Tensor, sizes: list[int]) -> Tensor:
    """Collectives want equal shapes: every rank sends as many rows as the largest has."""
    most = max(1, *sizes)
    if sent.shape[0] < most:
        sent = torch.cat((sent, sent.new_zeros(most - sent.shape[0], *sent.shape[1:])))
    received = sent.new_empty(len(sizes), *sent.shape)
    dist.all_gather(list(received), sent)
    if min(sizes) == most:
        return received.flatten(0, 1)
    return torch.cat([block[:count] for block, count in zip(received, sizes, strict=True)])


def _sum_and_scatter(x: Tensor, sizes: list[int]) -> Tensor:
    """Sum over the processes; each keeps the sum of the rows that are its own."""
    blocks = []
    for rows in torch.split(x, sizes):
        block = x.new_zeros(max(1, *sizes), *x.shape[1:])
        block[: rows.shape[0]] = rows
        blocks.append(block)
    received = torch.empty_like(blocks[0])
    dist.reduce_scatter(received, blocks)
    return received[: sizes[dist.get_rank()]]


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks; the adjoint sums over ranks and scatters."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        return gather_once(x, sizes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _ScatterSum.apply(grad, ctx.sizes), None


class _ScatterSum(torch.autograd.Function):
    """The adjoint of :class:`_GatherRows`, and the other way round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        return _sum_and_scatter(x, sizes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _GatherRows.apply(grad, ctx.sizes), None


class _SumOverRanks(torch.autograd.Function):
    """A sum over ranks; it is its own adjoint, so it can be differentiated again and again."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> Tensor:
        return _sum_over_ranks(grad)


def _sum_over_ranks(x: Tensor) -> Tensor:
    total: Tensor = _SumOverRanks.apply(x)
    return total


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _spans_ranks(scope: Scope) -> bool:
    return scope == "global" and _world_size() > 1
