"""The YAML file, the file with overrides, and the Python call are one experiment, bit for bit."""

from pathlib import Path

import pytest
import torch
from tests.trajectory.whole_runs import losses, save_teacher, weights

import congener
from congener.engine import load_weights
from congener.losses import KDLoss, SPLoss
from congener.tasks.image_classification.models import cnn1d, mlp

YAML = """
task: {name: image_classification, data: mnist1d}
teacher: {name: cnn1d, channels: 8, checkpoint: TEACHER}
student: {name: mlp, hidden: [32, 32]}
alone: false
terms:
  - {loss: sp, weight: 3000, student: hidden, teacher: layer3}
  - {loss: {name: kd, temperature: 4}, weight: 0.9}
task_weight: 0.1
train: {steps: 20, batch_size: 64, lr: 5e-3, threads: 1, device: cpu}
"""
OTHER = {
    "hidden: [32, 32]": "hidden: [16]", "weight: 3000": "weight: 1",
    "temperature: 4": "temperature: 1",
    "task_weight: 0.1": "task_weight: 1", "lr: 5e-3": "lr: 1e-2", "batch_size: 64": "batch_size: 8",
}  # fmt: skip
OVERRIDES = [
    "student.hidden=[32, 32]", "terms.0.weight=3000", "terms.1.loss.temperature=4",
    "task_weight=0.1", "train.lr=5e-3", "train.batch_size=64",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("doors")


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return YAML.replace("TEACHER", str(save_teacher(folder)))


@pytest.fixture(scope="module")
def expected(folder: Path, text: str) -> Path:
    """The run of the YAML file."""
    (folder / "recipe.yaml").write_text(text)
    congener.run(folder / "recipe.yaml", out=folder / "yaml")
    return folder / "yaml"


def assert_same(out: Path, expected: Path) -> None:
    first = losses(expected, "distilled/0")[:10]
    assert len(first) == 10
    assert losses(out, "distilled/0")[:10] == first
    assert list(weights(out).values()) == list(weights(expected).values())


def test_overrides_are_the_recipe(folder: Path, text: str, expected: Path) -> None:
    other = text
    for mine, theirs in OTHER.items():
        assert mine in other
        other = other.replace(mine, theirs)
    (folder / "other.yaml").write_text(other)
    congener.run(folder / "other.yaml", out=folder / "overridden", overrides=OVERRIDES)
    assert_same(folder / "overridden", expected)


def test_other_recipe_differs_without_overrides(folder: Path, text: str, expected: Path) -> None:
    (folder / "changed.yaml").write_text(text.replace("weight: 3000", "weight: 2999"))
    congener.run(folder / "changed.yaml", out=folder / "changed")
    with pytest.raises(AssertionError):
        assert_same(folder / "changed", expected)


def test_distill_by_name_is_the_recipe(folder: Path, expected: Path) -> None:
    trained, run = congener.distill(
        student={"name": "mlp", "hidden": [32, 32]},
        teacher={"name": "cnn1d", "channels": 8, "checkpoint": folder / "teacher.safetensors"},
        train="mnist1d",
        terms=[
            {"loss": "sp", "weight": 3000, "student": "hidden", "teacher": "layer3"},
            {"loss": {"name": "kd", "temperature": 4}, "weight": 0.9},
        ],
        task_weight=0.1,
        out=folder / "named",
        steps=20, batch_size=64, lr=5e-3, threads=1, device="cpu",
    )  # fmt: skip
    assert_same(run.folder, expected)
    saved = mlp(10, 40, hidden=(32, 32))
    load_weights(saved, next(expected.rglob("weights.safetensors")))
    for name, value in trained.state_dict().items():
        assert torch.equal(value, saved.state_dict()[name])


def test_distill_with_objects_is_the_recipe(folder: Path, expected: Path) -> None:
    teacher = cnn1d(10, channels=8)
    load_weights(teacher, folder / "teacher.safetensors")
    torch.manual_seed(0)  # the seed of the run, from which the recipe initialises its student
    student = mlp(10, 40, hidden=(32, 32))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    _, run = congener.distill(
        student, teacher, "mnist1d",
        terms=[
            congener.Term(SPLoss(), 3000, "hidden", "layer3"),
            congener.Term(KDLoss(temperature=4), 0.9),
        ],
        task_weight=0.1, out=folder / "objects",
        steps=20, batch_size=64, lr=5e-3, threads=1, device="cpu",
    )  # fmt: skip
    assert_same(run.folder, expected)
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name])  # the user's own network stays as it was
