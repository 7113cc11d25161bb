"""The figures of tagging, against a slow evaluator written from the card, and their edges."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import average_precision_score
from tests.trajectory.processes import in_two_processes
from torch import Tensor

from congener.tasks.audio_tagging.metrics import TagMetrics, auprc

CPU = torch.device("cpu")


def counts(scores: list[float], truth: list[bool], threshold: float) -> tuple[int, int, int]:
    pairs = list(zip(scores, truth, strict=True))
    return (
        sum(s >= threshold and t for s, t in pairs),
        sum(s >= threshold and not t for s, t in pairs),
        sum(s < threshold and t for s, t in pairs),
    )


def area(rows: list[tuple[int, int, int]]) -> float:
    """Rows of hits, false alarms and misses, thresholds falling."""
    points = [
        (hit / max(hit + miss, 0.5), hit / max(hit + false, 0.5)) for hit, false, miss in rows
    ]
    points = [(0.0, 1.0), *sorted(points, key=lambda point: point[0]), (1.0, 0.0)]
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))


def evaluator(scores: Tensor, truth: Tensor) -> tuple[float, float]:
    """DCASE 2019, task 5: a table of each tag; micro adds up the last rows above a threshold."""
    tables = []
    for tag in range(scores.shape[1]):
        s, t = scores[:, tag].tolist(), truth[:, tag].tolist()
        thresholds = sorted({x for x in s if x >= 0.01} | {1.0}, reverse=True)
        tables.append({threshold: counts(s, t, threshold) for threshold in thresholds})
    every = sorted({threshold for table in tables for threshold in table}, reverse=True)
    union = []
    for threshold in every:
        last = [table[min(t for t in table if t >= threshold)] for table in tables]
        union.append((sum(r[0] for r in last), sum(r[1] for r in last), sum(r[2] for r in last)))
    return area(union), sum(area(list(table.values())) for table in tables) / len(tables)


def figures(logits: Tensor, labels: Tensor, *sizes: int) -> dict[str, float]:
    metrics = TagMetrics(labels.shape[1], CPU)
    for some, theirs in zip(
        logits.split(list(sizes) or len(logits)),
        labels.split(list(sizes) or len(labels)),
        strict=True,
    ):
        metrics.update(some, {"labels": theirs})
    return metrics.compute()


def drawn(seed: int, clips: int = 120, tags: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(clips, tags, generator=generator) < 0.25).float()
    logits = torch.randn(clips, tags, generator=generator) * 3 - 2 + 2 * labels
    return logits, labels


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tied", [False, True])
def test_areas_are_the_evaluators(seed: int, tied: bool) -> None:
    logits, labels = drawn(seed)
    logits = logits.round() if tied else logits
    found = figures(logits, labels)
    micro, macro = evaluator(logits.double().sigmoid(), labels > 0)
    assert (logits.sigmoid() < 0.01).any()
    assert found["micro_auprc"] == pytest.approx(micro, abs=1e-12)
    assert found["macro_auprc"] == pytest.approx(macro, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_sklearns(seed: int) -> None:
    logits, labels = drawn(seed)
    found, scores = figures(logits, labels), logits.double().sigmoid()
    for average in ("micro", "macro"):
        theirs = average_precision_score(labels, scores, average=average)
        assert found[f"{average}_ap"] == pytest.approx(theirs, abs=1e-5)
    probabilities = logits.double().sigmoid()
    right = torch.where(labels > 0, probabilities, 1 - probabilities)
    assert found["bce"] == pytest.approx(-float(right.log().mean()), rel=1e-5)


def test_areas_by_hand() -> None:
    """Precision 1 and 1/2 at recall 1/2, 2/3 at 1; before them (0, 0), at the threshold 1."""
    scores, truth = torch.tensor([0.9, 0.6, 0.4]), torch.tensor([True, False, True])
    assert auprc(scores, truth) == pytest.approx(0.5 * (0 + 1) / 2 + 0.5 * (1 / 2 + 2 / 3) / 2)
    certain = torch.tensor([1.0, 0.6, 0.4])  # now it is (1/2, 1): something is taken at 1
    assert auprc(certain, truth) == pytest.approx(0.5 * (1 + 1) / 2 + 0.5 * (1 / 2 + 2 / 3) / 2)
    low = torch.tensor([0.9, 0.6, 0.009])  # no threshold takes the second positive: to (1, 0)
    assert auprc(low, truth) == pytest.approx(0.5 * (0 + 1) / 2 + 0.5 * (1 / 2 + 0) / 2)
    least = torch.tensor([0.9, 0.6, 0.01], dtype=torch.float64)
    assert auprc(least, truth) == pytest.approx(auprc(scores, truth))


def test_what_is_not_known_is_not_counted() -> None:
    logits, labels = drawn(9)
    unknown = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    found = figures(logits, labels.masked_fill(unknown, -100))
    changed = figures(logits.masked_fill(unknown, 50.0), labels.masked_fill(unknown, -100))
    assert found == changed
    assert found != figures(logits, labels)
    flat = figures(logits[~unknown][:, None], labels[~unknown][:, None])
    for name in ("micro_auprc", "micro_ap", "bce"):
        assert found[name] == pytest.approx(flat[name])
    tags = [
        figures(logits[~unknown[:, tag], tag, None], labels[~unknown[:, tag], tag, None])
        for tag in range(6)
    ]
    for name in ("macro_auprc", "macro_ap"):
        assert found[name] == pytest.approx(sum(tag[name] for tag in tags) / 6)


def test_a_tag_without_a_positive_is_left_out_of_macro() -> None:
    logits, labels = drawn(3)
    labels[:, 2] = 0
    found, others = figures(logits, labels), [0, 1, 3, 4, 5]
    without = figures(logits[:, others], labels[:, others])
    assert found["macro_auprc"] == pytest.approx(without["macro_auprc"])
    assert found["macro_ap"] == pytest.approx(without["macro_ap"])
    assert found["micro_auprc"] < without["micro_auprc"]


def test_one_tag_is_both_micro_and_macro() -> None:
    found = figures(*drawn(4, tags=1))
    assert found["micro_auprc"] == found["macro_auprc"]
    assert found["micro_ap"] == found["macro_ap"]


@pytest.mark.parametrize("label", [0.0, 1.0, -100.0])
@pytest.mark.parametrize("tags", [1, 3])
def test_one_sided_sets_are_defined(label: float, tags: int) -> None:
    found = figures(torch.randn(5, tags), torch.full((5, tags), label))
    assert all(math.isfinite(value) for value in found.values())
    assert (found["micro_auprc"] > 0) == (label == 1)
    nothing = TagMetrics(tags, CPU).compute()
    assert set(nothing.values()) == {0.0}


def test_certain_and_broken_networks_are_defined() -> None:
    logits, labels = drawn(5)
    perfect = figures((labels - 0.5) * 2e4, labels)
    assert perfect["micro_auprc"] == perfect["macro_auprc"] == 1
    assert perfect["bce"] == 0
    broken = logits.clone()
    broken[0, 0] = torch.nan
    assert math.isnan(figures(broken, labels)["bce"])


def test_logits_that_float32_would_round_to_certainty_are_told_apart() -> None:
    labels = torch.tensor([[1.0], [0.0], [1.0]])
    found = figures(torch.tensor([[30.0], [25.0], [20.0]]), labels)
    plain = figures(torch.tensor([[3.0], [2.0], [1.0]]), labels)
    for name in ("micro_auprc", "macro_auprc", "micro_ap", "macro_ap"):
        assert found[name] == pytest.approx(plain[name])


def test_batches_do_not_matter() -> None:
    logits, labels = drawn(6)
    assert figures(logits, labels, 1, 50, 0, 69) == pytest.approx(figures(logits, labels))


def _share(rank: int, sizes: tuple[int, int]) -> dict[str, float]:
    torch.distributed.init_process_group("gloo")
    logits, labels = drawn(7)
    mine = slice(0, sizes[0]) if rank == 0 else slice(sizes[0], 120)
    metrics: Any = TagMetrics(6, CPU)
    if sizes[rank]:
        metrics.update(logits[mine], {"labels": labels[mine]})
    return metrics.compute()


@pytest.mark.parametrize("sizes", [(90, 30), (120, 0)])
def test_two_processes_measure_the_whole(sizes: tuple[int, int], tmp_path: Path) -> None:
    expected = figures(*drawn(7))
    for found in in_two_processes(tmp_path, _share, sizes):
        assert found == pytest.approx(expected)
