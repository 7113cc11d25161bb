"""Ask a teacher once about every view of every sample, and keep what it says."""

import threading
import time
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from congener.engine.config import FitConfig
from congener.engine.feed import in_training, size, to_device, view_batches
from congener.engine.machine import build_accelerator, interrupts
from congener.errors import DataError, Interrupted, RecipeError
from congener.runlog import RunLog
from congener.task import Task
from congener.teachers import FrozenTeacher
from congener.teachers.cached import tap_field
from congener.teachers.formats import Field
from congener.teachers.rows import LEAST, at_least, taken
from congener.teachers.store import WITNESS, Shard, TeacherStore
from congener.teachers.witness import witness
from congener.types import Batch, Outputs

__all__ = ["build_store", "fields_of"]

POLL = 0.2  # seconds between looks at what other processes have done
DEPENDS = 1e-3  # share of the norm by which answers may differ from batch to batch; ours
DEPENDS_AUTOCAST = 5e-2


def fields_of(
    teacher: FrozenTeacher,
    batch: Batch,
    *,
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32",
    top_k: int | None = None,
    temperature: float = 1.0,
    config: FitConfig | None = None,
) -> list[Field]:
    """What a store keeps of each sample, found out by asking about some.

    Args:
        teacher: whom the store will stand for.
        batch: a prepared training batch, of two samples or more, on the teacher's device.
        dtype: the format in which answers are kept.
        top_k: keep so many of the logits.
        temperature: at which the other logits keep their weight.
        config: the settings of the training, for its precision; default: fp32.

    Raises:
        RecipeError: a teacher whose answers about a sample depend on the rest of the batch or on
            chance, or formats that do not fit.
    """
    accelerator = build_accelerator(config or FitConfig(steps=1))
    whole = to_device(at_least(batch, 2 * LEAST), accelerator.device)
    teacher.to(accelerator.device)  # whose autocast decides in which formats it answers
    with accelerator.autocast():
        said = _named(teacher(whole))
        alone = _named(teacher(taken(whole, torch.zeros(LEAST, dtype=torch.int64))))
    teacher.to(batch["index"].device)
    tolerance = DEPENDS if accelerator.mixed_precision == "no" else DEPENDS_AUTOCAST
    fields = []
    for name, value in said.items():
        if len(value) != len(whole["index"]) or not value.is_floating_point():
            raise RecipeError(
                f"The teacher's {name} of {len(whole['index'])} samples are "
                f"{tuple(value.shape)} of {value.dtype}, not numbers for each sample, so they "
                "cannot be kept; ask the teacher live."
            )
        first = value[:1].double()
        far = (alone[name] - first).flatten(1).norm(dim=1).amax()
        if not float(far) <= tolerance * float(first.norm()):
            raise RecipeError(
                f"The teacher's {name} of a sample depend on the rest of its batch, or on chance, "
                "so they cannot be kept; ask the teacher live."
            )
        returns, shape = str(value.dtype).removeprefix("torch."), tuple(value.shape[1:])
        largest = top_k if name == "logits" else None
        fields.append(Field(name, shape, returns, dtype, largest, temperature))
    return fields


def build_store(
    store: TeacherStore,
    teacher: FrozenTeacher,
    task: Task,
    train: Dataset[Any],
    config: FitConfig,
    *,
    seed: int,
    log: RunLog | None = None,
) -> None:
    """Ask a teacher about all that a store is missing.

    Several processes may do so at once, of one run or of several; each returns when nothing is
    missing any more. A process that is killed leaves whole files, and the next one goes on.

    Args:
        store: what is built.
        teacher: who is asked, with the taps that the store's fields name.
        task: how batches are prepared.
        train: the training set that the store's sample ids count.
        config: the settings of the training: precision, device, batch size and workers.
        seed: of the augmentation.
        log: where events go.

    Raises:
        DataError: answers that are not finite, not of the store's shapes, or too large for their
            format; samples with ids of their own; another number of samples.
        RunError: a folder that cannot be written, or a disk that is too small.
        Interrupted: after Ctrl-C or SIGTERM.
    """
    missing = store.missing()
    if not missing:
        return
    if size(train) != store.samples:
        raise DataError(
            f"The store {store.folder} is of {store.samples} samples, but the training set has "
            f"{size(train)}; build it in another folder."
        )
    store.check_room()
    builder = _Builder(store, teacher, task, train, config, seed, log or RunLog(None))
    with interrupts() as interrupted:
        builder.build(missing, interrupted)


