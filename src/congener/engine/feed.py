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
from congener.engine.held import held
from congener.engine.samplers import (
    by_group,
    by_length,
    grouped_with_others,
    share_of,
    shuffled,
    with_labels,
)
from congener.errors import DataError
from congener.task import Task
from congener.types import Batch

__all__ = [
    "epoch_batches",
    "evaluation_batches",
    "in_training",
    "seeded",
    "size",
    "steps_in_epoch",
    "steps_per_epoch",
    "to_device",
    "view_batches",
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
    if marked and (labelled is None or len(labelled) in (0, size(train))):
        raise DataError(
            f"labelled_per_batch={marked} needs a training set in which some samples have a "
            "label and some have none; leave it out."
        )
    if config.grouped:
        processes = 1  # every batch is full
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
    view: int | None = None,
    first: int,
    last: int,
    share: tuple[int, int],
    workers: int,
    labelled: Tensor | None = None,
    labelled_per_batch: int = 0,
    groups: Tensor | None = None,
    per_group: int = 1,
    lengths: Tensor | None = None,
    pin: bool = False,
) -> Iterator[Batch]:
    """One process' share of the batches ``first`` to ``last`` (exclusive) of an epoch.

    The global batches are those of :mod:`.samplers`: of ``groups``, with ``labelled_per_batch`` of
    the positions ``labelled`` in each, or both, or of like ``lengths``, or shuffled. ``share =
    (rank, processes)`` takes a consecutive slice of each (of whole blocks, where there are
    ``groups``), so the union over processes is the batch of one process. Random transforms of the
    data set draw as in the epoch ``view``; default: this one. ``pin`` the memory of batches that
    are loaded for a GPU.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    count = size(dataset)
    some = labelled if labelled_per_batch else None
    if groups is not None and some is not None:
        whole = grouped_with_others(
            groups, some, labelled_per_batch, batch_size, per_group, generator
        )
    elif groups is not None:
        whole = by_group(groups, batch_size, per_group, generator)
    elif lengths is not None:
        whole = by_length(lengths, batch_size, generator)
    elif some is not None:
        whole = with_labels(count, some, labelled_per_batch, batch_size, generator)
    else:
        whole = shuffled(count, batch_size, generator)
    each = 1 if groups is None else per_group
    batches = [share_of(batch, each, share) for batch in whole[first:last]]
    indexed = _Indexed(dataset, seed=seed, epoch=epoch if view is None else view)
    return _batches(task, indexed, batches, workers, pin=pin)


def evaluation_batches(
    task: Task, dataset: Dataset[Any], *, batch_size: int, share: tuple[int, int], workers: int
) -> Iterator[Batch]:
    """One process' share of a data set, in order."""
    mine = torch.arange(size(dataset)).tensor_split(share[1])[share[0]]
    batches = list(torch.split(mine, batch_size)) if len(mine) else []
    return _batches(task, _Indexed(dataset, seed=0, epoch=0), batches, workers)


def view_batches(
    task: Task,
    dataset: Dataset[Any],
    places: Tensor,
    *,
    batch_size: int,
    seed: int,
    view: int,
    workers: int,
) -> Iterator[Batch]:
    """Some samples in a given order, as :func:`epoch_batches` of that ``view`` reads them."""
    batches = torch.split(places, batch_size)
    return _batches(task, _Indexed(dataset, seed=seed, epoch=view), batches, workers)


def in_training(
    task: Task,
    raw: Batch,
    config: FitConfig,
    device: torch.device,
    *,
    seed: int,
    view: int,
    augmented: bool = True,
) -> Batch:
    """A batch as the networks see it in training: on the device, prepared, in their layout."""
    batch = task.prepare(to_device(raw, device), train=augmented, seed=seed, epoch=view)
    batch = batch | {"view": view}
    if config.layout == "channels_last":
        return {name: _channels_last(value) for name, value in batch.items()}
    return batch


def _channels_last(value: Any) -> Any:
    is_map = torch.is_tensor(value) and value.ndim == 4
    return value.contiguous(memory_format=torch.channels_last) if is_map else value


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device."""
    return {
        k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()
    }


def _batches(
    task: Task, indexed: "_Indexed", batches: Sequence[Tensor], workers: int, *, pin: bool = False
) -> Iterator[Batch]:
    """The batches of these samples: indexed where the data set lies in memory, else loaded."""
    found = held(indexed.dataset)
    if found is not None:
        return map(task.collate, found.batches(batches))
    loader: DataLoader[Batch] = DataLoader(
        indexed,
        batch_sampler=[places.tolist() for places in batches],
        collate_fn=partial(_collate, task),
        num_workers=workers,
        pin_memory=pin,
        generator=torch.Generator(),  # workers take their base seed here, not from the global one
    )
    return iter(loader)


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
        with kept_generators():
            if whole is None or not _returns_batches(self.dataset):
                return indices, [self._sample(index) for index in indices]
            seed_generators(hash((self.seed, self.epoch, *indices)))
            return indices, whole(indices)

    def _sample(self, index: int) -> Any:
        seed_generators(hash((self.seed, self.epoch, index)))
        return self.dataset[index]


def _returns_batches(dataset: Dataset[Any]) -> bool:
    """Whether whole batches are the data set's own; a ``Subset`` only passes them through."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return hasattr(dataset, "__getitems__")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators for a block, then put them back as they were."""
    with kept_generators():
        seed_generators(seed)
        yield


def seed_generators(seed: int) -> None:
    """Seed the global generators of this machine's CPU, which transforms draw from."""
    # Not torch.manual_seed, which would seed the devices too, and so the network's dropout.
    torch.default_generator.manual_seed(seed % 2**63)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (users' transforms)


@contextmanager
def kept_generators() -> Iterator[None]:
    """Whatever is drawn in a block, the global generators are afterwards as they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
