"""Which pairs of codes MM-NN hashing draws together or keeps apart, and how much each counts.

Each function gives the shares of a process' own samples' pairs with all samples in scope: of the
like pairs and of the unlike ones, (rows, rows in scope) each. What a sample adds to a term by them
(:func:`congener.losses.mm_hashing_parts.pair_rows`) has as its mean over samples half the mean over
like pairs and, times ``negative_weight``, half that over unlike ones.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from congener.ops.collectives import Scope, all_sum, batch_size, gather_rows
from congener.ops.reduction import blank_rows

__all__ = [
    "Shares",
    "distances_between",
    "labelled_shares",
    "listed_shares",
    "soft_shares",
]

Shares = tuple[Tensor, Tensor]
"""How much each like and each unlike pair counts, (rows, rows in scope) both."""


def labelled_shares(
    labels: Int[Tensor, "batch *classes"] | Bool[Tensor, "batch classes"],
    code: Float[Tensor, "batch bits"],
    negative_weight: float,
    mask: Bool[Tensor, " batch"],
    scope: Scope = "global",
) -> Shares:
    """All pairs of samples that count: like, if they have a label in common, or unlike.

    Args:
        labels: class numbers or which classes each sample has.
        code: whose type the shares have.
        negative_weight: weight of the unlike pairs.
        mask: which samples count.
        scope: whose samples make pairs.
    """
    like, unlike, _ = _told_apart(labels, mask, scope)
    return _shares(like, unlike, code, negative_weight, mask, scope)


def listed_shares(
    labels: Int[Tensor, "batch *classes"] | Bool[Tensor, "batch classes"],
    draws: Float[Tensor, " batch"],
    code: Float[Tensor, "batch bits"],
    negative_weight: float,
    mask: Bool[Tensor, " batch"],
    scope: Scope = "global",
) -> Shares:
    """A list of pairs: each sample with itself, and with one that is unlike.

    The draws order the samples in a circle. Each one's unlike partner is the next that shares no
    label with it: of samples that are all unlike, a derangement. A sample that none is unlike has
    none. ``draws``: a random number for each sample; the others are those of
    :func:`labelled_shares`.
    """
    _, unlike, itself = _told_apart(labels, mask, scope)
    everyone, own = gather_rows(draws, scope=scope)
    places = everyone.argsort(stable=True).argsort()
    ahead = (places - places[own].unsqueeze(1)).remainder(len(places))
    ahead = torch.where(unlike, ahead, len(places))
    chosen = unlike & (ahead == ahead.amin(dim=1, keepdim=True))
    return _shares(itself & mask.unsqueeze(1), chosen, code, negative_weight, mask, scope)


def soft_shares(
    first_code: Float[Tensor, "batch bits"],
    second_code: Float[Tensor, "batch bits"],
    code: Float[Tensor, "batch student_bits"],
    negative_weight: float,
    scope: Scope = "global",
) -> Shares:
    """All pairs, alike as far as a teacher's codes say: s = max(0, 1 − d / d̄), and 1 − s unlike.

    d is the distance of the teacher's codes of the two modalities, and d̄ its mean over pairs of
    different samples: neither the number of the teacher's bits nor its margin matters. Where d̄ is
    0, or there is no such pair, s = 1.

    Args:
        first_code: the teacher's, in the first modality; a constant.
        second_code: the teacher's, in the second; a constant.
        code: whose type the shares have.
        negative_weight: weight of 1 − s.
        scope: whose samples make pairs.
    """
    first, second = (blank_rows(x.detach().to(code.dtype), None) for x in (first_code, second_code))
    everyone, own = gather_rows(second, scope=scope)
    distances = distances_between(first, everyone)
    different = ~_itself(everyone, own)
    sums = torch.stack(((distances * different).sum(), different.sum().to(distances)))
    total, count = all_sum(sums, scope=scope).unbind()
    mean = total / count.clamp(min=1)
    like = (1 - distances / torch.where(mean > 0, mean, torch.inf)).clamp(min=0)
    return _shares(like, 1 - like, code, negative_weight, None, scope)


def _told_apart(labels: Tensor, mask: Tensor, scope: Scope) -> tuple[Tensor, Tensor, Tensor]:
    """Which pairs that count are alike, which unlike, and which are of one sample."""
    everyone, own = gather_rows(labels, scope=scope)
    both = mask.unsqueeze(1) & gather_rows(mask, scope=scope)[0]
    itself = _itself(everyone, own)
    if labels.dim() == 1:
        alike = labels.unsqueeze(1) == everyone
    else:  # a sample without any class is like itself
        alike = ((labels > 0).float() @ (everyone > 0).float().T > 0) | itself
    return both & alike, both & ~alike, itself


def _itself(everyone: Tensor, own: slice) -> Tensor:
    """Which pairs of own rows and everyone's are of one sample."""
    places = torch.arange(len(everyone), device=everyone.device)
    return places[own].unsqueeze(1) == places


def _shares(
    like: Tensor,
    unlike: Tensor,
    code: Tensor,
    negative_weight: float,
    mask: Tensor | None,
    scope: Scope,
) -> Shares:
    """Half the number of samples over that of such pairs: the mean over samples is half theirs."""
    like, unlike = like.to(code.dtype), unlike.to(code.dtype)
    counts = all_sum(torch.stack((like.sum(), unlike.sum())), scope=scope)
    half = batch_size(code, mask, scope=scope) / 2 / torch.where(counts > 0, counts, 1)
    return half[0] * like, negative_weight * half[1] * unlike


def distances_between(
    codes: Float[Tensor, "rows bits"], everyone: Float[Tensor, "others bits"]
) -> Float[Tensor, "rows others"]:
    """Euclidean distances, however small; where one is 0, so is its gradient."""
    return torch.cdist(codes, everyone, compute_mode="donot_use_mm_for_euclid_dist")
