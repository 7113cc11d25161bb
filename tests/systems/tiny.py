"""A task and two networks so small that a step takes a millisecond."""

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from congener.engine.feed import evaluation_batches
from congener.losses import mm_hashing_loss
from congener.ops.collectives import global_mean
from congener.task import Metrics, Task
from congener.types import Batch

CLASSES, FEATURES, SIDE = 3, 6, 8


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


class TinyPictures(TinyData):
    """Three patterns in noise, (1, 8, 8) each."""

    def __init__(self, count: int, seed: int) -> None:
        super().__init__(count, seed)
        generator = torch.Generator().manual_seed(seed)
        patterns = torch.randn(CLASSES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(98))
        noise = torch.randn(count, 1, SIDE, SIDE, generator=generator)
        self.images = patterns[self.labels] + 0.7 * noise


class TinyPictureTask(TinyTask):
    """:class:`TinyTask` on :class:`TinyPictures`."""

    def __init__(self, count: int = 50) -> None:
        self.splits = {"train": TinyPictures(count, 0), "test": TinyPictures(30, 1)}


class TwoViewTask(TinyTask):
    """:class:`TinyTask` with a second view of each point, for systems that learn from two."""

    def collate(self, samples: Any) -> Batch:
        batch = super().collate(samples)
        return batch | {"strong_image": batch["image"] + 0.5 * batch["image"].flip(1)}


class TinyPairTask(TinyTask):
    """:class:`TinyTask` whose points have a half in each of two modalities; codes are learnt."""

    metric = "hashing"
    higher_is_better = False
    class_names = ()

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        first, second = logits.unbind(1)
        return mm_hashing_loss(first, second, batch["labels"], first_weight=0.0, second_weight=0.0)

    def metrics(self, device: torch.device) -> Metrics:
        return _PairFigures(self)


class _PairFigures:
    def __init__(self, task: TinyPairTask) -> None:
        self.task = task
        self.parts: list[tuple[Tensor, Tensor]] = []

    def update(self, result: Any, batch: Batch) -> None:
        self.parts.append((result, batch["labels"]))

    def compute(self) -> dict[str, float]:
        logits, labels = (torch.cat(column) for column in zip(*self.parts, strict=True))
        return {"hashing": self.task.loss(logits, {"labels": labels}).detach().item()}


def batch_of(task: Task, count: int = 12, split: str = "train") -> Batch:
    return next(
        evaluation_batches(task, task.splits[split], batch_size=count, share=(0, 1), workers=0)
    )


def prepared_batch(task: Task, count: int = 12, split: str = "train") -> Batch:
    return task.prepare(batch_of(task, count, split), train=True, seed=0, epoch=0)


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


def conv_net(width: int = 8, *, norm: bool = True, dropout: float = 0.0) -> nn.Sequential:
    """Two maps, ``layer1`` (width, 4, 4) and ``layer2`` (2 · width, 2, 2), then ``pooled``."""
    torch.manual_seed(4)

    def layer(channels: int, wider: int) -> nn.Sequential:
        parts: list[nn.Module] = [nn.Conv2d(channels, wider, 3, 2, 1, bias=not norm)]
        parts += [nn.BatchNorm2d(wider)] if norm else []
        return nn.Sequential(*parts, nn.ReLU())

    return nn.Sequential(
        OrderedDict(
            layer1=layer(1, width),
            layer2=layer(width, 2 * width),
            pooled=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            dropout=nn.Dropout(dropout),
            classifier=nn.Linear(2 * width, CLASSES),
        )
    )


def conv_teacher() -> nn.Sequential:
    """A wider network of pictures, with dropout."""
    return conv_net(12, dropout=0.5)


class CoupledNet(nn.Module):
    """A network for each half of a point; what it answers is their codes, (batch, 2, bits)."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, points: Tensor) -> Tensor:
        halves = points.chunk(2, dim=1)
        return torch.stack((self.first(halves[0]), self.second(halves[1])), dim=1)


def coupled_net(width: int = 8, bits: int = 5, *, norm: bool = True) -> CoupledNet:
    torch.manual_seed(6)

    def half() -> nn.Sequential:
        layers: list[nn.Module] = [nn.Linear(FEATURES // 2, width)]
        layers += [nn.BatchNorm1d(width)] if norm else []
        return nn.Sequential(*layers, nn.ReLU(), nn.Linear(width, bits), nn.Tanh())

    return CoupledNet(half(), half())


def coupled_teacher() -> CoupledNet:
    """Wider networks, of longer codes."""
    return coupled_net(16, 9)


class TinyTexts(Dataset[Any]):
    """Texts of three topics, each with words of its own among common ones; ids 1 to 20, 0 fills."""

    def __init__(self, count: int, seed: int, unlabelled: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        topics = torch.arange(count) % CLASSES
        self.lengths = torch.randint(3, 8, (count,), generator=generator)
        common = torch.randint(1, 9, (count, 7), generator=generator)
        own = torch.randint(0, 4, (count, 7), generator=generator) + 9 + 4 * topics[:, None]
        said = torch.where(torch.rand(count, 7, generator=generator) < 0.6, own, common)
        self.tokens = said.masked_fill(torch.arange(7) >= self.lengths[:, None], 0)
        self.labels = topics.clone()
        self.labels[:unlabelled] = -100

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.tokens[index], int(self.lengths[index]), int(self.labels[index])


class TinyTextTask(TinyTask):
    """:class:`TinyTask` on :class:`TinyTexts`, each batch cut to its longest text."""

    pad = 0

    def __init__(self, count: int = 50, unlabelled: int = 0) -> None:
        self.splits = {"train": TinyTexts(count, 0, unlabelled), "test": TinyTexts(30, 1)}

    def collate(self, samples: Any) -> Batch:
        tokens, lengths, labels = zip(*samples, strict=True)
        longest = max(lengths)
        shown = torch.stack(tokens)[:, :longest]
        return {
            "image": shown, "tokens": shown, "mask": shown != 0,
            "length": torch.tensor(lengths), "labels": torch.tensor(labels),
        }  # fmt: skip

    def call(self, model: nn.Module, batch: Batch) -> Any:
        words: Any = model.get_submodule("words")
        shown = words(batch["tokens"])
        if "share" in batch:
            other, share = words(batch["other_tokens"]), batch["share"][:, None, None]
            shown = share * shown + (1 - share) * other
        return model(shown, batch["mask"])


class TextNet(nn.Module):
    """The mean of the words' embeddings, squared features of it, and a classifier."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.words = nn.Embedding(21, width)
        self.hidden = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Dropout(dropout))
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, shown: Tensor, mask: Tensor | None = None) -> Tensor:
        """Of embeddings (batch, tokens, width) with a mask, or of token ids (batch, tokens)."""
        mask = shown != 0 if mask is None else mask
        shown = shown if shown.is_floating_point() else self.words(shown)
        mean = (shown * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)
        logits: Tensor = self.classifier(self.hidden(mean))
        return logits


def text_net(width: int = 8, *, norm: bool = True, dropout: float = 0.0) -> TextNet:
    """``norm`` is as of the other networks, and there is none to leave out."""
    torch.manual_seed(8)
    return TextNet(width, dropout)


def text_teacher() -> TextNet:
    """A wider network of texts, with dropout."""
    return text_net(16, dropout=0.5)
