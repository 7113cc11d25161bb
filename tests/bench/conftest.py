"""A small comparison on MNIST-1D, whose samples are drawn once for all tests."""

from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import mnist1d.data
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.neighbors import KNeighborsClassifier

import congener.api
from congener import bench
from congener.recipe import Recipe, parse_recipe

CLASSIFIERS = bench._classifiers
TERMS = {
    "kd": {"task_weight": 0.1, "terms": [{"loss": "kd", "weight": 0.9}]},
    "sp": {"terms": [{"loss": "sp", "weight": 10, "student": "hidden", "teacher": "layer3"}]},
    "later": {"terms": [{"loss": "kd", "weight": 0.5}], "starts_from": "sp"},
    "again": {"terms": [{"loss": "kd", "weight": 0.5}], "learns_from": "later"},
}


def recipe(*arms: str, **changes: Any) -> Recipe:
    """A recipe that takes a second, with some of the arms above."""
    train = {"steps": 5, "batch_size": 32, "lr": 0.01, "weight_decay": 0.1, "device": "cpu",
             "threads": 1}  # fmt: skip
    values = {
        "name": "+".join(arms) or "tiny",
        "task": {"name": "image_classification", "data": {"name": "mnist1d", "pool": 300}},
        "teacher": {"name": "cnn1d", "channels": 8, "train": train | {"steps": 2}},
        "student": {"name": "mlp", "hidden": [16]},
        "arms": {arm: TERMS[arm] for arm in arms},
        "train": train,
        "seeds": [0, 1],
    }
    return parse_recipe(deepcopy(values | changes))


@pytest.fixture(scope="module", autouse=True)
def _lean() -> Iterator[None]:
    """No run's page, two quick controls, and data that are drawn once."""
    drawn: dict[tuple[int, int], Any] = {}
    draw = mnist1d.data.make_dataset

    def once(arguments: Any) -> Any:
        key = (arguments.seed, arguments.num_samples)
        if key not in drawn:
            drawn[key] = draw(arguments)
        return drawn[key]

    quick = {
        "the most frequent class": partial(DummyClassifier, strategy="most_frequent"),
        "nearest neighbour": partial(KNeighborsClassifier, 1),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnist1d.data, "make_dataset", once)
        patch.setattr(congener.api, "write_report", lambda folder: folder / "report.html")
        patch.setattr(bench, "_classifiers", lambda: quick)
        patch.setattr(bench, "FACTORS", {"lr": (1.0, 3.0)})
        yield


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, _lean: None) -> Path:
    """A finished comparison in ``out``, its records in ``records``; tests only read it."""
    home = tmp_path_factory.mktemp("compared")
    bench.bench(
        [recipe("kd", "sp"), recipe("kd", "sp", "later", "again")],
        out=home / "out", records=home / "records", holdout=60, command="congener bench tiny",
    )  # fmt: skip
    return home
