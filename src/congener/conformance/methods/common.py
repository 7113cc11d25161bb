"""What the functions that run a method share."""

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Inputs",
    "Method",
    "Results",
    "Settings",
    "cross_entropy",
    "given",
    "layers",
    "share_below_median",
    "weights",
]

Inputs = Mapping[str, Tensor]
Settings = Mapping[str, Any]
Results = dict[str, Tensor]
Method = Callable[[Inputs, Settings], Results]
"""Inputs (and ``w__*`` weights) by name and hyper-parameters in, ``loss`` and ``out__*`` out."""


def given(settings: Settings, **names: str) -> dict[str, Any]:
    """Arguments by their names here, from the settings the case gives under its own names."""
    return {ours: settings[theirs] for ours, theirs in names.items() if theirs in settings}


def layers(inputs: Inputs, student: str, teacher: str) -> list[tuple[Tensor, Tensor]]:
    """Pairs numbered ``<name>_0``, ``<name>_1``, … from shallow to deep."""
    numbers = sorted(int(key.rpartition("_")[2]) for key in inputs if key.startswith(f"{student}_"))
    return [(inputs[f"{student}_{n}"], inputs[f"{teacher}_{n}"]) for n in numbers]


def weights(inputs: Inputs, prefix: str = "") -> dict[str, Tensor]:
    """The weights of the case whose names start with ``prefix``, by the rest of their names."""
    start = f"w__{prefix}"
    return {name[len(start) :]: x for name, x in inputs.items() if name.startswith(start)}


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The task loss, in at least float32."""
    wide = logits if logits.dtype.itemsize > 2 else logits.float()
    return F.cross_entropy(wide, labels.long())


def share_below_median(values: Tensor) -> Tensor:
    """The mask of MLLD's published trainer, which is this one factor."""
    return (values <= values.quantile(0.5)).double().mean()
