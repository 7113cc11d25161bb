"""Codes and pairs of MM-NN hashing; the definition is in :mod:`congener.losses.mm_hashing`."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from congener.errors import ShapeError
from congener.ops.checks import check_floating, check_labels, check_mask
from congener.ops.collectives import Scope, all_sum, batch_size, gather_rows
from congener.ops.reduction import blank_rows

__all__ = ["binary_codes", "check_codes", "check_margins", "pair_terms"]


def binary_codes(code: Float[Tensor, "batch bits"]) -> Float[Tensor, "batch bits"]:
    """Read each bit of a code: 1 above zero, else −1; a constant.

    Two such codes a, b differ in ‖a − b‖² / 4 = (bits − ⟨a, b⟩) / 2 bits.

    Raises:
        ValueError: the code is not floating point.

    >>> binary_codes(torch.tensor([[0.3, 0.0, -0.9]]))
    tensor([[ 1., -1., -1.]])
    """
    check_floating(code=code)
    return torch.where(code > 0, 1.0, -1.0).to(code.dtype)


def check_codes(
    first_code: Tensor, second_code: Tensor, labels: Tensor, mask: Tensor | None
) -> None:
    """Codes must be floating point, of one shape (batch, bits); labels and mask must fit.

    Raises:
        ShapeError: they are not.
        ValueError: a tensor has the wrong type.
    """
    check_floating(first_code=first_code, second_code=second_code)
    first, second = tuple(first_code.shape), tuple(second_code.shape)
    if first != second or len(first) != 2:
        raise ShapeError(
            f"first_code {first} and second_code {second} must have one shape, (batch, bits); "
            "let both networks end in as many outputs, and feed them the same samples."
        )
    check_mask(mask, first_code, "first_code")
    check_labels(labels, first_code, "first_code")


def check_margins(**margins: float) -> None:
    """Margins must be finite and not negative.

    Raises:
        ValueError: one is not.
    """
    for name, margin in margins.items():
        if not (margin >= 0 and math.isfinite(margin)):
            raise ValueError(f"{name} must be finite and not negative, not {margin}.")


def pair_terms(
    codes: tuple[Tensor, ...],
    labels: Tensor,
    margins: tuple[float, float, float],
    weights: tuple[float, float, float],
    negative_weight: float,
    mask: Tensor | None,
    scope: Scope,
) -> Tensor:
    """What each sample's pairs add to the terms between, within the first, within the second.

    Args:
        codes: of the two modalities, (batch, bits).
        labels: (batch,).
        margins: m of the three terms.
        weights: of the three terms.
        negative_weight: weight of the unlike pairs.
        mask: which samples count, (batch,).
        scope: whose samples make pairs.

    Returns:
        (batch,), whose mean over the samples in scope is the weighted sum of the terms.
    """
    first, second = (blank_rows(code, mask) for code in codes)
    all_first, _ = gather_rows(first, scope=scope)
    all_second, _ = gather_rows(second, scope=scope)
    shares = _pair_shares(labels, first, negative_weight, mask, scope)
    between = _pair_rows(first, all_second, margins[0], shares)
    first_own = _pair_rows(first, all_first, margins[1], shares)
    second_own = _pair_rows(second, all_second, margins[2], shares)
    return weights[0] * between + weights[1] * first_own + weights[2] * second_own


def _pair_shares(
    labels: Tensor, code: Tensor, negative_weight: float, mask: Tensor | None, scope: Scope
) -> tuple[Tensor, Tensor]:
    """How much the like and the unlike pairs count, (rows, rows in scope) each.

    Half the number of samples over that of such pairs: the mean over samples is half that over
    pairs.
    """
    kept = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask
    all_labels, _ = gather_rows(labels, scope=scope)
    all_kept, _ = gather_rows(kept, scope=scope)
    both = kept.unsqueeze(1) & all_kept
    same = labels.unsqueeze(1) == all_labels
    alike, unlike = (both & same).to(code.dtype), (both & ~same).to(code.dtype)
    counts = all_sum(torch.stack((alike.sum(), unlike.sum())), scope=scope).clamp(min=1)
    half = batch_size(code, mask, scope=scope) / 2
    return half / counts[0] * alike, negative_weight * half / counts[1] * unlike


def _pair_rows(
    codes: Tensor, everyone: Tensor, margin: float, shares: tuple[Tensor, Tensor]
) -> Tensor:
    # Equal codes of unlike samples get no push: cdist's gradient is 0 where there is no direction.
    distances = torch.cdist(codes, everyone, compute_mode="donot_use_mm_for_euclid_dist")
    pulled = shares[0] * distances.square()
    pushed = shares[1] * (margin - distances).relu().square()
    return (pulled + pushed).sum(dim=1)
