"""Texts so small that a teacher answers in a millisecond, and a store of what it says."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tests.systems.tiny import TinyTask
from torch import Tensor, nn
from torch.utils.data import Dataset

from congener.engine import FitConfig, build_store, fields_of, longest_answer
from congener.engine.feed import evaluation_batches
from congener.ops.collectives import global_mean
from congener.teachers import FrozenTeacher, TeacherStore
from congener.types import Batch

SAMPLES, WORDS, LONGEST = 40, 50, 9
CONFIG = FitConfig(epochs=1, batch_size=12, device="cpu")


class Texts(Dataset[Any]):
    """Prompts of 2 to 4 tokens and answers of 1 to 5; of every fifth text there is none."""

    def __init__(self, count: int = SAMPLES, seed: int = 0, unanswered: int = 5) -> None:
        generator = torch.Generator().manual_seed(seed)
        prompt = torch.randint(2, 5, (count,), generator=generator)
        answer = torch.randint(1, 6, (count,), generator=generator)
        answer[::unanswered] = 0
        answer[1], prompt[1] = 5, 4  # the longest
        tokens = torch.randint(1, WORDS, (count, LONGEST), generator=generator)
        places = torch.arange(LONGEST)
        length = prompt + answer
        tokens = tokens.masked_fill(places >= length[:, None], 0)
        self.columns = {"tokens": tokens, "prompt": prompt, "length": length}

    def __len__(self) -> int:
        return len(self.columns["tokens"])

    def __getitem__(self, index: int) -> Any:
        raise NotImplementedError

    def __getitems__(self, indices: list[int]) -> Batch:
        return {name: column[indices] for name, column in self.columns.items()}


class TextTask(TinyTask):
    """Logits for the tokens of the answers alone, a row for each."""

    augments = False
    class_names = ()

    def __init__(self, count: int = SAMPLES, *, unanswered: int = 5) -> None:
        self.splits = {"train": Texts(count, unanswered=unanswered), "test": Texts(10, 1)}

    def collate(self, samples: Any) -> Batch:
        return dict(samples)

    def prepare(self, batch: Batch, *, train: bool, seed: int, epoch: int) -> Batch:
        longest = int(batch["length"].max())
        tokens, places = batch["tokens"][:, :longest], torch.arange(longest)
        mask = places < batch["length"][:, None]
        answers = mask & (places >= batch["prompt"][:, None])
        labels = tokens.masked_fill(~answers, -100)
        return batch | {"tokens": tokens, "mask": mask, "labels": labels}

    def token_mask(self, batch: Batch) -> Tensor:
        return F.pad(batch["labels"][:, 1:] != -100, (0, 1))

    def targets(self, batch: Batch) -> Tensor:
        following: Tensor = batch["labels"][:, 1:]
        return following[following != -100]

    def call(self, model: nn.Module, batch: Batch) -> Any:
        return model(batch["tokens"])[self.token_mask(batch)]

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        return global_mean(F.cross_entropy(logits, self.targets(batch), reduction="none"))


class Reader(nn.Module):
    """A word is told from the mean of what was read so far; or, ``bidirectional``, of all."""

    def __init__(self, width: int = 16, *, words: int = WORDS, bidirectional: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.body = nn.Sequential(nn.Linear(width, width), nn.GELU())
        self.head = nn.Linear(width, words)
        self.bidirectional = bidirectional

    def forward(self, tokens: Tensor) -> Tensor:
        read = self.embedding(tokens)
        counts = torch.arange(1, read.shape[1] + 1)[:, None]
        past = read.mean(1, keepdim=True) if self.bidirectional else read.cumsum(1) / counts
        said: Tensor = self.head(self.body(read + past))
        return said


def reader(seed: int = 0, sharpness: float = 8.0, **options: Any) -> Reader:
    """A network that is sure of some words."""
    torch.manual_seed(seed)
    network = Reader(**options)
    with torch.no_grad():
        network.head.weight.mul_(sharpness)
    return network


def read_batch(task: TextTask, rows: int = SAMPLES, split: str = "train") -> Batch:
    """The first texts, as in training."""
    raw = next(
        evaluation_batches(task, task.splits[split], batch_size=rows, share=(0, 1), workers=0)
    )
    return task.prepare(raw, train=True, seed=0, epoch=0) | {"view": 0}


def text_store(
    folder: Path,
    task: TextTask,
    teacher: FrozenTeacher,
    config: FitConfig = CONFIG,
    *,
    shard_bytes: int = 8000,
    **options: Any,
) -> TeacherStore:
    """A whole store of what a teacher says about texts."""
    train = task.splits["train"]
    places = longest_answer(task, train, config, seed=0)
    fields = fields_of(teacher, read_batch(task), places=places, config=config, **options)
    store = TeacherStore.create(
        folder, {"teacher weights": "a"}, fields, samples=len(train), views=1, versions={},
        shard_bytes=shard_bytes,
    )  # fmt: skip
    build_store(store, teacher, task, train, config, seed=0)
    return store
