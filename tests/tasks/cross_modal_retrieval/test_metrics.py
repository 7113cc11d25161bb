"""The figures against enumerations of all orders of ties, and across batches and processes."""

import itertools
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from tests.trajectory.processes import in_two_processes
from torch import Tensor

from congener.errors import DataError, NonFiniteLossError
from congener.tasks.cross_modal_retrieval import metrics
from congener.tasks.cross_modal_retrieval.metrics import (
    HashingMetrics,
    average_precision,
    histogram,
)

CPU = torch.device("cpu")


def average_over_orders(distances: list[int], relevant: list[bool]) -> Fraction:
    """The mean of average precision over every ranking that the distances allow, one by one."""
    rankings, total = 0, Fraction(0)
    for order in itertools.permutations(range(len(distances))):
        ranked = [distances[place] for place in order]
        if ranked != sorted(ranked):
            continue
        rankings, hits = rankings + 1, 0
        for rank, place in enumerate(order, start=1):
            hits += relevant[place]
            total += Fraction(hits, rank) * relevant[place]
    return total / rankings / max(1, sum(relevant))


@pytest.mark.parametrize("seed", range(12))
def test_average_precision_is_the_mean_over_tie_orders(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    count = 3 + seed % 4
    distances = torch.randint(0, 3, (count,), generator=generator)
    relevant = torch.rand(count, generator=generator) < 0.5
    counts = torch.bincount(distances, minlength=4)[None]
    hits = torch.bincount(distances[relevant], minlength=4)[None]
    expected = average_over_orders(distances.tolist(), relevant.tolist())
    assert float(average_precision(counts, hits)) == pytest.approx(float(expected), abs=1e-12)


def test_equal_codes_everywhere_give_about_the_share_of_relevant_items() -> None:
    """One tie of n items, r of them relevant: (r - 1) / (n - 1) + (n - r) H(n) / (n (n - 1))."""
    n, r = 1000, 250
    found = float(average_precision(torch.tensor([[n]]), torch.tensor([[r]])))
    harmonic = sum(1 / i for i in range(1, n + 1))
    assert found == pytest.approx((r - 1) / (n - 1) + (n - r) * harmonic / (n * (n - 1)))
    assert found == pytest.approx(0.25, abs=0.01)


def test_without_ties_it_is_the_usual_one() -> None:
    hits = torch.tensor([[1, 0, 1, 1, 0]])
    found = float(average_precision(torch.ones(1, 5, dtype=torch.int64), hits))
    assert found == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert (
        float(average_precision(torch.ones(1, 2, dtype=torch.int64), torch.zeros(1, 2).long())) == 0
    )


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("bits", [5, 8, 70])
def test_histograms_count_pair_by_pair(bits: int, multi: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr(metrics, "AT_ONCE", 30)  # several chunks of queries
    generator = torch.Generator().manual_seed(bits)
    asked, items = (torch.randn(n, bits, generator=generator).sign() for n in (7, 11))
    shape = (3,) if multi else ()
    labels = [
        torch.randint(0, 2 if multi else 3, (n, *shape), generator=generator) for n in (7, 11)
    ]
    counts, relevant = histogram(asked, items, *labels)
    assert counts.shape == relevant.shape == (7, bits + 1)
    expected = torch.zeros(2, 7, bits + 1, dtype=torch.int64)
    for i, j in itertools.product(range(7), range(11)):
        distance = int((asked[i] != items[j]).sum())
        a, b = labels[0][i], labels[1][j]
        alike = bool((a & b).any()) if multi else bool(a == b)
        expected[0, i, distance] += 1
        expected[1, i, distance] += alike
    assert torch.equal(torch.stack([counts, relevant]), expected)


def batch(seed: int = 0, count: int = 24, bits: int = 6) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(count, 2, bits, generator=generator)
    labels = torch.randint(0, 3, (count,), generator=generator)
    return codes, {"labels": labels, "query": torch.arange(count) % 3 == 0,
                   "index": torch.arange(count)}  # fmt: skip


def figures(
    codes: Tensor, rows: dict[str, Tensor], sizes: list[int], **options: Any
) -> dict[str, float]:
    found = HashingMetrics(CPU, **options)
    for places in torch.arange(len(codes)).split(sizes):
        found.update(codes[places], {name: value[places] for name, value in rows.items()})
    return found.compute()


def by_hand(codes: Tensor, rows: dict[str, Tensor]) -> dict[str, float]:
    """Everything in loops; ties broken in all orders by the closed form that is tested above."""
    asked = rows["query"].nonzero().flatten().tolist()
    items = (~rows["query"]).nonzero().flatten().tolist()
    found: dict[str, float] = {}
    near_shares, left = [], 0
    for name, one, other in (("first_to_second", 0, 1), ("second_to_first", 1, 0)):
        values, shares, left = [], [], 0
        for i in asked:
            distance = [int(((codes[i, one] > 0) != (codes[j, other] > 0)).sum()) for j in items]
            alike = [bool(rows["labels"][i] == rows["labels"][j]) for j in items]
            if not any(alike):
                left += 1
                continue
            bits = codes.shape[-1]
            counts = torch.tensor([[distance.count(d) for d in range(bits + 1)]])
            hits = torch.tensor([[sum(a for a, e in zip(alike, distance, strict=True) if e == d)
                                  for d in range(bits + 1)]])  # fmt: skip
            values.append(float(average_precision(counts, hits)))
            near = [a for a, d in zip(alike, distance, strict=True) if d <= 2]
            shares.append(sum(near) / len(near) if near else 0.0)
        found[f"map_{name}"] = sum(values) / len(values)
        near_shares.append(sum(shares) / len(shares))
    entropy, collisions = 0.0, 0.0
    for side in (0, 1):
        seen = [tuple((codes[j, side] > 0).tolist()) for j in items]
        shares = [seen.count(code) / len(seen) for code in set(seen)]
        entropy -= sum(share * math.log2(share) for share in shares) / 2
        same = [a == b for a, b in itertools.combinations(seen, 2)]
        collisions += sum(same) / len(same) / 2
    return {
        "map": sum(found.values()) / 2, **found, "precision_radius_2": sum(near_shares) / 2,
        "code_entropy": entropy, "collision_rate": collisions, "queries_left_out": float(left),
    }  # fmt: skip


@pytest.mark.parametrize("bits", [3, 6, 17])
def test_figures_against_loops(bits: int) -> None:
    codes, rows = batch(bits, bits=bits)
    rows["labels"][0] = 99  # a query that nothing is like
    found = figures(codes, rows, [24])
    assert found == pytest.approx(by_hand(codes, rows), abs=1e-12)
    assert found["queries_left_out"] == 1
    assert next(iter(found)) == "map"


def test_batches_do_not_matter() -> None:
    codes, rows = batch()
    assert figures(codes, rows, [1, 20, 3]) == figures(codes, rows, [24])


def test_two_directions_are_two_figures() -> None:
    """Second-modality queries have the database's code of their class; the first's have not."""
    code = torch.eye(4)[:, None].expand(4, 2, 4) * 2 - 1
    codes = torch.cat([code, code]).clone()
    codes[:4, 0] = codes[[1, 2, 3, 0], 0]
    rows = {"labels": torch.arange(4).repeat(2), "query": torch.arange(8) < 4,
            "index": torch.arange(8)}  # fmt: skip
    found = figures(codes, rows, [8])
    assert found["map_second_to_first"] == 1
    # The item that is looked for is tied with two others behind a wrong one.
    assert found["map_first_to_second"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)


def test_items_without_a_label_are_not_there() -> None:
    codes, rows = batch()
    fewer = figures(codes[:20], {name: value[:20] for name, value in rows.items()}, [20])
    rows["labels"][20:] = -100
    assert figures(codes, rows, [24]) == fewer


def test_aligned_pairs_are_their_own_only_hits() -> None:
    codes, rows = batch(count=40, bits=12)
    codes[:, 1] = codes[:, 0]
    rows["labels"][:] = -100
    found = figures(codes, rows, [13, 27], aligned=True)
    asks = rows["query"]
    count = int(asks.sum())
    assert 0 < count < 40
    every = {
        "labels": torch.cat([rows["index"][asks], rows["index"]]),
        "query": torch.arange(count + 40) < count,
        "index": torch.arange(count + 40),
    }
    both = torch.cat([codes[asks], codes])
    assert found == pytest.approx(figures(both, every, [count + 40]), abs=1e-12)
    assert found["map"] > 0.9


def test_bits_permuted_or_flipped_in_both_change_nothing_flipped_in_one_do() -> None:
    codes, rows = batch(count=60, bits=16)
    codes[:, 1] = codes[:, 0] + 0.5 * codes[:, 1]
    plain = figures(codes, rows, [60])
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    assert figures(codes[:, :, order], rows, [60]) == plain
    both, one = codes.clone(), codes.clone()
    both[:, :, 3] *= -1
    one[:, 0, 3] *= -1
    assert figures(both, rows, [60]) == plain
    assert figures(one, rows, [60])["map"] != plain["map"]


def test_swapped_modalities_swap_the_directions() -> None:
    codes, rows = batch()
    one, other = figures(codes, rows, [24]), figures(codes.flip(1), rows, [24])
    assert one["map_first_to_second"] == other["map_second_to_first"]
    assert one["map"] == pytest.approx(other["map"])


def test_nothing_near_counts_as_no_precision() -> None:
    codes = torch.ones(4, 2, 8)
    codes[2:] = -1
    rows = {"labels": torch.tensor([0, 1, 0, 1]), "query": torch.tensor([True, True, False, False]),
            "index": torch.arange(4)}  # fmt: skip
    found = figures(codes, rows, [4])
    assert found["precision_radius_2"] == 0
    assert (found["code_entropy"], found["collision_rate"]) == (0, 1)


def test_no_query_with_a_hit_is_zero_and_told() -> None:
    codes, rows = batch()
    rows["labels"] = rows["query"].long()
    found = figures(codes, rows, [24])
    assert (found["map"], found["precision_radius_2"], found["queries_left_out"]) == (0, 0, 8)


def test_what_cannot_be_measured() -> None:
    codes, rows = batch()
    with pytest.raises(DataError, match="0 queries and 24 items"):
        figures(codes, rows | {"query": torch.zeros(24, dtype=torch.bool)}, [24])
    codes[3, 1, 2] = torch.nan
    with pytest.raises(NonFiniteLossError, match="NaN"):
        figures(codes, rows, [24])


def _share(rank: int, multi: bool, sizes: list[int]) -> dict[str, float]:
    PartialState(cpu=True)
    codes, rows = batch()
    if multi:
        rows["labels"] = torch.nn.functional.one_hot(rows["labels"]).to(torch.int8)
    start, stop = [0, *itertools.accumulate(sizes)][rank : rank + 2]
    found = HashingMetrics(CPU)
    if stop > start:
        found.update(codes[start:stop], {name: x[start:stop] for name, x in rows.items()})
    return found.compute()


@pytest.mark.parametrize(("multi", "sizes"), [(False, [17, 7]), (True, [24, 0])])
def test_two_processes_measure_as_one(tmp_path: Path, multi: bool, sizes: list[int]) -> None:
    codes, rows = batch()
    whole = figures(codes, rows, [24])
    for found in in_two_processes(tmp_path, _share, multi, sizes):
        assert found == whole
