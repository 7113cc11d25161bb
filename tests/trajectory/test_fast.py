"""Every way to be faster leaves the fit where it was, up to a drift that is stated here."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trajectory.processes import in_a_fork
from tests.trajectory.whole_runs import events, weights
from torch import nn
from torch.utils.data import TensorDataset

import congener.engine.compiling
from congener import distill
from congener.engine import FitConfig, fit
from congener.losses import ATLoss, KDLoss, SPLoss
from congener.runlog import RunLog
from congener.systems import Distillation
from congener.tasks.image_classification import ArrayDataset, ImageClassification, Splits
from congener.types import Term

STEPS = 40


def network(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10),
    )  # fmt: skip


def task() -> ImageClassification:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(150) % 10
    images = torch.randint(0, 128, (150, 3, 10, 10), dtype=torch.uint8, generator=generator)
    images += (12 * labels).to(torch.uint8)[:, None, None, None]
    data = ArrayDataset(images, labels)
    splits = Splits(data, data, tuple("abcdefghij"), (0.4,) * 3, (0.2,) * 3, (3, 10, 10))
    return ImageClassification(splits, augment={"name": "crop_flip", "pad": 1})


def terms_of_a_fit(**settings: Any) -> dict[str, list[float]]:
    """The total and the terms, step by step."""
    torch.manual_seed(0)
    student, teacher, own = network(6), network(10), task()
    terms = [
        Term(KDLoss(), 0.5),
        Term(SPLoss(), 1.0, "4", "4"),
        Term(ATLoss(), 10.0, ("1", "4"), ("1", "4")),
    ]
    system = Distillation(student, teacher, terms, task=own)
    plain: dict[str, Any] = {
        "steps": STEPS, "batch_size": 32, "lr": 0.01, "optimizer": "sgd", "device": "cpu",
        "threads": 1, "log_every": 1, "balance_every": 0,
    }  # fmt: skip
    seen: list[dict[str, Any]] = []
    data = {"train": own.splits["train"], "test": None}
    fit(system, own, FitConfig(**plain | settings), **data, log=RunLog(None, (seen.append,)))
    assert not [e for e in seen if e["event"] in ("not_compiled", "memory_not_kept")]
    steps = [{"total": e["total"], **e["terms"]} for e in seen if e["event"] == "step"]
    return {name: [step[name] for step in steps] for name in steps[0]}


def drifts(
    found: dict[str, list[float]], wanted: dict[str, list[float]]
) -> dict[str, tuple[float, float]]:
    """For each term the largest and the mean signed difference, relative to its mean."""
    drift = {}
    for name, values in wanted.items():
        scale = sum(values) / STEPS
        relative = [(a - b) / scale for a, b in zip(found[name], values, strict=True)]
        drift[name] = max(map(abs, relative)), sum(relative) / STEPS
    return drift


def check(found: dict[str, list[float]], wanted: dict[str, list[float]]) -> None:
    """40 steps on, rounding has come to 5e-5 of a term at most, with a mean below 5e-6."""
    assert found != wanted  # the option was at work
    for name, (largest, mean) in drifts(found, wanted).items():
        assert largest <= 5e-5, (name, largest)
        assert abs(mean) <= 5e-6, (name, mean)
    assert found["total"][-1] < 0.95 * found["total"][0]


@pytest.fixture(scope="module", name="plain")
def _plain() -> dict[str, list[float]]:
    return terms_of_a_fit()


@pytest.mark.parametrize(
    "settings",
    [
        {"layout": "channels_last"},
        {"fused": True},
        {"optimizer": "adamw", "lr": 3e-3, "fused": True},
        {"optimizer": "adamw", "lr": 3e-3, "fused": True, "layout": "channels_last"},
        {"accumulate": 3, "layout": "channels_last"},
    ],
    ids=str,
)
def test_other_kernels_stay_near(settings: dict[str, Any]) -> None:
    own = {k: v for k, v in settings.items() if k not in ("fused", "layout")}
    check(terms_of_a_fit(**settings), terms_of_a_fit(**own))


def test_memory_that_is_kept_changes_nothing(plain: dict[str, list[float]]) -> None:
    found = in_a_fork(lambda: terms_of_a_fit(keep_memory=True))
    assert found == plain


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"accumulate": 3},
        {"layout": "channels_last", "fused": True},
    ],
    ids=str,
)
def test_compiled_stays_near(settings: dict[str, Any]) -> None:
    own = {k: v for k, v in settings.items() if k == "accumulate"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, while it compiles
        check(terms_of_a_fit(compile=True, **settings), terms_of_a_fit(**own))


def small(width: int) -> nn.Sequential:
    torch.manual_seed(width)
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))


def distilled(student: nn.Module, teacher: nn.Module, out: Path, **settings: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(60, 6, generator=generator), torch.arange(60) % 3)
    terms = [{"loss": "kd"}, {"loss": "sp", "student": "2", "teacher": "2"}]
    return distill(
        student, teacher, data, data,
        terms=terms, out=out, epochs=2, batch_size=16, device="cpu", alone=True, **settings,
    )  # fmt: skip


@pytest.fixture
def _traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A backend that runs what was traced as it is."""
    options = {"backend": lambda graph, _inputs: graph.forward}
    monkeypatch.setattr(congener.engine.compiling, "OPTIONS", options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, while it compiles
        yield


@pytest.mark.usefixtures("_traced")
def test_a_run_that_compiles_leaves_what_a_plain_one_does(tmp_path: Path) -> None:
    plain = distilled(small(4), small(8), tmp_path / "plain")
    traced = distilled(small(4), small(8), tmp_path / "traced", compile=True)
    assert len([e for e in events(tmp_path / "traced") if e["event"] == "compiled"]) == 2
    assert weights(tmp_path / "traced") == weights(tmp_path / "plain")
    assert list(traced.student.state_dict()) == list(plain.student.state_dict())
    for one, other in zip(plain.student.parameters(), traced.student.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("_traced")
@pytest.mark.parametrize("in_place", [False, True])
def test_networks_that_their_owner_compiled_are_distilled_as_they_were(
    tmp_path: Path, in_place: bool
) -> None:
    distilled(small(4), small(8), tmp_path / "plain")
    student, teacher = small(4), small(8)
    if in_place:
        student.compile(backend="eager")
        teacher.compile(backend="eager")
        distilled(student, teacher, tmp_path / "own")
        assert student._compiled_call_impl is not None
    else:
        wrapped = [torch.compile(each, backend="eager") for each in (student, teacher)]
        distilled(*wrapped, tmp_path / "own")
    assert weights(tmp_path / "own") == weights(tmp_path / "plain")
