"""Ask a teacher once about every view of every sample, and keep what it says."""

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from congener.engine.config import FitConfig
from congener.engine.feed import in_training, size, to_device, view_batches
from congener.engine.machine import build_accelerator, interrupts
from congener.errors import DataError, Interrupted, RecipeError
from congener.runlog import RunLog
from congener.system import TeacherLike
from congener.task import Task
from congener.teachers import Fidelity, FrozenTeacher, fidelity
from congener.teachers.cached import tap_field
from congener.teachers.formats import Field
from congener.teachers.rows import LEAST, at_least, taken
from congener.teachers.store import WITNESS, Shard, TeacherStore
from congener.teachers.witness import witness
from congener.types import Batch, Outputs

__all__ = ["build_store", "check_places", "fields_of", "longest_answer"]

POLL = 0.2  # seconds between looks at what other processes have done
DEPENDS = 1e-3  # share of the norm by which answers may differ from batch to batch; ours
DEPENDS_AUTOCAST = 5e-2
MEASURED = 256  # rows; ours
LOOKED_AT = 512  # samples at a time; ours


def fields_of(
    teacher: FrozenTeacher,
    batch: Batch,
    *,
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32",
    top_k: int | None = None,
    temperature: float = 1.0,
    sampled: int | None = None,
    places: int | None = None,
    config: FitConfig | None = None,
) -> list[Field]:
    """What a store keeps of each sample, found out by asking about some.

    Args:
        teacher: whom the store will stand for.
        batch: a prepared training batch, of two samples or more, on the teacher's device.
        dtype: the format in which answers are kept.
        top_k: keep so many of the logits.
        temperature: at which the other logits keep their weight.
        sampled: draw so many of the others instead of having them all alike.
        places: of a task whose logits answer for tokens, what :func:`longest_answer` found.
        config: the settings of the training, for its precision; default: fp32.

    Raises:
        RecipeError: a teacher whose answers about a sample depend on the rest of the batch or on
            chance, or formats that do not fit; texts none of which has an answer.
    """
    if not teacher.task.logits_alone and (dtype != "fp32" or top_k or sampled):
        raise RecipeError(
            "The teacher's logits hold boxes as well, which would be rounded as probabilities; "
            "keep them as they are: dtype fp32, without top_k and sampled."
        )
    accelerator = build_accelerator(config or FitConfig(steps=1))
    whole = to_device(at_least(batch, 2 * LEAST), accelerator.device)
    answered = teacher.task.token_mask(whole)
    ones = torch.ones_like(whole["index"])
    counts = ones if answered is None else answered.sum(1)
    if answered is not None:
        witness(whole, answered)  # which refuses texts that it cannot hash
        if not (places and bool(counts.any())):
            raise RecipeError("No text has an answer that the teacher could be asked about.")
    chosen, sole = _one_alone(whole, answered)
    teacher.to(accelerator.device)  # whose autocast decides in which formats it answers
    with accelerator.autocast():
        said, alone = _named(teacher(whole)), _named(teacher(sole))
    teacher.to(batch["index"].device)
    tolerance = DEPENDS if accelerator.mixed_precision == "no" else DEPENDS_AUTOCAST
    fields = []
    for name, value in said.items():
        is_logits = name == "logits"
        _check_rows(value, name, answered, rows := counts if is_logits else ones)
        start, count = int(rows[:chosen].sum()), int(rows[chosen])
        first = _finite(value[start : start + count]).flatten()
        far = (_finite(alone[name]).reshape(LEAST, -1) - first).norm(dim=1).amax()
        if not float(far) <= tolerance * float(first.norm()):
            raise RecipeError(
                f"The teacher's {name} of a sample depend on the rest of its batch, or on chance, "
                "so they cannot be kept; ask the teacher live."
            )
        returns, shape = str(value.dtype).removeprefix("torch."), tuple(value.shape[1:])
        some = (top_k, temperature, places, sampled) if is_logits else (None, temperature)
        fields.append(Field(name, shape, returns, dtype, *some))
    return fields


def _one_alone(batch: Batch, answered: Tensor | None) -> tuple[int, Batch]:
    """The place of a sample, and a batch of nothing else.

    Of texts it is the shortest that has an answer, without what pads it.
    """
    if answered is None:
        return 0, taken(batch, torch.zeros(LEAST, dtype=torch.int64))
    lengths = batch["mask"].sum(1)
    chosen = int(lengths.masked_fill(~answered.any(1), answered.shape[1] + 1).argmin())
    alone, width = taken(batch, torch.full((LEAST,), chosen)), int(lengths[chosen])
    padded = (LEAST, answered.shape[1])
    return chosen, {
        name: value[:, :width] if isinstance(value, Tensor) and value.shape[:2] == padded else value
        for name, value in alone.items()
    }


def _check_rows(value: Tensor, name: str, answered: Tensor | None, rows: Tensor) -> None:
    """Refuse what a teacher said that is not so many numbers for each sample."""
    per_token = name != "logits" and answered is not None and value.shape[1:2] == answered.shape[1:]
    if len(value) != int(rows.sum()) or not value.is_floating_point() or per_token:
        raise RecipeError(
            f"The teacher's {name} of {len(rows)} samples are {tuple(value.shape)} of "
            f"{value.dtype}, not numbers for each sample, so they cannot be kept; ask the teacher "
            "live."
        )


def _finite(logits: Tensor) -> Tensor:
    """Without the -inf of what a teacher excludes."""
    return logits.double().nan_to_num(nan=math.nan, posinf=math.inf, neginf=0)


