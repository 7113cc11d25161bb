"""Small stores whose right answers are known."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from congener.teachers import Field, TeacherStore
from congener.teachers.store import WITNESS, Shard

SAMPLES, VIEWS = 23, 2
IDENTITY = {"teacher weights": "3f2a91", "training views": "07bc11", "seed of the views": "0"}
FIELDS = (
    Field("logits", (5,), "float32"),
    Field("layer1", (2, 3), "float32", "fp16"),
    Field("pooled", (4,), "bfloat16", "bf16"),
)


def answers(view: int, samples: int = SAMPLES) -> dict[str, Tensor]:
    """What a teacher would say, by the names of the fields: other numbers in each place."""
    generator = torch.Generator().manual_seed(view)
    return {
        "logits": torch.randn(samples, 5, generator=generator),
        "layer1": torch.randn(samples, 2, 3, generator=generator).half().float(),
        "pooled": torch.randn(samples, 4, generator=generator).bfloat16(),
        WITNESS: torch.randn(samples, generator=generator),
    }


def create(folder: Path, **changes: Any) -> TeacherStore:
    """Begin a small store; a file has seven rows."""
    given: dict[str, Any] = {
        "identity": IDENTITY, "fields": FIELDS, "samples": SAMPLES, "views": VIEWS,
        "versions": {"torch": "2"}, "shard_bytes": 7 * (5 * 4 + 6 * 2 + 4 * 2 + 4),
    }  # fmt: skip
    return TeacherStore.create(folder, **given | changes)


def write(store: TeacherStore, shard: Shard) -> bool:
    """Write one shard; whether nobody else was at it."""
    with store.claim(shard) as draft:
        if draft is None:
            return False
        said, parts = answers(shard.view, store.samples), {}
        for name, field in store.fields.items():
            parts |= field.encode(said[name][shard.first : shard.last + 1])
        store.write(draft, parts)
    return True


def built(folder: Path, **changes: Any) -> TeacherStore:
    """A whole small store."""
    store = create(folder, **changes)
    for shard in store.missing():
        assert write(store, shard)
    return store


def right(store: TeacherStore, ids: Tensor, view: int) -> bool:
    """Whether a store says bit for bit what it should."""
    found = store.read(list(store.fields), ids, view)
    said = answers(view % VIEWS)
    return all(
        torch.equal(value, said[name][ids]) and value.dtype == said[name].dtype
        for name, value in found.items()
    )
