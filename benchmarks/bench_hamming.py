"""Search in a million packed codes by faiss against exclusive or and bit counts: the ten nearest.

python benchmarks/bench_hamming.py [words]
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from harness import Comparison, main
from torch import Tensor

from congener.tasks.cross_modal_retrieval.index import build_index, search

NEAREST = 10
ITEMS = 1_000_000


def asked(queries: int, bits: int = 64) -> tuple[Any, Tensor, Tensor]:
    """An index of random codes, the codes, and queries: some of them with a few other bits."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (ITEMS, bits // 8), dtype=torch.uint8, generator=generator)
    return build_index(codes), codes, codes[:queries] ^ 1


def by_faiss(given: tuple[Any, Tensor, Tensor]) -> list[Tensor]:
    index, _, queries = given
    return [search(index, queries, NEAREST)[0]]


def by_counting(given: tuple[Any, Tensor, Tensor]) -> list[Tensor]:
    _, codes, queries = given
    words, asking = (each.numpy().view(np.uint64) for each in (codes, queries))
    nearest = []
    for query in asking:
        distance = np.bitwise_count(words ^ query).sum(1, dtype=np.int64)
        nearest.append(np.sort(np.partition(distance, NEAREST)[:NEAREST]))
    return [torch.from_numpy(np.stack(nearest))]


BENCHES = [
    Comparison(
        name=f"search of {ITEMS:,} codes of 64 bits, {queries} at once",
        inputs=partial(asked, queries),
        plain=by_counting,
        ours=by_faiss,
        goal=0.5,
        seconds_goal=0.005 * queries,
        rtol=0,
        rounds=5,
    )
    for queries in (1, 16)
]

if __name__ == "__main__":
    main(BENCHES)
