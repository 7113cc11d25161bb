"""What distill() and a run do with what users really hand them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import congener
from congener.errors import DataError, RecipeError
from congener.losses import KDLoss, kd_loss
from congener.runlog import read_json

SETTINGS: dict[str, Any] = {"epochs": 1, "batch_size": 8, "device": "cpu", "threads": 1}
TERMS = [congener.Term(KDLoss())]


def points(count: int = 24) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(count, 4, generator=generator), torch.arange(count) % 3)


class Plain(Dataset[Any]):
    """Neither `targets` nor `classes`: the class count can only come from a network."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        return points()[index]


def distill(train: Any, val: Any, out: Path, **changes: Any) -> congener.Distilled:
    networks = nn.Linear(4, 3), nn.Linear(4, 3)
    return congener.distill(*networks, train, val, terms=TERMS, out=out, **(SETTINGS | changes))


def test_the_class_count_comes_from_the_teacher(tmp_path: Path) -> None:
    run = distill(Plain(), Plain(), tmp_path / "run").run
    assert run.metrics["class_names"] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("a sampler", {"sampler": WeightedRandomSampler(torch.ones(24), 8)}),
        ("a collate_fn", {"collate_fn": lambda samples: samples}),
        ("a batch_sampler", {"batch_sampler": [[0, 1], [2, 3]], "batch_size": 1}),
    ],
)
def test_a_loader_whose_ways_would_be_lost_is_refused(tmp_path: Path, what, options) -> None:
    loader: Any = DataLoader(points(), **({"batch_size": 8} | options))
    with pytest.raises(DataError, match=rf"The loader has {what} of its own, which congener would"):
        distill(loader, points(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loader_over_a_subset_gives_the_subset_and_drop_last(tmp_path: Path) -> None:
    loader: Any = DataLoader(
        points(), batch_size=8, sampler=SubsetRandomSampler(range(12)), drop_last=True
    )
    run = congener.distill(
        nn.Linear(4, 3), nn.Linear(4, 3), loader, points(), terms=TERMS, out=tmp_path / "run",
        epochs=3, device="cpu", threads=1,
    ).run  # fmt: skip
    assert run.metrics["steps"] == 3  # one whole batch of 8 in 12, three times


def test_a_second_run_can_be_resumed_from_python(tmp_path: Path) -> None:
    first = distill(points(), points(), tmp_path / "run").student.state_dict()
    again = distill(points(), points(), tmp_path / "run", resume=True).student.state_dict()
    assert all(torch.equal(again[name], value) for name, value in first.items())
    with pytest.raises(congener.CongenerError, match=r"in Python: resume=True, or out=\.\.\."):
        distill(points(), points(), tmp_path / "run")


def test_tied_weights_survive_their_file(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            self.second.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.second(self.first(x)))

    trained, _ = congener.distill(
        Tied(), nn.Linear(4, 3), points(), points(), terms=TERMS, out=tmp_path / "run", **SETTINGS
    )
    assert trained.second.weight is trained.first.weight


def test_labels_and_images_of_other_types(tmp_path: Path) -> None:
    images, labels = points().tensors
    data = TensorDataset(images.double(), labels.int())
    metrics = distill(data, data, tmp_path / "run").run.metrics
    assert 0 <= metrics["arms"]["distilled"]["accuracy"][0] <= 1


def test_settings_that_fit_no_batch_are_found_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"An epoch of 24 samples has no batch of 100; lower batch"):
        distill(points(), points(), tmp_path / "run", batch_size=100, drop_last=True)
    assert not (tmp_path / "run").exists()


def test_fp16_on_the_cpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"precision fp16 needs a GPU; on the CPU use bf16 or"):
        distill(points(), points(), tmp_path / "run", precision="fp16")
    assert not (tmp_path / "run").exists()


def test_a_function_is_no_term() -> None:
    with pytest.raises(TypeError, match=r"A term needs a loss module such as KDLoss\(\), not <fun"):
        congener.Term(kd_loss)  # type: ignore[arg-type]


def test_arms_of_one_network_have_one_cost(tmp_path: Path) -> None:
    distill(points(), points(), tmp_path / "run", alone=True)
    arms = read_json(tmp_path / "run" / "metrics.json")["arms"]
    assert arms["alone"]["latency_ms"] == arms["distilled"]["latency_ms"]
