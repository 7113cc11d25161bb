"""Batches in an order that depends on the seed and the epoch alone."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from congener.engine.config import FitConfig
from congener.errors import DataError
from congener.task import Task
from congener.types import Batch

__all__ = [
    "epoch_batches",
    "evaluation_batches",
    "size",
    "steps_in_epoch",
    "steps_per_epoch",
    "to_device",
]


def size(dataset: Dataset[Any]) -> int:
    """Number of samples of a map-style data set."""
    return len(dataset)  # type: ignore[arg-type]


def steps_in_epoch(samples: int, batch_size: int, *, drop_last: bool, processes: int) -> int:
    """Optimiser steps of one epoch.

    A ragged last batch counts unless ``drop_last``, or unless it has fewer samples than there are
    processes (one of them would have nothing to do).
    """
    full, rest = divmod(samples, batch_size)
    return full + (0 if drop_last or rest < processes else 1)


def steps_per_epoch(
    train: Dataset[Any], config: FitConfig, labelled: Tensor | None, *, processes: int = 1
) -> int:
    """Optimiser steps of one epoch of a fit; its arguments are those of :func:`fit`."""
    marked = config.labelled_per_batch
    if marked and labelled is None:
        raise DataError(
            f"labelled_per_batch={marked} needs a training set in which some samples have no "
            "label; leave it out."
        )
    others = size(train) - (len(labelled) if marked and labelled is not None else 0)
    steps = steps_in_epoch(
        others, config.batch_size - marked, drop_last=config.drop_last, processes=processes
    )
    if steps == 0:
        raise DataError(
            f"An epoch of {others} samples has no batch of {config.batch_size - marked}; "
            "lower batch_size or set drop_last to false."
        )
    return steps


def epoch_batches(
    task: Task,
    dataset: Dataset[Any],
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    first: int,
    last: int,
    share: tuple[int, int],
    workers: int,
    labelled: Tensor | None = None,
    labelled_per_batch: int = 0,
) -> Iterator[Batch]:
    """One process' share of the batches ``first`` to ``last`` (exclusive) of an epoch.

    The global batches are consecutive slices of one permutation; ``share = (rank, processes)``
    takes a consecutive slice of each, so the union over processes is the batch of one process.
    With ``labelled_per_batch``, that many samples of each batch come from the positions
    ``labelled``, one permutation of them after the other, and the rest from the others.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    if labelled is None or labelled_per_batch == 0:
        order = torch.randperm(size(dataset), generator=generator)
        whole = [order[k * batch_size : (k + 1) * batch_size] for k in range(first, last)]
    else:
        mixed = _mixed(size(dataset), labelled, labelled_per_batch, batch_size, generator)
        whole = mixed[first:last]
    batches = [batch.tensor_split(share[1])[share[0]].tolist() for batch in whole]
    return iter(_loader(task, _Indexed(dataset, seed=seed, epoch=epoch), batches, workers))


def _mixed(
    samples: int, labelled: Tensor, count: int, batch_size: int, generator: torch.Generator
) -> list[Tensor]:
    """The batches of an epoch with ``count`` labelled samples in each, at places drawn anew."""
    others = torch.ones(samples, dtype=torch.bool)
    others[labelled] = False
    pool = others.nonzero().flatten()
    pool = pool[torch.randperm(len(pool), generator=generator)]
    chunks = torch.split(pool, batch_size - count)
    turns = -(-len(chunks) * count // len(labelled))
    drawn = torch.cat(
        [labelled[torch.randperm(len(labelled), generator=generator)] for _ in range(turns)]
    )
    batches = []
    for k, chunk in enumerate(chunks):
        batch = torch.cat([drawn[k * count : (k + 1) * count], chunk])
        batches.append(batch[torch.randperm(len(batch), generator=generator)])
    return batches


def evaluation_batches(
    task: Task, dataset: Dataset[Any], *, batch_size: int, share: tuple[int, int], workers: int
) -> Iterator[Batch]:
    """One process' share of a data set, in order."""
    mine = torch.arange(size(dataset)).tensor_split(share[1])[share[0]]
    batches = [mine[k : k + batch_size].tolist() for k in range(0, len(mine), batch_size)]
    return iter(_loader(task, _Indexed(dataset, seed=0, epoch=0), batches, workers))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device."""
    return {
        k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()
    }


def _loader(
    task: Task, dataset: "_Indexed", batches: Sequence[list[int]], workers: int
) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=partial(_collate, task),
        num_workers=workers,
        generator=torch.Generator(),  # workers take their base seed here, not from the global one
    )


def _collate(task: Task, fetched: tuple[list[int], Any]) -> Batch:
    indices, samples = fetched
    batch = task.collate(samples)
    batch.setdefault("index", torch.tensor(indices))
    return batch


class _Indexed(Dataset[Any]):
    """A data set whose random transforms are a function of (seed, epoch, sample)."""

    def __init__(self, dataset: Dataset[Any], *, seed: int, epoch: int) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, epoch

    def __getitems__(self, indices: list[int]) -> tuple[list[int], Any]:
        whole = getattr(self.dataset, "__getitems__", None)
        if whole is None or not _returns_batches(self.dataset):
            return indices, [self._sample(index) for index in indices]
        with _seeded(hash((self.seed, self.epoch, *indices))):
            return indices, whole(indices)

    def _sample(self, index: int) -> Any:
        with _seeded(hash((self.seed, self.epoch, index))):
            return self.dataset[index]


def _returns_batches(dataset: Dataset[Any]) -> bool:
    """Whether whole batches are the data set's own; a ``Subset`` only passes them through."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return hasattr(dataset, "__getitems__")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators for a block, then put them back as they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  (users' transforms)
    state = torch.get_rng_state()
    try:
        # Not torch.manual_seed, which would seed the devices too, and so the network's dropout.
        torch.default_generator.manual_seed(seed % 2**63)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        yield
    finally:
        torch.set_rng_state(state)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
