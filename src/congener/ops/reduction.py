"""From one number for each sample to what a loss returns."""

import math
from typing import Literal

import torch
from torch import Tensor

from congener.errors import NonFiniteLossError
from congener.ops.checks import check_choice
from congener.ops.collectives import Scope, batch_size, check_scope, total_and_count

__all__ = [
    "Reduction",
    "blank_rows",
    "check_reduction",
    "labelled",
    "needs_company",
    "reduce_samples",
]

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
    """Zero the masked rows of ``x`` (batch, ...), whatever they hold; they get no gradient.

    Raises:
        NonFiniteLossError: another row holds NaN, which some formulas would pass over in silence;
            looked at on a CPU only, where it does not wait for the device.
    """
    if mask is not None:
        x = x.masked_fill(~mask.reshape(-1, *[1] * (x.dim() - 1)), 0)
    _refuse_nan(x, "An input of the loss")
    return x


def labelled(labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Which rows count where labels do, (batch,): the unmasked ones that are not negative."""
    return labels >= 0 if mask is None else mask & (labels >= 0)


def needs_company(
    per_sample: Tensor, mask: Tensor | None = None, *, scope: Scope = "global"
) -> Tensor:
    """Zero the contribution of a sample that is alone in its batch, where it carries no signal."""
    return torch.where(batch_size(per_sample, mask, scope=scope) > 1, per_sample, 0)


def reduce_samples(
    per_sample: Tensor,
    mask: Tensor | None,
    *,
    reduction: Reduction,
    scope: Scope,
    of_pairs: bool = False,
) -> Tensor:
    """Reduce contributions whose mean is the loss.

    Args:
        per_sample: one contribution for each row of this process, (batch,).
        mask: which rows count, (batch,); the others contribute 0.
        reduction: ``"mean"`` and ``"sum"`` run over the unmasked rows in scope, ``"none"`` returns
            the contributions of this process' rows.
        scope: whose rows make the batch.
        of_pairs: each is a sum over the unmasked rows in scope, to be divided by their number.

    Raises:
        NonFiniteLossError: an unmasked contribution is NaN; looked at on a CPU only.
    """
    if reduction == "none":
        if of_pairs:
            per_sample = per_sample / batch_size(per_sample, mask, scope=scope)
        return blank_rows(per_sample, mask)
    _refuse_nan(per_sample if mask is None else per_sample.masked_fill(~mask, 0), "The loss")
    total, count = total_and_count(per_sample, mask, scope=scope)
    if reduction == "sum":
        return total / count if of_pairs else total
    return total / (count * count) if of_pairs else total / count


def _refuse_nan(rows: Tensor, what: str) -> None:
    if rows.device.type != "cpu" or torch.compiler.is_compiling():
        return
    rows = rows.detach()
    try:
        # One NaN makes the sum NaN, and the sum is quick; so do infinities of both signs.
        if not (rows.is_floating_point() and math.isnan(rows.sum()) and rows.isnan().any()):
            return
    except RuntimeError:  # within torch.func.vmap there are no numbers to look at
        return
    places = rows.flatten(1).isnan().any(dim=1) if rows.dim() > 1 else rows.isnan()
    found = places.nonzero().flatten().tolist()
    others = f" and {len(found) - 1} more" if len(found) > 1 else ""
    raise NonFiniteLossError(
        f"{what} is NaN for sample {found[0]}{others} of {len(rows)}; look at what computed it "
        "(a diverging network, a division by zero), or leave such samples out with `mask`."
    )
