"""What is measured of texts: how often their class is right, or how near their number."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef

from congener.ops.collectives import gather_once, rank_sizes
from congener.types import Batch

from .data.splits import IGNORE, known_labels

__all__ = ["ClassMetrics", "NumberMetrics"]

Read = Callable[[Any], Tensor]
"""The logits within what a network returned."""


class ClassMetrics:
    """``accuracy``, ``macro_f1`` and ``cross_entropy``, over the labelled texts.

    ``macro_f1`` is the mean over the classes that occur, or are said to.
    """

    def __init__(self, read: Read, classes: int, device: torch.device) -> None:
        self._read = read
        self._counts = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(classes, average="micro", ignore_index=IGNORE),
                "macro_f1": MulticlassF1Score(classes, average="macro", ignore_index=IGNORE),
            }
        ).to(device)
        # A NaN must show in the figure; the default would leave it out of the mean.
        self._cross_entropy = MeanMetric(nan_strategy="disable").to(device)

    def update(self, result: Any, batch: Batch) -> None:
        """Take in what a network returned for a prepared batch."""
        logits, labels = self._read(result).float(), batch["labels"]
        known = known_labels(labels)
        self._counts.update(logits, labels)
        self._cross_entropy.update(F.cross_entropy(logits[known], labels[known], reduction="none"))

    def compute(self) -> dict[str, float]:
        """The figures over all processes."""
        figures = self._counts.compute() | {"cross_entropy": self._cross_entropy.compute()}
        return {name: float(value) for name, value in figures.items()}


class NumberMetrics:
    """``pearson`` and ``spearman``, correlations, and ``mse``, over the labelled texts.

    A correlation with what is the same for all texts is 0. If an answer is not finite, all are NaN.
    """

    def __init__(self, read: Read, device: torch.device) -> None:
        self._read = read
        self._said = [torch.empty(0, device=device)]
        self._true = [torch.empty(0, device=device)]

    def update(self, result: Any, batch: Batch) -> None:
        """Take in what a network returned for a prepared batch."""
        known = known_labels(batch["labels"])
        self._said.append(self._read(result).detach().float().squeeze(1)[known])
        self._true.append(batch["labels"].float()[known])

    def compute(self) -> dict[str, float]:
        """The figures over all processes."""
        said, true = torch.cat(self._said), torch.cat(self._true)
        sizes = rank_sizes(said)
        said, true = (gather_once(each, sizes).double().cpu() for each in (said, true))
        if not said.isfinite().all():  # ranks would hide it
            return dict.fromkeys(("pearson", "spearman", "mse"), math.nan)
        varies = len(said) > 1 and said.std() > 0 and true.std() > 0
        return {
            "pearson": float(pearson_corrcoef(said, true)) if varies else 0.0,
            "spearman": float(spearman_corrcoef(said, true)) if varies else 0.0,
            "mse": float(F.mse_loss(said, true)) if len(said) else 0.0,
        }
