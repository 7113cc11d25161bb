"""Data sets that lie in memory as tensors: a batch is one indexing of each, on any device."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from congener.types import Batch

__all__ = ["Held", "held", "resident"]

SHARE = 4
"""A data set moves to a device of which it takes at most one part in so many of what is free."""


@dataclass(frozen=True, slots=True)
class Held(Dataset[Batch]):
    """Samples as rows of tensors.

    Attributes:
        columns: the tensors by name, a row for each sample.
        positions: of a part of them, the rows of its samples, (samples,); ``None``: all.
    """

    columns: Mapping[str, Tensor]
    positions: Tensor | None = None

    def __len__(self) -> int:
        rows = next(iter(self.columns.values())) if self.positions is None else self.positions
        return len(rows)

    def batches(self, places: Sequence[Tensor]) -> Iterator[Batch]:
        """Each batch by the places of its samples; ``index`` tells their rows.

        All places go to the device in one piece, which nothing there has to wait for.
        """
        device = next(iter(self.columns.values())).device
        rows = torch.cat([torch.empty(0, dtype=torch.int64), *places]).to(device)
        rows = rows if self.positions is None else self.positions[rows]
        for index in torch.split(rows, [len(each) for each in places]):
            yield {name: column[index] for name, column in self.columns.items()} | {"index": index}

    def to(self, device: torch.device) -> "Held":
        """The same samples on a device."""
        columns = {name: column.to(device) for name, column in self.columns.items()}
        return Held(columns, None if self.positions is None else self.positions.to(device))


def held(dataset: Dataset[Any]) -> Held | None:
    """A data set with ``columns``, or a ``Subset`` of one, as what it holds; otherwise ``None``.

    A class that reads its samples in a way of its own, such as with a transform, says so by
    defining ``__getitems__`` below the class that has ``columns``.
    """
    if isinstance(dataset, Held):
        return dataset
    if isinstance(dataset, Subset):
        inner = held(dataset.dataset)
        if inner is None or type(dataset) is not Subset:
            return None
        places = torch.as_tensor(dataset.indices, dtype=torch.int64)
        return Held(inner.columns, places if inner.positions is None else inner.positions[places])
    reads = [kind for kind in type(dataset).__mro__ if "__getitems__" in vars(kind)]
    columns = getattr(dataset, "columns", None) if reads and "columns" in vars(reads[0]) else None
    if not isinstance(columns, Mapping) or not columns:
        return None
    rows: int = len(dataset)  # type: ignore[arg-type]
    fits = all(isinstance(value, Tensor) and len(value) == rows for value in columns.values())
    return Held(columns) if fits else None


def resident(dataset: Dataset[Any], device: torch.device) -> Dataset[Any]:
    """A data set in memory, moved to a device with room for it; any other as it is."""
    found = held(dataset)
    if found is None or device.type == "cpu":
        return dataset
    need = sum(column.nbytes for column in found.columns.values())
    try:
        free, _ = torch.accelerator.get_memory_info(device)
    except RuntimeError:  # not every kind of device tells
        return dataset
    return found.to(device) if need * SHARE <= free else dataset
