"""The figures of retrieval against a loop over all orders of what is tied."""

import itertools
import math
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from accelerate import PartialState
from tests.trajectory.processes import in_two_processes
from torch import Tensor

from congener.tasks.retrieval.metrics import RetrievalMetrics, closeness, retrieval_figures

NAMES = ("recall_at_1", "recall_at_5", "recall_at_10", "mrr", "map")


def of_an_order(right: list[bool]) -> list[float]:
    """The figures of one ranking."""
    places = [rank for rank, hit in enumerate(right, start=1) if hit]
    precisions = [sum(p <= place for p in places) / place for place in places]
    recalls = [float(places[0] <= cut) for cut in (1, 5, 10)]
    return [*recalls, 1 / places[0], mean(precisions)]


def orders(scored: list[tuple[float, bool]]) -> Any:
    """Every ranking that the similarities allow."""
    scored = sorted(scored, key=lambda pair: -pair[0])
    runs = [list(run) for _, run in itertools.groupby(scored, key=lambda pair: pair[0])]
    for each in itertools.product(*(itertools.permutations(run) for run in runs)):
        yield [hit for run in each for _, hit in run]


def oracle(
    similarity: list[list[float]], labels: list[int], cameras: list[int]
) -> dict[str, float]:
    rows, alone = [], 0
    known = [i for i in range(len(labels)) if labels[i] >= 0]
    for i in known:
        gallery = [j for j in known if cameras[j] != cameras[i]]
        if not any(labels[j] == labels[i] for j in gallery):
            alone += 1
            continue
        ranked = orders([(similarity[i][j], labels[j] == labels[i]) for j in gallery])
        rows.append([mean(column) for column in zip(*map(of_an_order, ranked), strict=True)])
    means = [mean(column) for column in zip(*rows, strict=True)]
    return dict(zip(NAMES, means, strict=True)) | {"queries_without_positive": float(alone)}


def drawn(seed: int, images: int, values: int | None, identities: int, cameras: int) -> Any:
    """Embeddings on a circle; where ``values`` is given, at so many angles, and so tied."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.rand(images, generator=generator, dtype=torch.float64)
    angle = angle if values is None else (angle * values).floor() / values
    length = 0.5 + torch.rand(images, 1, generator=generator, dtype=torch.float64)
    embedding = torch.stack([(3 * angle).cos(), (3 * angle).sin()], dim=1) * length
    labels = torch.randint(-1, identities, (images,), generator=generator)
    labels = torch.where(labels < 0, -100, labels)
    return embedding, labels, torch.randint(cameras, (images,), generator=generator)


@pytest.mark.parametrize(
    ("images", "values", "identities", "cameras"),
    [(11, None, 3, 2), (24, None, 4, 3), (13, 4, 3, 2), (13, 3, 2, 2), (9, 1, 2, 2), (12, 5, 3, 5)],
)
@pytest.mark.parametrize("seed", range(3))
def test_oracle(images: int, values: int | None, identities: int, cameras: int, seed: int) -> None:
    embedding, labels, camera = drawn(seed, images, values, identities, cameras)
    similarity = closeness(embedding, embedding).tolist()
    expected = oracle(similarity, labels.tolist(), camera.tolist())
    found = retrieval_figures(embedding, labels, camera)
    assert list(found) == [*NAMES, "queries_without_positive"]
    assert found == pytest.approx(expected, rel=1e-9)


def test_closeness_is_the_cosine() -> None:
    embedding, _, _ = drawn(7, 6, None, 2, 2)
    found = closeness(embedding[:2], embedding)
    for i, j in itertools.product(range(2), range(6)):
        a, b = embedding[i].tolist(), embedding[j].tolist()
        cosine = (a[0] * b[0] + a[1] * b[1]) / math.hypot(*a) / math.hypot(*b)
        assert float(found[i, j]) == pytest.approx(cosine, abs=1e-9)


def test_a_perfect_and_the_worst_embedding() -> None:
    labels = torch.arange(20) // 2
    cameras = torch.arange(20) % 2
    perfect = retrieval_figures(torch.eye(10)[labels], labels, cameras)
    assert perfect == dict.fromkeys(NAMES, 1.0) | {"queries_without_positive": 0.0}
    opposite = torch.eye(10)[labels] * (1 - 2 * cameras[:, None])
    worst = retrieval_figures(opposite, labels, cameras)
    assert worst["recall_at_5"] == pytest.approx(0)
    assert worst["recall_at_10"] == worst["mrr"] * 10 == pytest.approx(1)


def test_collapsed_embeddings_are_chance() -> None:
    labels, cameras = torch.arange(40) // 2, torch.arange(40) % 2
    found = retrieval_figures(torch.ones(40, 3), labels, cameras)
    assert found["recall_at_1"] == pytest.approx(1 / 20)
    assert found["recall_at_5"] == pytest.approx(5 / 20)
    assert found["mrr"] == pytest.approx(sum(1 / k for k in range(1, 21)) / 20)
    assert retrieval_figures(torch.zeros(40, 3), labels, cameras) == found


def test_the_same_image_twice_is_tied_however_it_rounds() -> None:
    generator = torch.Generator().manual_seed(0)
    right = torch.randn(1, 64, generator=generator)
    others = torch.randn(500, 64, generator=generator)
    embedding = torch.cat([right, right, others, right * 3])
    labels = torch.tensor([0, 0, *range(1, 501), 501])
    cameras = torch.tensor([0, *[1] * 502])
    found = retrieval_figures(embedding, labels, cameras)
    assert found["queries_without_positive"] == 501
    # Query 0 finds itself drawn twice, once under another number.
    assert found["recall_at_1"] == pytest.approx((1 / 2 + 1) / 2)


def test_what_is_not_a_number_shows() -> None:
    labels, cameras = torch.arange(8) // 2, torch.arange(8) % 2
    embedding = torch.ones(8, 3)
    embedding[3, 1] = torch.nan
    found = retrieval_figures(embedding, labels, cameras)
    assert all(math.isnan(found[name]) for name in NAMES)


def test_no_query_at_all() -> None:
    found = retrieval_figures(torch.ones(3, 2), torch.arange(3), torch.arange(3))
    assert found == dict.fromkeys(NAMES, 0.0) | {"queries_without_positive": 3.0}


def measured(embedding: Tensor, labels: Tensor, cameras: Tensor, cuts: list[int]) -> Any:
    figures = RetrievalMetrics(torch.device("cpu"), lambda result: result)
    for rows in torch.arange(len(labels)).tensor_split(cuts):
        batch = {"labels": labels[rows], "camera": cameras[rows]}
        figures.update(embedding[rows].requires_grad_(), batch)
    return figures.compute()


def _of_a_share(rank: int, sizes: tuple[int, ...]) -> Any:
    PartialState(cpu=True)
    embedding, labels, cameras = (part.split(sizes)[rank] for part in drawn(3, 24, 6, 4, 2))
    figures = RetrievalMetrics(torch.device("cpu"), lambda result: result)
    if sizes[rank]:
        figures.update(embedding, {"labels": labels, "camera": cameras})
    return figures.compute()


@pytest.mark.parametrize("sizes", [(17, 7), (24, 0)])
def test_two_processes_measure_as_one(sizes: tuple[int, ...], tmp_path: Path) -> None:
    embedding, labels, cameras = drawn(3, 24, 6, 4, 2)
    whole = retrieval_figures(embedding.float(), labels, cameras)
    assert measured(embedding, labels, cameras, [5, 6]) == pytest.approx(whole)
    for found in in_two_processes(tmp_path, _of_a_share, sizes):
        assert found == pytest.approx(whole)
