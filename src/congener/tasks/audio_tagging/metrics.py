"""How well tags are told: areas under the curve of precision over recall, each labelled.

``micro_auprc`` and ``macro_auprc`` are those of DCASE 2019, task 5 (the evaluator of
urban-sound-tagging-baseline, coarse tags): a tag is predicted where its probability is at least a
threshold; thresholds are all probabilities from 0.01 on, and 1; the area is that of trapezoids
between (recall 0, precision 1), the points in the order of falling thresholds, and (1, 0), where a
precision or recall without anything to divide by is 0. *micro* counts the decisions about all tags
together, *macro* is the mean of the tags' own areas. ``micro_ap`` and ``macro_ap`` are the average
precision of torchmetrics, a sum of steps over all thresholds: other numbers of the same meaning.

*Differences from the evaluator*: a tag without a positive has no recall; it is left out of both
macro figures, where the evaluator averages its 0. Points of one recall, which the evaluator sorts
as numpy's unstable sort leaves them, stay in the order of falling thresholds; that moves the area
by some 1e-5. Where what is true is not known (-100), nothing is counted.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import binary_average_precision

from congener.ops.collectives import gather_once, rank_sizes
from congener.types import Batch

__all__ = ["TagMetrics", "auprc"]

LEAST = 0.01
"""The smallest threshold."""


def auprc(scores: Tensor, truth: Tensor) -> float:
    """The area under one curve, as the evaluator of DCASE 2019, task 5 draws it.

    Args:
        scores: probabilities, (decisions,).
        truth: whether each tag is there, (decisions,), bool.

    >>> round(auprc(torch.tensor([0.9, 0.4, 0.6]), torch.tensor([True, True, False])), 4)
    0.5417
    """
    scores, order = scores.double().sort(descending=True, stable=True)
    found = truth[order].double().cumsum(0)
    # A threshold takes all decisions of its score.
    last = torch.ones_like(truth)
    last[:-1] = scores[1:] != scores[:-1]
    last &= scores >= LEAST
    hits, taken = found[last], (torch.arange(len(scores), device=scores.device) + 1.0)[last]
    zero, one = hits.new_zeros(1), hits.new_ones(1)
    if not (scores == 1).any():  # at the threshold 1, nothing is taken
        hits, taken = torch.cat([zero, hits]), torch.cat([zero, taken])
    positives = truth.sum()
    precision = torch.cat([one, hits / taken.clamp(min=0.5), zero])
    recall = torch.cat([zero, hits / positives.clamp(min=0.5), one])
    return float(torch.trapezoid(precision, recall))


class TagMetrics:
    """The figures of this module, and ``bce``, the mean cross-entropy of a decision.

    Args:
        num_tags: how many tags there are.
        device: where batches lie.
        read: the logits, (batch, tags), within what a network returned; default: all of it.
    """

    def __init__(
        self,
        num_tags: int,
        device: torch.device,
        read: Callable[[Any], Tensor] = lambda result: result,
    ) -> None:
        self._read = read
        self._logits = [torch.empty(0, num_tags, device=device)]
        self._labels = [torch.empty(0, num_tags, device=device)]

    def update(self, result: Any, batch: Batch) -> None:
        """Take in what a network returned for a prepared batch."""
        self._logits.append(self._read(result).detach().float())
        self._labels.append(batch["labels"].float())

    def compute(self) -> dict[str, float]:
        """The figures over all processes; 0 where no positive is known."""
        mine, labels = torch.cat(self._logits), torch.cat(self._labels)
        sizes = rank_sizes(mine)
        logits = gather_once(mine, sizes).cpu()
        labels = gather_once(labels, sizes).cpu()
        known, truth = labels >= 0, labels > 0
        entropies = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")[known]
        scores = logits.double().sigmoid()
        curves = [(scores[known], truth[known])]
        for tag in truth.any(0).nonzero().flatten().tolist():
            curves.append((scores[known[:, tag], tag], truth[known[:, tag], tag]))
        areas = [auprc(*curve) for curve in curves]
        averages = [_average_precision(*curve) for curve in curves]
        tags = max(1, len(curves) - 1)
        return {
            "micro_auprc": areas[0],
            "macro_auprc": sum(areas[1:]) / tags,
            "micro_ap": averages[0],
            "macro_ap": sum(averages[1:]) / tags,
            "bce": float(entropies.mean()) if len(entropies) else 0.0,
        }


def _average_precision(scores: Tensor, truth: Tensor) -> float:
    return float(binary_average_precision(scores, truth.long())) if truth.any() else 0.0
