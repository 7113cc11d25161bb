"""What SSKD's terms share: views as rows, the match of copies, and the selective transfer.

Rows are (batch · views, ...): the views of a sample follow each other, the untransformed one first.
A transformed copy is a row of (batch · (views − 1), ...), in the same order.
"""

import torch
from torch import Tensor

from congener.errors import ShapeError
from congener.ops.checks import check_floating, check_mask
from congener.ops.collectives import Scope, all_sum, batch_size, gather_rows
from congener.ops.reduction import Reduction, blank_rows, reduce_samples
from congener.ops.relations import unit_rows

__all__ = ["check_selection", "check_views", "copies_of", "kept_mean", "match", "transferred"]


def check_selection(views: int, ratio: float = 1.0) -> None:
    """A sample must have two views or more, and a ratio lie between 0 and 1.

    Raises:
        ValueError: it does not.
    """
    if views < 2:
        raise ValueError(f"views must be at least 2, the untransformed one included, not {views}.")
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must lie between 0 and 1, not {ratio}.")


def check_views(rows: Tensor, name: str, views: int, mask: Tensor | None) -> None:
    """Rows must be floating point (batch · views, channels); the mask has one entry a sample.

    Raises:
        ShapeError: they are not, or the mask does not fit.
        ValueError: fewer than two views, or a wrong type.
    """
    check_selection(views)
    check_floating(**{name: rows})
    if rows.dim() != 2 or rows.shape[0] % views:
        raise ShapeError(
            f"{name} {tuple(rows.shape)} must be (batch · views, channels) for views = {views}; "
            "lay the views of each sample under each other, the untransformed one first."
        )
    check_mask(mask, rows[::views], f"the untransformed rows of {name}")


def copies_of(rows: Tensor, views: int) -> Tensor:
    """The rows of the transformed copies."""
    samples, width = rows.shape[0] // views, rows.shape[1]
    return rows.reshape(samples, views, width)[:, 1:].flatten(0, 1)


def match(features: Tensor, views: int, mask: Tensor | None, scope: Scope) -> tuple[Tensor, Tensor]:
    """Score each copy against the untransformed samples in scope.

    Args:
        features: (batch · views, channels).
        views: how many rows a sample has.
        mask: which samples count, (batch,).
        scope: whose samples are candidates.

    Returns:
        Cosines (copies, candidates), -inf where a candidate does not count, and the column of each
        copy's own sample, (copies,).
    """
    rows = None if mask is None else mask.repeat_interleave(views)
    features = unit_rows(blank_rows(features, rows))
    candidates, own = gather_rows(features[::views], scope=scope)
    kept = torch.ones_like(features[::views, 0], dtype=torch.bool) if mask is None else mask
    present, _ = gather_rows(kept, scope=scope)
    columns = torch.arange(candidates.shape[0], device=features.device)
    targets = columns[own].repeat_interleave(views - 1)
    # A masked sample stays a candidate of its own copies: their rows do not count, but are finite.
    absent = ~(present | (targets.unsqueeze(1) == columns))
    return (copies_of(features, views) @ candidates.T).masked_fill(absent, -torch.inf), targets


def transferred(
    scores: Tensor, targets: Tensor, ratio: float, mask: Tensor | None, scope: Scope
) -> Tensor:
    """Which copies the teacher passes on: all it gets right, and the best of the others.

    Args:
        scores: the teacher's, (copies, candidates).
        targets: the right column of each copy, (copies,).
        ratio: the share of the wrong ones that is kept, rounded down over all copies in scope.
        mask: which samples count, (batch,).
        scope: whose copies are ranked together.

    Returns:
        Flags of this process' copies, (copies,).
    """
    right = scores.gather(1, targets.unsqueeze(1))
    level = (scores > right).sum(dim=1).to(scores.dtype)
    gap = (torch.cat((right, scores), dim=1) - right).amax(dim=1)
    present = torch.ones_like(level)
    if mask is not None:
        present = mask.repeat_interleave(level.shape[0] // max(mask.shape[0], 1)).to(level.dtype)
    everyone, own = gather_rows(torch.stack((level, gap, present), dim=1), scope=scope)
    level, gap, counts = everyone[:, 0], everyone[:, 1], everyone[:, 2] > 0
    wrong = counts & (level > 0)
    # Stable sorts, the lesser key first: by level, then by gap, then by place.
    order = gap.argsort(stable=True)
    order = order[level.masked_fill(~wrong, torch.inf)[order].argsort(stable=True)]
    place = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=order.device))
    chosen = place < (ratio * wrong.sum().double()).floor()
    return (counts & (~wrong | chosen))[own]


def kept_mean(
    per_copy: Tensor,
    kept: Tensor,
    mask: Tensor | None,
    views: int,
    *,
    reduction: Reduction,
    scope: Scope,
) -> Tensor:
    """Average over the kept copies in scope, as contributions of the samples here."""
    count = all_sum(kept.sum(dtype=per_copy.dtype), scope=scope).clamp(min=1)
    sums = torch.where(kept, per_copy, 0).reshape(-1, views - 1).sum(dim=1)
    per_sample = sums / count * batch_size(sums, mask, scope=scope)
    return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)
