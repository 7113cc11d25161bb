"""Faults of the teacher: its mode, its weights, its inputs, its classes."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from congener.engine.feed import evaluation_batches, size
from congener.preflight.finding import Finding, Patient, without_trace
from congener.teachers import FrozenTeacher, fingerprint
from congener.types import Batch

__all__ = ["examine_teacher"]

SAMPLES = 512  # test samples that the teacher's figures are taken on
HELD = 20  # samples that an order of the classes is measured on, at least
CLOSE = 1e-3  # relative; what rounding may differ by


def examine_teacher(patient: Patient) -> Iterator[Finding]:
    """Everything that can be wrong with the teacher itself."""
    if patient.teacher is None:
        return
    steady = True
    for finding in _mode(patient, patient.teacher):
        steady = False
        yield finding
    yield from _inputs(patient, patient.teacher)
    if patient.taught and steady:
        yield from _knowledge(patient, patient.teacher)


def _mode(patient: Patient, teacher: nn.Module) -> Iterator[Finding]:
    frozen = FrozenTeacher(teacher, patient.task)
    before = fingerprint(teacher)
    first = frozen(patient.batch).logits
    again = frozen(patient.batch).logits
    half = range(max(1, len(patient.batch["index"]) // 2))
    alone = frozen(_rows(patient.batch, list(half))).logits
    close = max(CLOSE, 8 * torch.finfo(first.dtype).eps)
    if fingerprint(teacher) != before:
        yield Finding(
            "teacher_drifts", "teacher",
            "The teacher changes while it teaches: its statistics move although it is frozen.",
            "its parameters and buffers differ after two forwards in evaluation mode.",
            "Let its normalisation layers obey eval(), or save it with fixed statistics.",
        )  # fmt: skip
        return
    alive = [n for n, module in teacher.named_modules() if module.training and n]
    if _distance(first, again) > close:
        yield Finding(
            "teacher_random", "teacher",
            "The teacher answers the same batch differently each time, as in training mode.",
            f"two forwards differ by {_distance(first, again):.2g} of their size"
            + (f"; in training mode: {', '.join(alive[:3])}." if alive else "."),
            "Put it in evaluation mode: dropout must obey eval().",
        )  # fmt: skip
    elif _distance(first[: len(alone)], alone) > close:
        yield Finding(
            "teacher_by_batch", "teacher",
            "The teacher's answer to a sample depends on the others in the batch, as in training "
            "mode.",
            f"half of a batch is answered differently by "
            f"{_distance(first[: len(alone)], alone):.2g} of its size.",
            "Put it in evaluation mode: BatchNorm must use its running statistics.",
        )  # fmt: skip


def _inputs(patient: Patient, teacher: nn.Module) -> Iterator[Finding]:
    """Student and teacher must look at the same thing, up to brightness and contrast."""
    student = patient.assembly.student(patient.recipe.seeds[0])
    seen = [_seen_by(patient, network) for network in (student, teacher)]
    if any(x is None for x in seen) or seen[0].shape[0] != seen[1].shape[0]:  # type: ignore[union-attr]
        return
    mine, theirs = (x.double().flatten(1) for x in seen if x is not None)
    if mine.shape != theirs.shape:
        return  # another size: the preprocessing of another network
    mine, theirs = (x - x.mean(1, keepdim=True) for x in (mine, theirs))
    sizes = torch.stack([x.norm(dim=1) for x in (mine, theirs)])
    clear = (sizes > 1e-3 * sizes.amax(1, keepdim=True)).all(0)  # a blank sample is like no other
    alike = nn.functional.cosine_similarity(mine, theirs, dim=1)[clear]
    if len(alike) and float(alike.min()) < 0.98:
        yield Finding(
            "inputs_differ", "task",
            "Student and teacher see different versions of the same sample.",
            f"the correlation of what reaches them is {float(alike.min()):.2f} for the worst.",
            "Augment once, in prepare(), not in call(), so that both see the same view.",
        )  # fmt: skip


def _seen_by(patient: Patient, network: nn.Module) -> Tensor | None:
    held: list[Tensor] = []

    def look(_module: nn.Module, args: tuple[object, ...]) -> None:
        held.extend(arg.detach().clone() for arg in args[:1] if isinstance(arg, Tensor))

    handle = network.register_forward_pre_hook(look)
    try:
        patient.logits(network, without_trace(patient.batch))
    finally:
        handle.remove()
    return held[0] if held and held[0].is_floating_point() else None


def _knowledge(patient: Patient, teacher: nn.Module) -> Iterator[Finding]:
    classes = len(patient.task.class_names)
    batch = _known(patient) if classes > 1 else None
    if batch is None:
        return
    labels = batch["labels"]
    logits = patient.logits(teacher, batch)
    if logits.ndim != 2 or not len(labels):
        return
    said = logits.argmax(1)
    right, guess, noise = _accuracy(said, labels), *_guess(labels)
    reordered, moved = _reordered(said, labels, classes)
    if reordered > max(right + noise, 2 * right, 0.5):
        yield Finding(
            "classes_off_by_one" if moved == "by one" else "classes_permuted", "teacher",
            f"The teacher's classes are shifted {moved} against the data's." if moved
            else "The teacher numbers the classes in another order than the data does.",
            f"accuracy {right:.2f} as it is, {reordered:.2f} with its outputs in another order.",
            "Reorder the rows of its classifier, or the labels, to one order.",
        )  # fmt: skip
        return
    best, name = max(_otherwise(patient, teacher, batch))
    if best > right + noise + 0.1:
        yield Finding(
            "wrong_normalisation", "teacher",
            "The teacher gets images in another range than it was trained on.",
            f"accuracy {right:.2f} as it is, {best:.2f} with images {name}.",
            "Give it its own mean and std (`preprocessing` of the teacher).",
        )  # fmt: skip
    elif right < guess + noise:
        yield Finding(
            "teacher_at_chance", "teacher",
            "The teacher knows no more than a guess.",
            f"accuracy averaged over classes {right:.2g} on {len(labels)} test samples, where a "
            f"guess has {guess:.2g}.",
            "Check its checkpoint and its order of classes, or train it (`train` of the teacher).",
        )  # fmt: skip


def _known(patient: Patient) -> Batch | None:
    """Labelled test samples, spread over the set; ``None`` where samples have no one label."""
    from torch.utils.data import Subset

    test = patient.task.splits["test"]
    count = size(test)
    places = torch.linspace(0, count - 1, min(count, SAMPLES)).long().tolist()
    raw = next(
        evaluation_batches(
            patient.task, Subset(test, places), batch_size=len(places), share=(0, 1), workers=0
        )
    )
    batch = patient.task.prepare(raw, train=False, seed=0, epoch=0)
    labels = batch.get("labels")
    if not isinstance(labels, Tensor) or labels.ndim != 1:
        return None
    known = ((labels >= 0) & (labels < len(patient.task.class_names))).nonzero().flatten()
    return _rows(batch, known.tolist())


def _rows(batch: Batch, places: list[int]) -> Batch:
    """Some samples of a batch."""
    count = len(batch["index"])
    kept: dict[str, Any] = {}
    for key, value in batch.items():
        if isinstance(value, Tensor) and value.ndim and len(value) == count:
            kept[key] = value[places]
        elif isinstance(value, list | tuple) and len(value) == count:
            kept[key] = [value[place] for place in places]
        else:
            kept[key] = value
    return kept


def _accuracy(said: Tensor, labels: Tensor) -> float:
    """Accuracy averaged over classes: whoever always says the same class has that of a guess."""
    of_class = torch.bincount(labels)
    hits = (said == labels).double() / of_class[labels]
    return float(hits.sum() / (of_class > 0).sum())


def _guess(labels: Tensor) -> tuple[float, float]:
    """That accuracy of a guess, and four of its standard deviations."""
    counts = torch.bincount(labels)
    counts = counts[counts > 0].double()
    chance = 1 / len(counts)
    return chance, 4 * chance * float((chance * (1 - chance) / counts).sum().sqrt())


def _reordered(said: Tensor, labels: Tensor, classes: int) -> tuple[float, str]:
    """The accuracy with the outputs in the best other order, and by how much they are shifted.

    A shift is one number, found on all samples. Any other order is found on one half of the
    samples and measured on the rest of the same classes, since it fits whatever it is found on.
    """
    turns = torch.bincount((labels - said) % classes, minlength=classes)
    shift = int(turns[1:].argmax()) + 1
    best = _accuracy((said + shift) % classes, labels)
    counts = np.zeros((classes, classes))
    np.add.at(counts, (said[::2].numpy(), labels[::2].numpy()), 1)
    rows, columns = linear_sum_assignment(-counts / np.maximum(counts.sum(0), 1))
    order = torch.zeros(classes, dtype=torch.int64)
    order[torch.from_numpy(rows)] = torch.from_numpy(columns)
    seen = torch.isin(labels[1::2], labels[::2])
    any_order = 0.0
    if int(seen.sum()) >= HELD:
        any_order = _accuracy(order[said[1::2][seen]], labels[1::2][seen])
    if best >= 0.9 * any_order:
        return best, "by one" if shift in (1, classes - 1) else f"by {shift}"
    return any_order, ""


def _otherwise(patient: Patient, teacher: nn.Module, batch: Batch) -> Iterator[tuple[float, str]]:
    """The teacher's accuracy on images in the ranges that networks are commonly trained on."""
    images = batch.get("image")
    if not isinstance(images, Tensor) or not images.is_floating_point():
        yield 0.0, "as they are"
        return
    axes = [axis for axis in range(images.ndim) if axis != 1]
    low, high = images.amin(axes, keepdim=True), images.amax(axes, keepdim=True)
    unit = (images - low) / (high - low).clamp(min=1e-12)
    mean, std = unit.mean(axes, keepdim=True), unit.std(axes, keepdim=True).clamp(min=1e-6)
    ranges: dict[str, Callable[[], Tensor]] = {
        "between 0 and 1": lambda: unit,
        "between 0 and 255": lambda: 255 * unit,
        "between -1 and 1": lambda: 2 * unit - 1,
        "of mean 0 and standard deviation 1": lambda: (unit - mean) / std,
        "normalised as ImageNet": lambda: (unit - 0.449) / 0.226,
    }
    for name, make in ranges.items():
        logits = patient.logits(teacher, dict(batch) | {"image": make()})
        yield _accuracy(logits.argmax(1), batch["labels"]), name


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / a.norm().clamp(min=1e-12))
