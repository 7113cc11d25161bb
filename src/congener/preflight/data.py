"""Faults of the data and of what earlier runs left."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from congener.engine.feed import epoch_batches, evaluation_batches, size
from congener.engine.stages import stage_path
from congener.errors import CongenerError
from congener.preflight.finding import Finding, Patient
from congener.system import AnswerStage
from congener.teachers.store import TeacherStore
from congener.types import Batch

__all__ = ["examine_data", "examine_stages"]

MOST = 10_000  # samples of each set that are compared
PATIENCE = 1.5  # seconds in which they are read


def examine_data(patient: Patient) -> Iterator[Finding]:
    """Everything that can be wrong with the data, whatever is trained on them."""
    yield from _order(patient)
    yield from _finite(patient)
    yield from _leak(patient)
    yield from _classes(patient)


def examine_stages(patient: Patient) -> Iterator[Finding]:
    """Results that an earlier run kept, and that belong to something else."""
    folder = patient.out / "stages"
    wanted: dict[str, dict[Path, str]] = {}  # of each stage by name: its files, and their arms
    unknown = set()
    for arm, system in patient.systems():
        trained = patient.taught and not patient.recipe.all_arms[arm].learns_from
        for stage in system.stages():
            if stage.depends and not trained:  # the file's name depends on weights still to come
                unknown.add(stage.name)
                continue
            path = stage_path(folder, stage, patient.task, patient.recipe.train)
            if isinstance(stage, AnswerStage) and stage.folder is not None:
                yield from _named_folder(stage, stage.folder, path.name)
                continue
            wanted.setdefault(stage.name, {})[path] = arm
    for name in wanted.keys() - unknown:
        kind = next(iter(wanted[name])).suffix  # a file, or of an AnswerStage a folder
        kept = {path for path in folder.glob(f"{name}-*") if path.suffix == kind}
        others = sorted(kept - wanted[name].keys())
        lacking = [path for path in wanted[name] if not path.exists()]
        if others and lacking:
            yield Finding(
                "stale_cache", f"{wanted[name][lacking[0]]}, stage {name!r}",
                "What is kept of an earlier run was made with other networks, data or settings.",
                f"{others[0].name} is there, {lacking[0].name} is expected.",
                f"Remove {folder}, or name another run folder; it will be made anew.",
            )  # fmt: skip


def _named_folder(stage: AnswerStage, folder: Path, key: str) -> Iterator[Finding]:
    """What lies in the folder that a stage names."""
    try:
        found = TeacherStore.open(folder).identity
    except CongenerError:  # nothing, or what the run itself tells of
        return
    if found != {stage.name: key}:
        yield Finding(
            "stale_cache", f"{folder}, stage {stage.name!r}",
            "What is kept there was made with other networks, data or settings.",
            f"it is {', '.join(found.values())}, and {key} is expected.",
            "Remove that folder, or name another one; it will be made anew.",
        )  # fmt: skip


def _first_batch(patient: Patient) -> Batch:
    config = patient.recipe.train
    return next(
        epoch_batches(
            patient.task, patient.task.splits["train"], batch_size=config.batch_size, seed=0,
            epoch=0, first=0, last=1, share=(0, 1), workers=0,
        )
    )  # fmt: skip


def _order(patient: Patient) -> Iterator[Finding]:
    first, again = _first_batch(patient), _first_batch(patient)
    differ = [
        key
        for key, value in first.items()
        if isinstance(value, Tensor) and not _same(value, again[key])
    ]
    if differ:
        yield Finding(
            "random_data", "task",
            "The data set gives other samples each time it is asked for the same ones.",
            f"two readings of the first batch of seed 0 differ in {', '.join(differ)}.",
            "Draw random numbers from torch's, NumPy's or Python's global generator, which are "
            "seeded for each sample, or in prepare().",
        )  # fmt: skip


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal, where what is not a number equals itself."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _finite(patient: Patient) -> Iterator[Finding]:
    for key, value in patient.batch.items():
        if not (isinstance(value, Tensor) and value.is_floating_point() and len(value)):
            continue
        bad = int((~value.isfinite().flatten(1).all(1)).sum()) if value.ndim > 1 else 0
        if bad:
            yield Finding(
                "not_finite", f"task, {key!r}",
                "Samples hold values that are infinite or no numbers.",
                f"{bad} of {len(value)} samples of a training batch.",
                "Repair them or leave them out; one of them spoils the weights for good.",
            )  # fmt: skip


def _leak(patient: Patient) -> Iterator[Finding]:
    splits = patient.task.splits
    test = _hashes(patient, "test")
    for split in splits:
        if split == "test":
            continue
        common = _hashes(patient, split) & test
        if len(common) > max(2, len(test) // 1000):
            yield Finding(
                "leak", f"task, {split}",
                f"Samples of the test set are in the {split} set.",
                f"{len(common)} of {len(test)} test samples occur there, bit for bit.",
                "Divide the data anew, without duplicates between the parts.",
            )  # fmt: skip


def _hashes(patient: Patient, split: str) -> set[bytes]:
    """What samples contain, apart from labels and ids; of a database, what is asked of it."""
    from torch.utils.data import Subset

    data = patient.task.splits[split]
    kept: Any = data if size(data) <= MOST else Subset(data, list(range(MOST)))
    found: set[bytes] = set()
    end = time.monotonic() + PATIENCE
    for batch in evaluation_batches(patient.task, kept, batch_size=64, share=(0, 1), workers=0):
        if time.monotonic() > end:
            break
        parts = [
            value.contiguous().flatten(1).view(torch.uint8).numpy()
            for key, value in sorted(batch.items())
            if isinstance(value, Tensor) and key not in ("labels", "index") and value.ndim > 1
        ]
        asks = batch.get("query") if split == "test" else None
        for place, rows in enumerate(zip(*parts, strict=True)):
            if asks is None or asks[place]:
                found.add(_digest(rows))
    return found


def _digest(rows: Sequence[Any]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        digest.update(row.tobytes())
    return digest.digest()


def _classes(patient: Patient) -> Iterator[Finding]:
    """Labels that leave the first or the last class of the head empty."""
    classes = len(patient.task.class_names)
    labels = patient.task.labels("train")
    if labels is None:
        labels = patient.batch.get("labels")
    if not isinstance(labels, Tensor) or labels.ndim != 1 or classes < 3:
        return
    known = labels[labels >= 0]
    if len(known) and int(known.max()) >= classes:
        yield Finding(
            "labels_off_by_one", "task",
            "There are labels that no output of the head stands for.",
            f"the largest is {int(known.max())}, of {classes} classes, which are counted from 0.",
            "Number the classes from 0, and give the head as many outputs as there are classes.",
        )  # fmt: skip
        return
    counts = torch.bincount(known, minlength=classes)
    empty = [k for k in (0, classes - 1) if len(known) >= 20 * classes and counts[k] == 0]
    if empty:
        yield Finding(
            "labels_off_by_one", "task",
            "The labels may be off by one.",
            f"among {len(known)} labelled samples none has class {empty[0]}, of {classes}; they "
            f"run from {int(known.min())} to {int(known.max())}.",
            "Number the classes from 0, and give the head as many outputs as there are classes.",
        )  # fmt: skip
