"""Training loops that a race compares: ours, which is ``fit``, and those written by hand.

All train WRN-16-1 from WRN-40-2 on images of CIFAR's shape by cross-entropy + KD + SP on the last
map (8192 wide in the teacher), SGD, batch 64, in the same order. The teacher is random; its batch
norms know their statistics, so that its maps have the size of a trained network's.

``repdistiller`` and ``mdistiller`` are loops written from a description of what theirs do in a
step, with our networks and the plain losses: what they compute and keep, not their code.
"""

import ctypes
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from races import Tick
from torch import Tensor, nn

from congener.engine import FitConfig, fit
from congener.engine.answers import build_store, fields_of
from congener.losses import KDLoss, SPLoss
from congener.runlog import RunLog
from congener.systems import Distillation
from congener.tasks.image_classification import ImageClassification
from congener.tasks.image_classification.data.synthetic import tensors
from congener.tasks.image_classification.models import wrn_16_1, wrn_40_2
from congener.teachers import CachedTeacher, FrozenTeacher
from congener.teachers.store import TeacherStore
from congener.types import Term

SAMPLES, CLASSES, BATCH = 512, 100, 64
TEMPERATURE, KD_WEIGHT, SP_WEIGHT = 4.0, 0.9, 30.0
OPTIMIZER = {"lr": 1e-4, "momentum": 0.9, "weight_decay": 5e-4}
MAP = "relu"
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
FAST: dict[str, Any] = {"layout": "channels_last", "fused": True, "keep_memory": True}


class Data(NamedTuple):
    images: Tensor
    labels: Tensor


def data(samples: int = SAMPLES) -> Data:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(samples, 3, 32, 32, generator=generator)
    return Data(images, torch.randint(CLASSES, (samples,), generator=generator))


def order(samples: int, seed: int = 0) -> Iterator[Tensor]:
    """The positions of one batch after another, as ``fit`` shuffles them."""
    for epoch in itertools.count():
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        yield from torch.randperm(samples, generator=generator).split(BATCH)


def student_network() -> nn.Sequential:
    torch.manual_seed(0)
    return wrn_16_1(CLASSES)  # type: ignore[return-value]


def teacher_network() -> nn.Sequential:
    torch.manual_seed(1)
    teacher = wrn_40_2(CLASSES)
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean of what it sees
    with torch.no_grad():
        teacher(data(128).images)
    return teacher.eval().requires_grad_(False)  # type: ignore[return-value]


def kd(student: Tensor, teacher: Tensor) -> Tensor:
    soft = F.log_softmax(student / TEMPERATURE, dim=1)
    target = F.softmax(teacher / TEMPERATURE, dim=1)
    return F.kl_div(soft, target, reduction="batchmean") * TEMPERATURE**2


def sp(student: Tensor, teacher: Tensor) -> Tensor:
    grams = [feature.flatten(1) @ feature.flatten(1).T for feature in (student, teacher)]
    ours, theirs = (F.normalize(gram, dim=1) for gram in grams)
    return (theirs - ours).square().sum() / len(ours) ** 2


def by_hand(tick: Tick, *, fast: bool = False, keeps_memory: bool = False) -> None:
    """A good loop of one's own: what is needed and no more, the teacher first.

    Args:
        tick: ends a step.
        fast: channels last and a fused optimiser.
        keeps_memory: with the settings of glibc's allocator that ours has as an option.
    """
    if keeps_memory:
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    images, labels = data()
    student, teacher = student_network(), teacher_network()
    if fast:
        student, teacher = (x.to(memory_format=torch.channels_last) for x in (student, teacher))
    bodies = [network[:-2] for network in (student, teacher)]
    heads = [network[-2:] for network in (student, teacher)]
    optimizer = torch.optim.SGD(student.parameters(), **OPTIMIZER, fused=fast)
    for rows in order(SAMPLES):
        x, y = images[rows], labels[rows]
        if fast:
            x = x.contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        with torch.no_grad():
            teacher_map = bodies[1](x)
            teacher_logits = heads[1](teacher_map)
        student_map = bodies[0](x)
        logits = heads[0](student_map)
        loss = F.cross_entropy(logits, y) + KD_WEIGHT * kd(logits, teacher_logits)
        loss = loss + SP_WEIGHT * sp(student_map, teacher_map)
        loss.backward()
        optimizer.step()
        tick(student)


def stages(network: nn.Sequential, x: Tensor) -> dict[str, Tensor]:
    """The output of every stage: what networks that return their features hand out."""
    found = {}
    for name, stage in network.named_children():
        x = found[name] = stage(x)
    return found


