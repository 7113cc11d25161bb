"""Images from memory, a batch at a time, against a DataLoader with torchvision's transforms on PIL.

    python benchmarks/bench_data.py [words]

CIFAR's protocol: pad by 4, crop, mirror, normalise. Both sides work in the training process, on one
thread. The first line is the data alone; the others are whole epochs of the small student.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import loops
import numpy as np
import torch
import torch.nn.functional as F
from harness import Comparison, main
from PIL import Image
from races import Race, Ratio, Tick
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from congener.engine.feed import epoch_batches
from congener.tasks.image_classification import ImageClassification
from congener.teachers.store import TeacherStore

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
STEPS = loops.SAMPLES // loops.BATCH


def task() -> ImageClassification:
    """Eight-bit images in memory; an epoch draws the views of the first again, as a store has."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (loops.SAMPLES, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(loops.CLASSES, (loops.SAMPLES,), generator=generator)
    return ImageClassification(
        loops.tensors(
            train_images=images, train_labels=labels, test_images=images[:64],
            test_labels=labels[:64], num_classes=loops.CLASSES, mean=MEAN, std=STD,
        ),
        augment="crop_flip",
    )  # fmt: skip


class Pictures(Dataset[tuple[Tensor, int, int]]):
    """The same images as PIL has them, with the transforms that everyone writes."""

    def __init__(self) -> None:
        train = task().splits["train"]
        pixels = train.images.permute(0, 2, 3, 1).numpy()  # type: ignore[attr-defined]
        self.pictures = [Image.fromarray(each) for each in pixels]
        self.labels = train.labels.tolist()  # type: ignore[attr-defined]
        self.transform = transforms.Compose([
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> tuple[Tensor, int, int]:
        return self.transform(self.pictures[place]), self.labels[place], place


class Data(NamedTuple):
    task: ImageClassification
    loader: DataLoader[Any]


def both() -> Data:
    return Data(task(), DataLoader(Pictures(), loops.BATCH, shuffle=True))


def from_memory(given: Data) -> Sequence[Tensor]:
    batches = epoch_batches(
        given.task, given.task.splits["train"], batch_size=loops.BATCH, seed=0, epoch=0, view=0,
        first=0, last=STEPS, share=(0, 1), workers=0,
    )  # fmt: skip
    for batch in batches:
        given.task.prepare(batch, train=True, seed=0, epoch=0)
    return []


def from_pictures(given: Data) -> Sequence[Tensor]:
    for _ in given.loader:
        pass
    return []


def keep_answers(folder: Path) -> None:
    """The store, and the same numbers as plain files for the loop by hand."""
    loops.keep_answers(folder, task())
    store = TeacherStore.open(folder / "store")
    answers = store.read(["logits", loops.MAP], torch.arange(loops.SAMPLES), 0)
    for name, value in answers.items():
        np.save(folder / f"{name}.npy", value.numpy())


def by_hand(tick: Tick, *, caches: bool) -> None:
    """The loop by hand with the loader; ``caches``: the teacher's answers from mapped files."""
    student, teacher = loops.student_network(), loops.teacher_network()
    optimizer = torch.optim.SGD(student.parameters(), **loops.OPTIMIZER)
    files = [np.load(tick.folder / f"{name}.npy", mmap_mode="r") for name in (loops.MAP, "logits")]
    body, head = student[:-2], student[-2:]
    teacher_body, teacher_head = teacher[:-2], teacher[-2:]
    while True:
        for x, y, places in DataLoader(Pictures(), loops.BATCH, shuffle=True):
            optimizer.zero_grad()
            if caches:
                rows = places.numpy()
                teacher_map, answer = (torch.from_numpy(file[rows]) for file in files)
            else:
                with torch.no_grad():
                    teacher_map = teacher_body(x)
                    answer = teacher_head(teacher_map)
            student_map = body(x)
            logits = head(student_map)
            loss = F.cross_entropy(logits, y) + loops.KD_WEIGHT * loops.kd(logits, answer)
            loss = loss + loops.SP_WEIGHT * loops.sp(student_map, teacher_map)
            loss.backward()
            optimizer.step()
            tick(student)


def ours(tick: Tick, **settings: Any) -> None:
    loops.cached(tick, task(), "kd sp", {"views": 1} | loops.FAST | settings)


BENCHES = [
    Comparison(
        "data: a batch from memory vs PIL and torchvision", both, from_pictures, from_memory,
        goal=0.1,
    ),
    Race(
        {
            "PIL, live": partial(by_hand, caches=False),
            "PIL, cached": partial(by_hand, caches=True),
            "ours": ours,
            "ours, bf16": partial(ours, precision="bf16"),
        },
        [
            Ratio("epoch: in memory, cached, fast, vs PIL and the live teacher", "ours",
                  "PIL, live", 0.35),
            Ratio("epoch: the same with a bf16 student", "ours, bf16", "PIL, live", 0.35),
            Ratio("epoch: in memory, cached, fast, vs PIL, cached too", "ours", "PIL, cached"),
        ],
        steps=STEPS,
        rounds=5,
        prepare=keep_answers,
    ),
]  # fmt: skip

if __name__ == "__main__":
    main(BENCHES)
