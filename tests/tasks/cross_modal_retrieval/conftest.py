"""Pairs so small that a test takes milliseconds."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from congener.tasks.cross_modal_retrieval import CrossModalRetrieval, Splits, data


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def vectors(labels: Tensor, features: int, seed: int, spread: float = 0.3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    classes = int(labels.max()) + 1
    centres = torch.randn(classes, features, generator=torch.Generator().manual_seed(features))
    return centres[labels] + spread * torch.randn(len(labels), features, generator=generator)


def arrays(train: int = 30, queries: int = 9, database: int = 12) -> dict[str, Any]:
    """Vectors of three classes in two modalities."""
    found: dict[str, Any] = {}
    for seed, (part, count) in enumerate(
        (("train", train), ("query", queries), ("database", database))
    ):
        labels = torch.arange(count) % 3
        found[f"{part}_first"] = vectors(labels, 6, 10 + seed)
        found[f"{part}_second"] = vectors(labels, 5, 20 + seed)
        found[f"{part}_labels"] = labels
    return found


def small(**division: Any) -> Splits:
    return data.paired_tensors(**arrays(), **division)


def small_task(**options: Any) -> CrossModalRetrieval:
    return CrossModalRetrieval(small(), **options)


def mixed(**changes: Any) -> Splits:
    """Pictures and their names: red and blue ones."""
    names = [
        "red rose",
        "blue sky",
        "red wine",
        "blue sea",
        "red car",
        "blue eye",
        "red x",
        "blue y",
    ]
    pictures = torch.zeros(8, 3, 8, 8, dtype=torch.uint8)
    pictures[0::2, 0], pictures[1::2, 2] = 200, 220
    labels = torch.arange(8) % 2
    given: dict[str, Any] = {
        "train_first": pictures[:6], "train_second": names[:6], "train_labels": labels[:6],
        "query_first": pictures[6:], "query_second": names[6:], "query_labels": labels[6:],
        "label_names": ("warm", "cold"),
    }  # fmt: skip
    return data.paired_tensors(**given | changes)
