"""A task and two networks so small that a step takes a millisecond."""

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from congener.engine.feed import evaluation_batches
from congener.ops.collectives import global_mean
from congener.task import Metrics, Task
from congener.types import Batch

CLASSES, FEATURES = 3, 6


class TinyData(Dataset[Any]):
    """Points around three centres, sample by sample."""

    def __init__(self, count: int, seed: int, unlabelled: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        centres = 2 * torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(99))
        self.labels = torch.arange(count) % CLASSES
        self.images = centres[self.labels] + torch.randn(count, FEATURES, generator=generator)
        self.labels = self.labels.clone()
        self.labels[:unlabelled] = -100

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


class TinyTask(Task):
    """Cross-entropy on :class:`TinyData`; the figures are its mean and the accuracy."""

    metric = "accuracy"
    class_names = tuple("abc")

    def __init__(self, count: int = 50, unlabelled: int = 0) -> None:
        self.splits = {"train": TinyData(count, 0, unlabelled), "test": TinyData(30, 1)}

    def build_model(self, name: str, **kwargs: Any) -> nn.Module:
        raise NotImplementedError

    def collate(self, samples: Any) -> Batch:
        images, labels = zip(*samples, strict=True)
        return {"image": torch.stack(images), "labels": torch.tensor(labels)}

    def prepare(self, batch: Batch, *, train: bool, seed: int, epoch: int) -> Batch:
        return batch

    def call(self, model: nn.Module, batch: Batch) -> Any:
        return model(batch["image"])

    def logits(self, result: Any) -> Tensor:
        assert isinstance(result, Tensor)
        return result

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        labels = batch["labels"]
        values = F.cross_entropy(logits, labels, ignore_index=-100, reduction="none")
        return global_mean(values, labels != -100)

    def metrics(self, device: torch.device) -> Metrics:
        return _Figures()


class _Figures:
    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    def update(self, result: Any, batch: Batch) -> None:
        values = F.cross_entropy(result, batch["labels"], reduction="none")
        self.parts.append(torch.stack([result.argmax(-1) == batch["labels"], values]))

    def compute(self) -> dict[str, float]:
        mine = torch.cat(self.parts, 1)
        accuracy, loss = (float(global_mean(row).detach()) for row in mine)
        return {"accuracy": accuracy, "cross_entropy": loss}


def batch_of(task: Task, count: int = 12, split: str = "train") -> Batch:
    return next(
        evaluation_batches(task, task.splits[split], batch_size=count, share=(0, 1), workers=0)
    )


def student_net(width: int = 8, *, norm: bool = True, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(3)
    layers: list[nn.Module] = [nn.Linear(FEATURES, width)]
    layers += [nn.BatchNorm1d(width)] if norm else []
    return nn.Sequential(
        OrderedDict(
            hidden=nn.Sequential(*layers, nn.ReLU()),
            dropout=nn.Dropout(dropout),
            classifier=nn.Linear(width, CLASSES),
        )
    )


def teacher_net() -> nn.Sequential:
    """A wider network with running statistics of its own, and dropout."""
    net = student_net(16, dropout=0.5)
    generator = torch.Generator().manual_seed(5)
    norm = net.hidden[1]
    assert isinstance(norm, nn.BatchNorm1d)
    norm.running_mean = torch.randn(16, generator=generator)
    norm.running_var = torch.rand(16, generator=generator) + 0.5
    return net
