"""What CRD remembers: rows of a bank for each training sample, and which of them to contrast."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from congener.errors import ShapeError
from congener.ops.checks import check_below, check_floating, check_labels, check_mask
from congener.ops.collectives import Scope, check_scope, gather_rows
from congener.ops.keyed_random import keyed_uniform

__all__ = ["check_index", "check_momentum", "crd_contrast_index", "crd_update", "renewed_rows"]


def crd_contrast_index(
    index: Int[Tensor, " batch"],
    labels: Int[Tensor, " samples"],
    *,
    step: int,
    negatives: int = 16384,
    seed: int = 0,
) -> Int[Tensor, "batch candidates"]:
    """Draw negatives from the samples of other classes, with replacement.

    A draw is a function of (seed, step, sample) alone: whichever process holds the sample, and
    whether or not training was interrupted, it meets the same negatives.

    Args:
        index: (batch,), places of the batch's samples in the training set.
        labels: (samples,), classes of the whole training set; samples with a negative label are
            each of a class of their own, and so are all of ``torch.arange(samples)``.
        step: which step of training this is.
        negatives: K; the authors draw 16384, without replacement where there are enough.
        seed: any integer.

    Returns:
        (batch, 1 + K): the samples themselves, then their negatives.

    Raises:
        ValueError: a sample has none of another class, K < 1, or a wrong number or type.
    """
    check_labels(labels, labels, "the training set")
    check_index(index, index, "index", len(labels), None)
    if negatives < 1:
        raise ValueError(f"negatives must be at least 1, not {negatives}.")
    samples = torch.arange(labels.shape[0], device=labels.device)
    classes, order = torch.where(labels < 0, -1 - samples, labels.long()).sort(stable=True)
    own = torch.empty_like(classes).scatter(0, order, classes)[index].contiguous()
    first = torch.searchsorted(classes, own).unsqueeze(1)
    alike = torch.searchsorted(classes, own, right=True).unsqueeze(1) - first
    others = labels.shape[0] - alike
    if (others == 0).any():
        raise ValueError("labels must have at least two classes: negatives are of another class.")
    uniform = keyed_uniform(index, seed=seed, epoch=step, count=negatives)
    draws = (uniform.double() * others).long()
    # In order of classes the sample's own class is one run, which the draws leap over.
    draws = draws + alike * (draws >= first)
    return torch.cat((index.long().unsqueeze(1), order[draws]), dim=1)


def crd_update(
    bank: Float[Tensor, "samples width"],
    embedding: Float[Tensor, "batch width"],
    index: Int[Tensor, " batch"],
    *,
    momentum: float = 0.5,
    mask: Bool[Tensor, " batch"] | None = None,
    scope: Scope = "global",
) -> Float[Tensor, "samples width"]:
    """Move the batch's rows to their new embeddings: m · old + (1 − m) · new, of length 1 again.

    The rows of all processes are written, so every rank that had the same bank has it again. Of a
    sample that occurs twice the last occurrence counts.

    Args:
        bank: (samples, width); it is left as it is.
        embedding: (batch, width), of the samples in ``index``.
        index: (batch,), rows of the bank.
        momentum: m, how much of the old row stays; the authors' 0.5.
        mask: (batch,), which samples count; the others are as if absent.
        scope: ``"local"`` writes the rows of this process alone.

    Returns:
        The new bank.

    >>> crd_update(torch.eye(2), torch.tensor([[0.0, 1.0]]), torch.tensor([0]), momentum=0.0)
    tensor([[0., 1.],
            [0., 1.]])
    """
    return bank.index_copy(0, *renewed_rows(bank, embedding, index, momentum, mask, scope))


def check_index(index: Tensor, like: Tensor, name: str, size: int, mask: Tensor | None) -> None:
    """Places in the training set must be integers below its size, one for each row of ``like``.

    Raises:
        ShapeError: they are not (batch,).
        ValueError: they are not integers, or one that counts is not below.
    """
    if tuple(index.shape) != tuple(like.shape[:1]):
        raise ShapeError(
            f"index {tuple(index.shape)} must be (batch,) = {tuple(like.shape[:1])} for {name} "
            f"{tuple(like.shape)}; give each sample's place in the training set."
        )
    if index.is_floating_point() or index.dtype == torch.bool:
        raise ValueError(f"index must be integers, not {index.dtype}; call .long().")
    check_below("index", index, size, mask, way_out="give each training sample a row of the bank")


def check_momentum(momentum: float) -> None:
    """A share of the old row must lie between 0 and 1.

    Raises:
        ValueError: it does not.
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must lie between 0 and 1, not {momentum}.")


def renewed_rows(
    bank: Tensor,
    embedding: Tensor,
    index: Tensor,
    momentum: float,
    mask: Tensor | None,
    scope: Scope,
) -> tuple[Tensor, Tensor]:
    """Which rows :func:`crd_update` writes, (rows in scope,), and what; repeats write the same."""
    check_floating(bank=bank, embedding=embedding)
    check_mask(mask, embedding, "embedding")
    check_index(index, embedding, "embedding", len(bank), mask)
    check_scope(scope)
    if embedding.dim() != 2 or bank.shape[1:] != embedding.shape[1:]:
        raise ShapeError(
            f"embedding {tuple(embedding.shape)} must be (batch, width) for bank "
            f"{tuple(bank.shape)}, (samples, width); give both one width."
        )
    check_momentum(momentum)
    kept = torch.ones_like(index, dtype=torch.bool) if mask is None else mask
    kept, _ = gather_rows(kept, scope=scope)
    places, _ = gather_rows(index.long(), scope=scope)
    news, _ = gather_rows(embedding.detach(), scope=scope)
    places = places.masked_fill(~kept, 0)
    olds = bank.detach()[places]
    order = torch.arange(places.shape[0], device=places.device).masked_fill(~kept, -1)
    last = places.new_full((bank.shape[0],), -1).scatter_reduce(0, places, order, "amax")[places]
    mixed = momentum * olds.to(news.dtype) + (1 - momentum) * news.masked_fill(~kept[:, None], 0)
    rows = F.normalize(mixed, dim=1).to(bank.dtype)
    return places, torch.where(last.unsqueeze(1) >= 0, rows[last.clamp(min=0)], olds)
