r"""How well codes find what is like a query in the other modality.

A query ranks the database by Hamming distance. Items at one distance are tied, and a figure that
depends on their order is the mean over all orders. Of average precision that mean is exact and
closed (McSherry and Najork, ECIR 2008): a query with R relevant items, t items nearer than a
distance, of which a are relevant, and n items at it, of which r are relevant, has

.. math::
    AP = \frac{1}{R} \sum_{distances} \frac{r}{n} \sum_{i=1}^{n} \frac{1}{t + i}
        \left( a + 1 + (i - 1) \frac{r - 1}{n - 1} \right)

since the item at place i of the tie is relevant with probability r / n, and then (i - 1) (r - 1) /
(n - 1) of those before it in the tie are, in expectation.
"""

from typing import Any

import torch
from torch import Tensor

from congener.errors import DataError, NonFiniteLossError
from congener.ops.collectives import gather_rows
from congener.types import Batch

from .data.splits import known_rows
from .index import pack_codes, unpack_codes

__all__ = ["HashingMetrics", "average_precision", "histogram"]

RADIUS = 2
AT_ONCE = 1 << 22
"""Pairs of a query and an item that are compared at once."""


def histogram(
    queries: Tensor, items: Tensor, query_labels: Tensor, item_labels: Tensor
) -> tuple[Tensor, Tensor]:
    """How many items, and how many relevant ones, lie at each distance from each query.

    Args:
        queries: codes of 1 and -1, (queries, bits).
        items: (items, bits).
        query_labels: class numbers (queries,), or 0 and 1 of each class (queries, classes).
        item_labels: likewise; an item is relevant if it shares a label.

    Returns:
        (queries, bits + 1) each, int64, on the CPU.
    """
    bits = queries.shape[1]
    counts: list[Tensor] = []
    relevant: list[Tensor] = []
    rows = max(1, AT_ONCE // max(1, len(items)))
    for codes, labels in zip(
        torch.split(queries, rows), torch.split(query_labels, rows), strict=True
    ):
        distance = (bits - codes @ items.T).round_().long() // 2
        if labels.ndim == 2:
            alike = labels.float() @ item_labels.float().T > 0
        else:
            alike = labels.unsqueeze(1) == item_labels
        places = distance + (bits + 1) * torch.arange(len(codes), device=codes.device)[:, None]
        for found, some in ((counts, places.flatten()), (relevant, places[alike])):
            count = torch.bincount(some, minlength=len(codes) * (bits + 1))
            found.append(count.view(len(codes), bits + 1).cpu())
    return torch.cat(counts), torch.cat(relevant)


def average_precision(counts: Tensor, relevant: Tensor) -> Tensor:
    """The mean over tie orders of each query's average precision; 0 where nothing is relevant.

    Args:
        counts: how many items lie at each distance, (queries, distances).
        relevant: how many of them are relevant.

    Returns:
        (queries,), float64.
    """
    most = max(counts.sum(1).tolist(), default=0)
    ones = torch.arange(1, most + 1, dtype=torch.float64).reciprocal()
    harmonic = torch.cat([ones.new_zeros(1), ones.cumsum(0)])
    n, r = counts.double(), relevant.double()
    nearer, found = counts.cumsum(1) - counts, relevant.cumsum(1) - relevant
    spread = harmonic[nearer + counts] - harmonic[nearer]  # Σ 1 / (t + i)
    among = (r - 1).clamp(min=0) / (n - 1).clamp(min=1) * (n - (nearer + 1) * spread)
    total = r / n.clamp(min=1) * ((found + 1) * spread + among)
    return total.sum(1) / r.sum(1).clamp(min=1)


class HashingMetrics:
    """Figures of both directions, from the packed codes of all processes.

    ``map_first_to_second``: the mean over queries in the first modality of the average precision
    over the database in the second; ``map_second_to_first``; ``map``, the mean of the two.
    ``precision_radius_2``: the share of relevant items among those at most two bits away, 0 for a
    query without any, the mean over queries and directions. ``code_entropy``: the entropy in bits
    of the codes of the database; ``collision_rate``: how many of its pairs of items have one code;
    the mean over modalities each. ``queries_left_out``: how many queries have no relevant item;
    they take no part in the figures before. Items whose label is not known are not there.

    Args:
        aligned: an item's only relevant one is itself in the other modality; the queries are in
            the database, too.
        device: where rows are kept.
    """

    def __init__(self, device: torch.device, *, aligned: bool = False) -> None:
        self._device, self._aligned, self._bits = device, aligned, 0
        self._finite = torch.ones((), dtype=torch.bool, device=device)
        kinds = {"codes": torch.uint8, "labels": torch.int64, "query": torch.uint8}
        self._seen = {
            name: [torch.empty(0, dtype=kind, device=device)] for name, kind in kinds.items()
        }

    def update(self, result: Any, batch: Batch) -> None:
        """Take in the codes of a prepared batch, (batch, 2, bits)."""
        labels = batch["index"] if self._aligned else batch["labels"]
        known = known_rows(labels)
        self._bits = result.shape[-1]
        self._finite = self._finite & result.isfinite().all()
        self._seen["codes"].append(pack_codes(result[known]).flatten())
        self._seen["labels"].append(labels[known].long().flatten())
        self._seen["query"].append(batch["query"][known].to(torch.uint8))

    def compute(self) -> dict[str, float]:
        """The figures over all processes, by name."""
        codes, labels, query = self._gathered()
        database = torch.ones_like(query) if self._aligned else ~query
        if not query.any() or not database.any():
            raise DataError(
                f"There are {int(query.sum())} queries and {int(database.sum())} items in the "
                "database that have a label; figures need some of both."
            )
        figures, precision, left_out = {}, [], 0
        for name, (one, other) in {"first_to_second": (0, 1), "second_to_first": (1, 0)}.items():
            counts, relevant = histogram(
                codes[query, one], codes[database, other], labels[query], labels[database]
            )
            has = relevant.any(1)
            left_out = int((~has).sum())
            counts, relevant = counts[has], relevant[has]
            near, hits = (each[:, : RADIUS + 1].sum(1) for each in (counts, relevant))
            figures[f"map_{name}"] = _mean(average_precision(counts, relevant))
            precision.append(_mean(hits.double() / near.clamp(min=1)))
        spread = [_spread(codes[database, side]) for side in (0, 1)]
        return {
            "map": sum(figures.values()) / 2,
            **figures,
            f"precision_radius_{RADIUS}": sum(precision) / 2,
            "code_entropy": sum(entropy for entropy, _ in spread) / 2,
            "collision_rate": sum(rate for _, rate in spread) / 2,
            "queries_left_out": float(left_out),
        }

    def _gathered(self) -> tuple[Tensor, Tensor, Tensor]:
        """The codes of all processes, (items, 2, bits), their labels and whether they ask."""
        # As flat rows, whose width a process without items need not know.
        mine = [torch.cat(parts) for parts in self._seen.values()]
        about = torch.tensor([[self._bits, int(self._finite)]], device=self._device)
        packed, labels, query, told = (gather_rows(each)[0] for each in (*mine, about))
        if not told[:, 1].all():
            raise NonFiniteLossError("The codes became NaN or infinite; lower train.lr.")
        rows, bits = len(query), int(told[:, 0].max())
        codes = unpack_codes(packed.view(rows, 2, -(-bits // 8)), bits)
        labels = labels if len(labels) == rows else labels.view(rows, -1)
        return codes, labels, query.bool()


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else 0.0


def _spread(codes: Tensor) -> tuple[float, float]:
    """The entropy of codes (items, bits) in bits, and the share of pairs that have one code."""
    counts = torch.unique(pack_codes(codes), dim=0, return_counts=True)[1].double().cpu()
    share, items = counts / counts.sum(), len(codes)
    same = float((counts * (counts - 1)).sum()) / max(1, items * (items - 1))
    return -float((share * share.log2()).sum()), same
