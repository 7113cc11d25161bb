"""From one number for each sample to what a loss returns."""

from typing import Literal

import torch
from torch import Tensor

from congener.ops.checks import check_choice
from congener.ops.collectives import Scope, batch_size, check_scope, global_mean

__all__ = ["Reduction", "blank_rows", "check_reduction", "needs_company", "reduce_samples"]

Reduction = Literal["mean", "sum", "none"]
"""``"mean"`` over the samples, their ``"sum"``, or ``"none"``: one contribution for each."""


def check_reduction(reduction: str, scope: str) -> None:
    """A reduction and a scope must be known words.

    Raises:
        ValueError: one is not.
    """
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    check_scope(scope)


def blank_rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zero the masked rows of ``x`` (batch, ...), whatever they hold; they get no gradient."""
    if mask is None:
        return x
    return x.masked_fill(~mask.reshape(-1, *[1] * (x.dim() - 1)), 0)


def needs_company(
    per_sample: Tensor, mask: Tensor | None = None, *, scope: Scope = "global"
) -> Tensor:
    """Zero the contribution of a sample that is alone in its batch, where it carries no signal."""
    return torch.where(batch_size(per_sample, mask, scope=scope) > 1, per_sample, 0)


def reduce_samples(
    per_sample: Tensor, mask: Tensor | None, *, reduction: Reduction, scope: Scope
) -> Tensor:
    """Reduce contributions whose mean is the loss.

    Args:
        per_sample: one contribution for each row of this process, (batch,).
        mask: which rows count, (batch,); the others contribute 0.
        reduction: ``"mean"`` and ``"sum"`` run over the unmasked rows in scope, ``"none"`` returns
            the contributions of this process' rows.
        scope: whose rows make the batch.
    """
    if reduction == "none":
        return blank_rows(per_sample, mask)
    mean = global_mean(per_sample, mask, scope=scope)
    return mean if reduction == "mean" else mean * batch_size(per_sample, mask, scope=scope)