def longest_answer(
    task: Task, train: Dataset[Any], config: FitConfig, *, seed: int, views: int = 1
) -> int | None:
    """How many tokens the logits answer for at most, in any view of any training sample.

    ``None``: they answer for samples. The teacher is not asked.
    """
    longest = 0
    for view in range(views):
        raws = view_batches(
            task, train, torch.arange(size(train)), batch_size=LOOKED_AT, seed=seed, view=view,
            workers=config.workers,
        )  # fmt: skip
        for raw in raws:
            batch = in_training(task, raw, config, torch.device("cpu"), seed=seed, view=view)
            answered = task.token_mask(batch)
            if answered is None:
                return None
            longest = max(longest, int(answered.sum(1).max()))
    return longest


def build_store(
    store: TeacherStore,
    teacher: TeacherLike,
    task: Task,
    train: Dataset[Any],
    config: FitConfig,
    *,
    seed: int,
    log: RunLog | None = None,
    augmented: bool = True,
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
        augmented: ask about samples as in training, or else as they are when they are tested.

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
    builder = _Builder(
        store, teacher, task, train, config, seed, log or RunLog(None), augmented=augmented
    )
    with interrupts() as interrupted:
        builder.build(missing, interrupted)


def check_places(raw: Batch, wanted: Tensor) -> None:
    """Samples whose answers are kept must be called by their places in the training set.

    Raises:
        DataError: they have other ids.
    """
    if not torch.equal(raw["index"].cpu().long(), wanted):
        raise DataError(
            f"The samples at places {wanted[0]} to {wanted[-1]} of the training set call "
            f"themselves {raw['index'][0]} to {raw['index'][-1]}; a store needs ids that are "
            "places: leave `index` out of the samples, or ask the teacher live."
        )


class _Builder:
    """One process' part in building a store."""

    def __init__(
        self,
        store: TeacherStore,
        teacher: TeacherLike,
        task: Task,
        train: Dataset[Any],
        config: FitConfig,
        seed: int,
        log: RunLog,
        *,
        augmented: bool = True,
    ) -> None:
        self.store, self.teacher, self.task, self.train = store, teacher, task, train
        self.config, self.seed, self.log, self.augmented = config, seed, log, augmented
        self.accelerator = build_accelerator(config)
        teacher.to(self.accelerator.device)
        self.measured = Fidelity.read(store.folder) is not None

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
            check_places(raw, wanted)
            done += len(wanted)
            yield self._encoded(raw, shard)
            self.log.show("caching", done=done, total=total)

    def _encoded(self, raw: Batch, shard: Shard) -> dict[str, Tensor]:
        """What the store keeps of a batch."""
        batch = in_training(
            self.task, raw, self.config, self.accelerator.device, seed=self.seed, view=shard.view,
            augmented=self.augmented,
        )  # fmt: skip
        ids, whole = batch["index"], at_least(batch)
        answered = self.task.token_mask(whole)
        with self.accelerator.autocast():
            said = _named(self.teacher(whole))
        said[WITNESS] = witness(whole, answered)
        ones = torch.ones_like(whole["index"])
        counts = ones if answered is None else answered.sum(1)
        parts: dict[str, Tensor] = {}
        for name, field in self.store.fields.items():
            rows = ones if field.places is None else counts
            if len(said[name]) != int(rows.sum()) or int(rows.max()) > (field.places or 1):
                raise DataError(
                    f"The teacher's {name} of the samples {int(ids[0])} to {int(ids[-1])} are "
                    f"{len(said[name])} rows where {int(rows.sum())} were expected, of at most "
                    f"{field.places or 1} for each sample; do the data draw random numbers of "
                    "their own? Ask the teacher live."
                )
            rows = rows[: len(ids)]
            value = said[name][: int(rows.sum())]
            self._check(value, field, ids.repeat_interleave(rows), shard.view)
            draws = field.draws(ids, shard.view, None if field.places is None else rows)
            self._measure(field, value, draws)
            found = {k: v.cpu() for k, v in field.encode(value, draws).items()}
            parts |= found if field.places is None else field.spread(found, rows.cpu())
        return parts

    def _measure(self, field: Field, value: Tensor, draws: Tensor | None) -> None:
        """Tell once for a store what its logits lose."""
        if self.measured or field.name != "logits" or field.exact or not len(value):
            return
        some = slice(MEASURED)
        found = fidelity(field, value[some].cpu(), None if draws is None else draws[some].cpu())
        found.write(self.store.folder)
        self.log.emit("cache_fidelity", line=found.words(field), **asdict(found))
        self.measured = True

    def _check(self, value: Tensor, field: Field, ids: Tensor, view: int) -> None:
        """Refuse what must not be kept of the samples that rows are of."""
        if not len(value):
            return
        what = "inputs" if field.name == WITNESS else f"teacher's {field.name}"
        came = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape[1:])}"
        expected = f"{field.returns} {list(field.shape)}"
        if came != expected:
            raise DataError(
                f"The {what} of sample {int(ids[0])} are {came} where the first ones were "
                f"{expected}; a store needs samples of one size, asked about in one precision."
            )
        # Logits of -inf exclude a class.
        least = value.amax(-1) if field.name == "logits" and value.shape[-1] else value
        finite = least.flatten(1).isfinite().all(dim=1) if least.dim() > 1 else least.isfinite()
        if not bool(finite.all()):
            sample = int(ids[finite.logical_not()][0])
            raise DataError(
                f"The {what} of sample {sample} in view {view} are not finite; look at the sample, "
                "or at the teacher's precision."
            )


def _named(said: Outputs) -> dict[str, Tensor]:
    """What a teacher said, by the names of a store's fields."""
    return {"logits": said.logits} | {tap_field(p): v for p, v in said.features.items()}
