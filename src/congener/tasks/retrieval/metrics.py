"""How well embeddings find an identity again: recall, reciprocal rank and average precision.

Every image is a query of its camera; its gallery are the images of all other cameras, most similar
first (cosine). A figure is the mean over the queries that have an image of their identity in the
gallery; how many have none is a figure, too, ``queries_without_positive``.

Images of equal similarity have no order: a figure is its mean over all their orders, computed
exactly. Of g tied images with p right ones, ranks s + 1 … s + g, the first right one is at
s + i with the probability C(g - i, p - 1) / C(g, p), and, if the i-th is right,
(i - 1)(p - 1) / (g - 1) right ones are expected before it among them (McSherry and Najork, ECIR
2008).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from congener.ops.collectives import gather_once, rank_sizes
from congener.ops.relations import block_size
from congener.types import Batch

__all__ = ["RetrievalMetrics", "closeness", "retrieval_figures"]

CUTS = (1, 5, 10)
"""The k of ``recall_at_k``."""

DECIMALS = 9
"""Similarities are compared to so many: what is the same image rounds otherwise in each column."""


def closeness(queries: Tensor, gallery: Tensor) -> Tensor:
    """Cosine similarities as they are ranked, (queries, gallery), float64.

    Args:
        queries: embeddings, (queries, dims).
        gallery: embeddings, (gallery, dims).
    """
    queries, gallery = (F.normalize(each.double(), dim=1) for each in (queries, gallery))
    return (queries @ gallery.T).round(decimals=DECIMALS)


def retrieval_figures(embedding: Tensor, labels: Tensor, cameras: Tensor) -> dict[str, float]:
    """The figures of a whole test set.

    Args:
        embedding: of each image, (images, dims).
        labels: its identity, (images,); negative: not known, then the image is left out.
        cameras: its camera, (images,).

    Returns:
        ``recall_at_1``, ``recall_at_5``, ``recall_at_10``, ``mrr`` (mean reciprocal rank of the
        first right image), ``map`` (mean average precision), ``queries_without_positive``.
    """
    known = labels >= 0
    embedding, labels, cameras = embedding[known], labels[known], cameras[known]
    names = [*(f"recall_at_{cut}" for cut in CUTS), "mrr", "map"]
    images = torch.arange(len(labels), device=labels.device)
    blocks = [
        _of_queries(closeness(embedding[rows], embedding), *_judged(rows, labels, cameras))
        for rows in torch.split(images, block_size(8 * len(labels), labels.device))
    ]
    found = torch.cat([torch.empty(0, len(CUTS) + 2, device=labels.device), *blocks])
    means = found.mean(0) if len(found) else found.new_zeros(len(names))
    if not embedding.isfinite().all():
        means = means * torch.nan  # no order of such similarities means anything
    figures = {name: float(mean) for name, mean in zip(names, means, strict=True)}
    return figures | {"queries_without_positive": float(len(labels) - len(found))}


def _judged(rows: Tensor, labels: Tensor, cameras: Tensor) -> tuple[Tensor, Tensor]:
    """For some queries, which images are in the gallery, and which of those are right ones."""
    gallery = cameras[rows, None] != cameras
    return gallery, gallery & (labels[rows, None] == labels)


def _of_queries(similarity: Tensor, gallery: Tensor, right: Tensor) -> Tensor:
    """The figures of each query that has a right image, (those queries, figures)."""
    asks = right.any(1)
    # What is not in the gallery comes last; cosines are above -2.
    order = similarity.masked_fill(~gallery, -2.0)[asks].sort(dim=1, descending=True)
    right = right[asks].gather(1, order.indices).double()
    total = right.sum(1, keepdim=True)
    place, start, end = _ties(order.values)
    before = F.pad(right.cumsum(1), (1, 0))
    above = before.gather(1, start)
    tied = before.gather(1, end) - above
    size, rank = end - start, place + 1
    nth = rank - start
    precision = (above + 1 + (nth - 1) * (tied - 1) / (size - 1).clamp(min=1)) / rank
    average = (tied / size * precision / total).sum(1)
    first = torch.where(above == 0, _first(size, tied, nth), 0)
    recalls = [first[:, :cut].sum(1) for cut in CUTS]
    return torch.stack([*recalls, (first / rank).sum(1), average], dim=1)


def _ties(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of sorted rows: each place, and where the run of equal values around it starts and ends."""
    count = values.shape[1]
    place = torch.arange(count, device=values.device).expand_as(values)
    fresh = F.pad(values[:, 1:] != values[:, :-1], (1, 0), value=True)
    start = torch.where(fresh, place, 0).cummax(1).values
    last = F.pad(fresh[:, 1:], (0, 1), value=True)
    end = torch.where(last, place + 1, count).flip(1).cummin(1).values.flip(1)
    return place, start, end


def _first(size: Tensor, tied: Tensor, nth: Tensor) -> Tensor:
    """The probability that the first right one of a run is its nth: C(g-n, p-1) / C(g, p)."""
    possible = (tied > 0) & (size - nth >= tied - 1)
    tied, left = tied.clamp(min=1), torch.where(possible, size - nth, tied - 1)
    chance = _log_choose(left, tied - 1) - _log_choose(size, tied)
    return torch.where(possible, chance.exp(), 0)


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    n, k = n.double(), k.double()
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


class RetrievalMetrics:
    """The figures of a test set whose images the processes share; see :func:`retrieval_figures`."""

    def __init__(self, device: torch.device, embedding: Callable[[Any], Tensor]) -> None:
        self._embedding = embedding
        self._seen: dict[str, list[Tensor]] = {
            "embedding": [torch.empty(0, device=device)],
            "labels": [torch.empty(0, dtype=torch.int64, device=device)],
            "camera": [torch.empty(0, dtype=torch.int64, device=device)],
        }

    def update(self, result: Any, batch: Batch) -> None:
        """Take in the embeddings of a batch."""
        self._seen["embedding"].append(self._embedding(result).detach().float().flatten())
        for name in ("labels", "camera"):
            self._seen[name].append(batch[name])

    def compute(self) -> dict[str, float]:
        """The figures over all processes."""
        # As flat rows, whose width a process without images need not know.
        mine = [torch.cat(parts) for parts in self._seen.values()]
        embedding, labels, cameras = (gather_once(x, rank_sizes(x)) for x in mine)
        width = embedding.numel() // max(1, len(labels))
        return retrieval_figures(embedding.view(len(labels), width), labels, cameras)