def counted(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Top-1 and top-5 accuracy, in percent."""
    best = logits.detach().topk(5, dim=1).indices == labels[:, None]
    return tuple(100 * best[:, :k].any(dim=1).float().mean().item() for k in (1, 5))  # type: ignore[return-value]


def repdistiller(tick: Tick) -> None:
    """The student first, every feature of both kept, and loss and accuracies read at each step."""
    images, labels = data()
    student, teacher = student_network(), teacher_network()
    optimizer = torch.optim.SGD(student.parameters(), **OPTIMIZER)
    meters: list[float] = []
    for rows in order(SAMPLES):
        x, y = images[rows], labels[rows]
        ours = stages(student, x)
        with torch.no_grad():
            theirs = {name: feature.detach() for name, feature in stages(teacher, x).items()}
        logits, teacher_logits = ours["classifier"], theirs["classifier"]
        loss = F.cross_entropy(logits, y) + KD_WEIGHT * kd(logits, teacher_logits)
        loss = loss + SP_WEIGHT * sp(ours[MAP], theirs[MAP])
        meters += [loss.item(), *counted(logits, y)]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tick(student)


class Distiller(nn.Module):
    """A module of both networks whose forward returns the logits and a mapping of losses."""

    def __init__(self, student: nn.Sequential, teacher: nn.Sequential) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def train(self, mode: bool = True) -> "Distiller":
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        ours = stages(self.student, images)
        with torch.no_grad():
            theirs = stages(self.teacher, images)
        logits, teacher_logits = ours["classifier"], theirs["classifier"]
        losses = {
            "loss_ce": F.cross_entropy(logits, labels),
            "loss_kd": KD_WEIGHT * kd(logits, teacher_logits)
            + SP_WEIGHT * sp(ours[MAP], theirs[MAP]),
        }  # fmt: skip
        return logits, losses


def mdistiller(tick: Tick) -> None:
    """Zero the gradients, ask the module, add up its losses, step, and read the meters."""
    images, labels = data()
    distiller = Distiller(student_network(), teacher_network())
    optimizer = torch.optim.SGD(distiller.student.parameters(), **OPTIMIZER)
    meters: list[float] = []
    distiller.train()
    for rows in order(SAMPLES):
        x, y = images[rows].float(), labels[rows]
        optimizer.zero_grad()
        logits, losses = distiller(x, y)
        loss = sum(value.mean() for value in losses.values())
        loss.backward()
        optimizer.step()
        meters += [loss.detach().numpy().mean(), *counted(logits, y)]
        tick(distiller.student)


def task_of(given: Data, **options: Any) -> ImageClassification:
    images, labels = given
    return ImageClassification(
        tensors(
            train_images=images, train_labels=labels,
            test_images=images[:BATCH], test_labels=labels[:BATCH], num_classes=CLASSES,
        ),
        **options,
    )  # fmt: skip


def terms(kinds: str) -> list[Term]:
    """``kd``, ``kd sp`` or nothing."""
    known = {
        "kd": Term(KDLoss(temperature=TEMPERATURE), KD_WEIGHT),
        "sp": Term(SPLoss(), SP_WEIGHT, MAP, MAP),
    }
    return [known[kind] for kind in kinds.split()]


def ours(tick: Tick, *, learns: str = "kd sp", **settings: Any) -> None:
    """``fit`` with a live teacher; ``learns`` nothing: the student alone."""
    task = task_of(data())
    teacher = teacher_network() if learns else None
    system = Distillation(student_network(), teacher, terms(learns), task=task)
    run(tick, system, task, settings)


def ours_cached(tick: Tick, *, learns: str = "kd sp", **settings: Any) -> None:
    """``fit`` with what :func:`keep_answers` kept."""
    cached(tick, task_of(data()), learns, settings)


def cached(tick: Tick, task: ImageClassification, learns: str, settings: Mapping[str, Any]) -> None:
    system = Distillation(student_network(), wrn_40_2(CLASSES), terms(learns), task=task)
    taps = [MAP] if "sp" in learns else []
    system.teacher = CachedTeacher(TeacherStore.open(tick.folder / "store"), taps)
    run(tick, system, task, settings)


def keep_answers(folder: Path, task: ImageClassification | None = None) -> None:
    """A store of what the teacher says, as exact as the live one."""
    torch.set_num_threads(1)
    task = task_of(data()) if task is None else task
    teacher = FrozenTeacher(teacher_network(), task, [MAP])
    train = task.splits["train"]
    sample = task.collate([train[place] for place in range(2)])
    sample = task.prepare(sample, train=True, seed=0, epoch=0) | {"view": 0}
    store = TeacherStore.create(
        folder / "store", {"teacher": "of the benchmark"}, fields_of(teacher, sample),
        samples=SAMPLES, views=1, versions={},
    )  # fmt: skip
    build_store(store, teacher, task, train, settings_of({}), seed=0)


def run(
    tick: Tick, system: Distillation, task: ImageClassification, settings: Mapping[str, Any]
) -> None:
    """Fit without end, as no loop by hand would record the balance of its losses."""

    def observe(event: Mapping[str, Any]) -> None:
        if event["event"] == "tick":
            tick(system.student)

    log = RunLog(None, observers=(observe,))
    fit(system, task, settings_of(settings), train=task.splits["train"], test=None, log=log)


def settings_of(settings: Mapping[str, Any]) -> FitConfig:
    return FitConfig(
        **{
            "steps": 10**6, "batch_size": BATCH, "optimizer": "sgd", "schedule": "constant",
            "balance_every": 0, "checkpoint_every": 0, "threads": 1, "device": "cpu",
        } | OPTIMIZER | dict(settings)
    )  # fmt: skip
