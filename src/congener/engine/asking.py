"""What a stage asks about each sample once: kept in a store, or in memory without a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from congener.engine.answers import build_store, check_places
from congener.engine.config import FitConfig
from congener.engine.feed import in_training, size, view_batches
from congener.engine.machine import build_accelerator
from congener.errors import DataError, StaleCache
from congener.runlog import RunLog, versions
from congener.system import AnswerStage, TeacherLike
from congener.task import Task
from congener.teachers.formats import Field
from congener.teachers.rows import LEAST, at_least
from congener.teachers.store import TeacherStore
from congener.types import Batch, Outputs

__all__ = ["ask_each"]

SEED = 0
"""Of data sets that draw; samples are as they are when they are tested."""

ROWS = 512
"""Samples in a file at most: what a kill loses, and what a process builds alone; ours."""

ANSWER = "answer"
"""What a store calls the answers: logits it would round as what a softmax follows."""


def ask_each(
    stage: AnswerStage,
    task: Task,
    config: FitConfig,
    data: Dataset[Any],
    key: str,
    folder: Path | None,
    log: RunLog | None,
) -> None:
    """Do what an :class:`~congener.system.AnswerStage` asks for.

    Args:
        stage: what is asked.
        task: how batches are prepared.
        config: the settings of the fit that comes later.
        data: the samples.
        key: a name that tells all that the answers depend on.
        folder: where a store of that name is kept; default: in memory, unless the stage says where.
        log: where events go.

    Raises:
        StaleCache: the stage's own folder holds answers about something else.
        DataError: samples with ids of their own; of a store, answers that are not finite or of
            unlike shapes, and damage.
    """
    accelerator = build_accelerator(config)
    stage.ask.to(accelerator.device)

    def asked(raw: Batch) -> Tensor:
        batch = in_training(
            task, raw, config, accelerator.device, seed=SEED, view=0, augmented=False
        )
        with accelerator.autocast():
            answers = stage.ask(at_least(batch)).logits  # as a store is built
        return answers[: len(batch["index"])].cpu()

    def all_answers(places: Tensor) -> Iterator[Tensor]:
        rows = max(LEAST, config.batch_size)
        raws = view_batches(
            task, data, places, batch_size=rows, seed=SEED, view=0, workers=config.workers
        )
        for raw, wanted in zip(raws, torch.split(places, rows), strict=True):
            check_places(raw, wanted)
            yield asked(raw)

    folder = stage.folder or (None if folder is None else folder / key)
    if folder is None:
        whole = torch.cat(list(all_answers(torch.arange(size(data)))))
        stage.receive(partial(_held, whole))
        return
    if not (folder / "manifest.json").exists():
        sample = next(all_answers(torch.arange(min(2, size(data)))))
        kind = str(sample.dtype).removeprefix("torch.")
        field = Field(ANSWER, tuple(sample.shape[1:]), kind, stage.dtype)
        with _own_way_out():
            TeacherStore.create(
                folder, {stage.name: key}, [field],
                samples=size(data), views=1, versions=versions(), shard_rows=ROWS,
            )  # fmt: skip
    with _own_way_out():
        store = TeacherStore.open(folder)
    if store.identity != {stage.name: key}:
        raise StaleCache(
            f"{folder} holds {stage.name!r} made with another teacher, other data or other "
            "settings; name another folder, or remove it and it will be made anew."
        )
    build_store(store, _Plainly(stage.ask), task, data, config, seed=SEED, log=log, augmented=False)
    stage.receive(partial(_read, store))


class _Plainly:
    """Answers with a tensor of no special meaning."""

    def __init__(self, ask: TeacherLike) -> None:
        self.ask = ask

    def __call__(self, batch: Batch) -> Outputs:
        found = self.ask(batch).logits
        return Outputs(found, {ANSWER: found})

    def to(self, device: torch.device) -> "_Plainly":
        """Move who is asked to a device."""
        self.ask.to(device)
        return self


def _held(whole: Tensor, index: Tensor) -> Tensor:
    return whole[index.cpu()].to(index.device)


def _read(store: TeacherStore, index: Tensor) -> Tensor:
    with _own_way_out():
        return store.read([ANSWER], index, 0)[ANSWER].to(index.device)


@contextmanager
def _own_way_out() -> Iterator[None]:
    """A teacher's store is built anew by a command, a stage's by the run itself."""
    try:
        yield
    except (DataError, StaleCache) as error:
        told = str(error).replace("run `congener cache build` ", "run this ")
        raise type(error)(told) from error
