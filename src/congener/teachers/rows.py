"""Rows of a prepared batch."""

from typing import Any

import torch
from torch import Tensor

from congener.types import Batch

__all__ = ["LEAST", "at_least", "taken"]

LEAST = 16
"""Rows in a forward from which on the answers about each do not depend on how many there are.

Of fewer, matrix products take another path and round otherwise (1e-7, on the CPUs measured), so a
teacher is asked about no fewer where its answers are kept.
"""


def taken(batch: Batch, places: Tensor) -> Batch:
    """Some rows of a batch, in any order, any number of times.

    >>> taken({"index": torch.tensor([4, 7]), "view": 3}, torch.tensor([1, 1, 0]))
    {'index': tensor([7, 7, 4]), 'view': 3}
    """
    rows = len(batch["index"])
    return {name: _taken(value, places, rows) for name, value in batch.items()}


def at_least(batch: Batch, rows: int = LEAST) -> Batch:
    """A batch that repeats its rows until it has enough of them."""
    have = len(batch["index"])
    return batch if have >= rows else taken(batch, torch.arange(rows) % have)


def _taken(value: Any, places: Tensor, rows: int) -> Any:
    if isinstance(value, Tensor) and value.dim() and len(value) == rows:
        return value[places.to(value.device)]
    if isinstance(value, list | tuple) and len(value) == rows:
        return [value[place] for place in places.tolist()]
    return value