class _Builder:
    """One process' part in building a store."""

    def __init__(
        self,
        store: TeacherStore,
        teacher: FrozenTeacher,
        task: Task,
        train: Dataset[Any],
        config: FitConfig,
        seed: int,
        log: RunLog,
    ) -> None:
        self.store, self.teacher, self.task, self.train = store, teacher, task, train
        self.config, self.seed, self.log = config, seed, log
        self.accelerator = build_accelerator(config)
        teacher.to(self.accelerator.device)

    def build(self, missing: list[Shard], interrupted: threading.Event) -> None:
        """Write what is missing, or wait for others who do."""
        store, log = self.store, self.log
        log.emit("cache_build", bytes=store.nbytes, samples=store.samples, views=store.views)
        started = time.perf_counter()
        while missing:
            wrote = [self._write(shard, interrupted) for shard in missing]
            missing = store.missing()
            if missing and not any(wrote):
                interrupted.wait(POLL)
            if interrupted.is_set():
                raise Interrupted
        log.emit("cache_built", seconds=round(time.perf_counter() - started, 3), bytes=store.nbytes)

    def _write(self, shard: Shard, interrupted: threading.Event) -> bool:
        """Write one shard, unless another process does."""
        with self.store.claim(shard) as draft:
            if draft is None:
                return False
            pieces = []
            for piece in self._answers(shard):
                pieces.append(piece)
                if interrupted.is_set():
                    raise Interrupted
            whole = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
            self.store.write(draft, whole)
        return True

    def _answers(self, shard: Shard) -> Iterator[dict[str, Tensor]]:
        """The encoded parts of a shard's rows, batch by batch."""
        total = self.store.samples * self.store.views
        done = total - sum(other.rows for other in self.store.missing())
        places = torch.arange(shard.first, shard.last + 1)
        rows = max(LEAST, self.config.batch_size)
        raws = view_batches(
            self.task, self.train, places, batch_size=rows, seed=self.seed, view=shard.view,
            workers=self.config.workers,
        )  # fmt: skip
        for raw, wanted in zip(raws, torch.split(places, rows), strict=True):
            if not torch.equal(raw["index"].cpu().long(), wanted):
                raise DataError(
                    f"The samples at places {wanted[0]} to {wanted[-1]} of the training set call "
                    f"themselves {raw['index'][0]} to {raw['index'][-1]}; a store needs ids that "
                    "are places: leave `index` out of the samples, or ask the teacher live."
                )
            done += len(wanted)
            yield self._encoded(raw, shard)
            self.log.show("caching", done=done, total=total)

    def _encoded(self, raw: Batch, shard: Shard) -> dict[str, Tensor]:
        """What the store keeps of a batch."""
        batch = in_training(
            self.task, raw, self.config, self.accelerator.device, seed=self.seed, view=shard.view
        )
        ids = batch["index"]
        with self.accelerator.autocast():
            said = _named(self.teacher(at_least(batch)))
        said = {name: value[: len(ids)] for name, value in said.items()}
        said[WITNESS] = witness(batch)
        parts: dict[str, Tensor] = {}
        for name, field in self.store.fields.items():
            self._check(said[name], field, ids, shard.view)
            parts |= field.encode(said[name].cpu())
        return parts

    def _check(self, value: Tensor, field: Field, ids: Tensor, view: int) -> None:
        """Refuse what must not be kept."""
        what = "inputs" if field.name == WITNESS else f"teacher's {field.name}"
        came = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape[1:])}"
        expected = f"{field.returns} {list(field.shape)}"
        if came != expected:
            raise DataError(
                f"The {what} of sample {int(ids[0])} are {came} where the first ones were "
                f"{expected}; a store needs samples of one size, asked about in one precision."
            )
        finite = value.flatten(1).isfinite().all(dim=1) if value.dim() > 1 else value.isfinite()
        if not bool(finite.all()):
            sample = int(ids[finite.logical_not()][0])
            raise DataError(
                f"The {what} of sample {sample} in view {view} are not finite; look at the sample, "
                "or at the teacher's precision."
            )


def _named(said: Outputs) -> dict[str, Tensor]:
    """What a teacher said, by the names of a store's fields."""
    return {"logits": said.logits} | {tap_field(p): v for p, v in said.features.items()}
