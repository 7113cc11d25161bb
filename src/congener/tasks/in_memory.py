"""Data sets whose samples lie in memory, row by row: for every pack."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from congener.types import Batch

__all__ = ["InMemory"]


class InMemory(Dataset[Batch], ABC):
    """Samples in memory; a whole batch is one indexing of each column.

    A batch has what :attr:`columns` names, and ``index``, the positions in this data set.
    """

    @property
    @abstractmethod
    def columns(self) -> Mapping[str, Tensor]:
        """What a batch is made of, in memory: the engine indexes it where it finds it."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> Batch:
        position = range(len(self))[index]
        sample = {name: column[position] for name, column in self.columns.items()}
        return sample | {"index": torch.tensor(position)}

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The batch of these samples, in this order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        return {name: column[index] for name, column in self.columns.items()} | {"index": index}
