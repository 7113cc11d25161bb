"""Which arms learn from what the teacher said before, and why the others do not."""

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import congener
from congener import caching
from congener.assembly import Assembly
from congener.caching import Answers
from congener.errors import RecipeError, RunError
from congener.losses import KDLoss
from congener.recipe import parse_recipe
from congener.runlog import RunLog
from congener.systems import Distillation
from congener.task import Task
from congener.tasks.image_classification import ImageClassification
from congener.types import Term

KD = {"terms": ["kd"]}


@cache
def task(augment: str = "none") -> ImageClassification:
    return ImageClassification({"name": "mnist1d", "pool": 1000}, augment=augment)


def answers(**changes: Any) -> Answers:
    described = {
        "task": task(),
        "teacher": {"name": "cnn1d", "channels": 8, "train": {"steps": 1}},
        "student": "mlp",
        "terms": [{"loss": "kd"}],
        "train": {"epochs": 20},
    } | changes
    recipe = parse_recipe(described)
    assembly = Assembly(recipe, ["tests"])
    found = Answers(recipe, assembly, Path("nowhere"), RunLog(None))
    found.plan(assembly.teacher())
    return found


def why(arm: str = "distilled", **changes: Any) -> str:
    return answers(**changes).plans[arm].live


def test_what_is_still_is_kept() -> None:
    found = answers()
    assert found.plans["distilled"].live == ""
    assert [f.name for f in found.plans["distilled"].fields["teacher"]] == ["logits"]
    assert "alone" not in found.plans


def test_what_is_drawn_anew_is_not_kept_without_views() -> None:
    assert "`train.views: 8`" in why(task=task("jitter"))
    assert why(task=task("jitter"), train={"epochs": 40, "views": 8}) == ""


def test_what_is_read_too_seldom_is_not_kept() -> None:
    assert "would be read 1.0 times" in why(train={"epochs": 1, "batch_size": 100})
    assert why(train={"epochs": 1, "batch_size": 100}, seeds=[0, 1]) == ""


def test_what_is_too_large_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, "LIMIT", 50_000)
    maps = {"loss": "sp", "student": "hidden", "teacher": "layer3"}
    found = answers(terms=(), arms={"kd": {"terms": [{"loss": "kd"}]}, "sp": {"terms": [maps]}})
    assert found.plans["kd"].live == ""  # 1000 samples of ten floats
    assert "would take" in found.plans["sp"].live


ADAIN = {"loss": "adain", "student": "layer3", "teacher": "layer3"}


@pytest.mark.parametrize(
    ("arm", "reason"),
    [
        ({"terms": [ADAIN]}, "in the statistics of what the student says now"),
        ({"system": "backward_kd"}, "move with the student"),
        ({"system": "stkd"}, "mixed anew in every step"),
        ({"terms": [{"loss": "kd"}], "learns_from": "alone"}, "another arm's student"),
    ],
)
def test_what_needs_the_teacher_live_says_why(arm: dict[str, Any], reason: str) -> None:
    changes = {
        "terms": (),
        "student": "cnn1d",
        "arms": {"first": arm, "kd": {"terms": [{"loss": "kd"}]}},
    }
    found = answers(**changes)
    assert reason in found.plans["first"].live
    assert found.plans["kd"].live == ""
    with pytest.raises(RecipeError, match=r"needs it live: .*cache: auto") as caught:
        answers(**changes, cache={})
    assert reason in str(caught.value)


def test_nothing_is_kept_where_it_is_off() -> None:
    assert answers(cache="off").plans == {}


class Noisy(Dataset[Any]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.randn(1, 40), index % 10


def test_of_a_data_set_that_is_not_known_nothing_is_kept_unasked() -> None:
    noisy = ImageClassification.from_datasets(Noisy(), Noisy(), num_classes=10)
    train = {"epochs": 20}
    assert "is not known" in why(task=noisy, train=train)
    assert why(task=noisy, train=train | {"views": 2}) == ""


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        said: Tensor = self.head(x.flatten(1))
        return said


class Own(Distillation):
    """A system from elsewhere."""

    def __init__(self, student: nn.Module, teacher: nn.Module, *, task: Task) -> None:
        super().__init__(student, teacher, [Term(KDLoss())], task=task)


class Centred(nn.Module):
    """Says of a sample how it differs from the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        said: Tensor = self.head(x.flatten(1))
        return said - said.mean(0)


def test_a_teacher_that_looks_at_the_batch_stays_live() -> None:
    assert "depend on the rest of its batch" in why(teacher=Centred())


def test_a_system_of_ones_own_is_asked_for_by_a_demand_alone() -> None:
    own = {"system": "tests.caching.test_plan.Own"}
    assert "a system of your own" in why(**own, terms=())
    assert why(**own, terms=(), cache={}) == ""


class Drawing(TensorDataset):
    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return image + torch.randn(()), label


def test_a_kind_of_tensor_data_set_is_not_taken_for_still() -> None:
    data = torch.randn(64, 1, 40), torch.arange(64) % 10
    still = ImageClassification.from_datasets(TensorDataset(*data), TensorDataset(*data))
    assert why(task=still, train={"epochs": 20}) == ""
    drawing = ImageClassification.from_datasets(Drawing(*data), TensorDataset(*data))
    assert "is not known" in why(task=drawing, train={"epochs": 20})


def test_answers_in_float64_are_not_kept_unasked() -> None:
    class Double(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).double()

    assert why(teacher=Plain()) == ""
    assert "finer than the float32" in why(teacher=Double())


def test_a_disk_that_is_full_leaves_the_teacher_live(tmp_path: Path, monkeypatch) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    events: list[dict[str, Any]] = []
    recipe = {
        "task": task(), "teacher": Plain(), "student": "mlp", "terms": [{"loss": "kd"}],
        "train": {"steps": 30, "batch_size": 100}, "alone": False,
    }  # fmt: skip
    congener.run(recipe, out=tmp_path / "run", observers=(events.append,))
    (told,) = [event for event in events if event["event"] == "teacher_live"]
    assert "has 0.0 MB free" in told["reason"]
    with pytest.raises(RunError, match=r"has 0\.0 MB free"):
        congener.run(recipe | {"cache": {}}, out=tmp_path / "demanded")
