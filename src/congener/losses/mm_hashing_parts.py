"""Codes and pairs of MM-NN hashing; the definition is in :mod:`congener.losses.mm_hashing`."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from congener.errors import ShapeError
from congener.losses.mm_hashing_pairs import Shares, distances_between, labelled_shares
from congener.ops.checks import check_floating, check_labels, check_mask
from congener.ops.collectives import Scope, gather_rows
from congener.ops.reduction import blank_rows, labelled

__all__ = [
    "binary_codes",
    "check_codes",
    "check_margins",
    "known_rows",
    "pair_rows",
    "pair_terms",
]


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
    if labels.dim() != 2:
        check_labels(labels, first_code, "first_code")
    elif labels.shape[0] != first[0] or not labels.shape[1]:
        raise ShapeError(
            f"labels {tuple(labels.shape)} must be (batch,) or (batch, classes) for first_code "
            f"{first}; give one class number for each sample, or say which classes each has."
        )
    elif labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be integers or boolean, not {labels.dtype}; call .int().")


def check_margins(**margins: float) -> None:
    """Margins must be finite and not negative.

    Raises:
        ValueError: one is not.
    """
    for name, margin in margins.items():
        if not (margin >= 0 and math.isfinite(margin)):
            raise ValueError(f"{name} must be finite and not negative, not {margin}.")


def known_rows(labels: Tensor, mask: Tensor | None) -> Tensor:
    """Which samples count and have a label, (batch,); one of which no class is known has none."""
    return labelled(labels if labels.dim() == 1 else labels.amax(dim=1), mask)


def pair_terms(
    codes: tuple[Tensor, ...],
    labels: Tensor,
    margins: tuple[float, float, float],
    weights: tuple[float, float, float],
    negative_weight: float,
    mask: Tensor,
    scope: Scope,
) -> Tensor:
    """What each sample's pairs add to the terms between, within the first, within the second.

    Args:
        codes: of the two modalities, (batch, bits).
        labels: class numbers, or which classes each sample has.
        margins: m of the three terms.
        weights: of the three terms; one of weight 0 is not computed.
        negative_weight: weight of the unlike pairs.
        mask: which samples count, (batch,).
        scope: whose samples make pairs.

    Returns:
        (batch,), whose mean over the samples in scope is the weighted sum of the terms.
    """
    first, second = (blank_rows(code, mask) for code in codes)
    shares = labelled_shares(labels, first, negative_weight, mask, scope)
    terms = zip(((first, second), (first, first), (second, second)), margins, weights, strict=True)
    rows = [
        weight * pair_rows(*pair, shares, margin=margin, scope=scope)
        for pair, margin, weight in terms
        if weight
    ]
    return torch.stack(rows).sum(dim=0)


def pair_rows(
    code: Float[Tensor, "batch bits"],
    other_code: Float[Tensor, "batch bits"],
    shares: Shares,
    *,
    margin: float,
    scope: Scope = "global",
) -> Float[Tensor, " batch"]:
    """What each sample adds to the term of its code with the other codes of all in scope.

    Args:
        code: of one modality; masked rows zero.
        other_code: of the same samples in the other, or ``code`` again for a term within one.
        shares: how much the like and the unlike pairs count, of
            :mod:`congener.losses.mm_hashing_pairs`.
        margin: what unlike codes keep.
        scope: whose samples make pairs.
    """
    everyone, _ = gather_rows(other_code, scope=scope)
    distances = distances_between(code, everyone)
    pulled = shares[0] * distances.square()
    pushed = shares[1] * (margin - distances).relu().square()
    return (pulled + pushed).sum(dim=1)
