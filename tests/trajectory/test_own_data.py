"""A user's own data set, loader and networks through the Python door."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trajectory.whole_runs import losses
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, random_split

import congener
from congener.errors import DataError
from congener.losses import SPLoss
from congener.teachers import fingerprint


class Points(Dataset[Any]):
    """Images of 1 × 4 × 4 with noise drawn from the global generator, and their classes."""

    classes = ("left", "right", "none")

    def __init__(self, count: int = 60) -> None:
        self.targets = [index % 3 for index in range(count)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.zeros(1, 4, 4)
        image[0, :, self.targets[index]] = 2
        return image + 0.5 * torch.randn(1, 4, 4), self.targets[index]


class Answer:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh())
        self.head = nn.Linear(8, 3)

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.head(self.stem(image))
        return result


class Teacher(nn.Module):
    """Convolutional, with batch normalisation, and it answers with a record."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(16, 3)

    def forward(self, image: Tensor) -> Answer:
        return Answer(self.head(self.body(image).flatten(1)))


SETTINGS = {"steps": 24, "lr": 0.02, "threads": 1, "device": "cpu", "log_every": 1}
TERMS = [congener.Term(SPLoss(), 10.0, "stem", "body")]


def networks() -> tuple[Student, Teacher]:
    torch.manual_seed(0)
    return Student(), Teacher()


def test_own_data_set_and_networks(tmp_path: Path) -> None:
    student, teacher = networks()
    before = fingerprint(student), fingerprint(teacher)
    trained, run = congener.distill(
        student, teacher, Points(), Points(30), terms=TERMS, out=tmp_path / "run", batch_size=16,
        **SETTINGS,
    )  # fmt: skip
    assert (fingerprint(student), fingerprint(teacher)) == before
    assert fingerprint(trained) != before[0]
    assert type(trained) is Student
    steps = losses(run.folder, "distilled/0")
    assert len(steps) == 24
    assert steps[-1]["task"] < 0.7 * steps[0]["task"]
    row = run.metrics["arms"]["distilled"]
    assert row["accuracy"][0] > 0.6
    assert run.metrics["class_names"] == ["left", "right", "none"]
    batch = torch.stack([Points(30)[index][0] for index in range(30)])
    assert (trained(batch).argmax(1) == torch.tensor(Points(30).targets)).float().mean() > 0.6


def test_own_loader_lends_its_batch_size(tmp_path: Path) -> None:
    found = []
    for name, data, settings in [
        ("set", Points(), {"batch_size": 10}),
        ("loader", DataLoader(Points(), batch_size=10, shuffle=True), {}),
    ]:
        student, teacher = networks()
        _, run = congener.distill(
            student, teacher, data, DataLoader(Points(30), batch_size=7),
            terms=TERMS, out=tmp_path / name, **SETTINGS | settings,
        )  # fmt: skip
        found.append(losses(run.folder, "distilled/0"))
        assert run.metrics["batch_size"] == 10
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["tensors", "subset", "split"])
def test_data_sets_of_torch(tmp_path: Path, kind: str) -> None:
    images, targets = zip(*[Points()[index] for index in range(60)], strict=True)
    data: dict[str, Any] = {
        "tensors": TensorDataset(torch.stack(images), torch.tensor(targets)),
        "subset": Subset(Points(), range(1, 55)),
        "split": random_split(Points(), [50, 10], generator=torch.Generator().manual_seed(0))[0],
    }
    student, teacher = networks()
    seen = []
    for name in ("one", "two"):
        _, run = congener.distill(
            student, teacher, data[kind], Points(30), terms=TERMS, batch_size=16,
            out=tmp_path / name, **SETTINGS,
        )  # fmt: skip
        seen.append(losses(run.folder, "distilled/0"))
    assert seen[0] == seen[1]


def test_student_without_teacher(tmp_path: Path) -> None:
    student, _ = networks()
    trained, run = congener.distill(
        student, None, Points(), Points(30), out=tmp_path / "run", **SETTINGS
    )
    assert list(run.metrics["arms"]) == ["alone"]
    assert fingerprint(trained) != fingerprint(student)


def test_own_data_needs_a_set_to_evaluate_on(tmp_path: Path) -> None:
    student, teacher = networks()
    with pytest.raises(DataError, match="distill\\(\\) needs `val`, the set to evaluate on"):
        congener.distill(student, teacher, Points(), terms=TERMS, out=tmp_path / "run", **SETTINGS)
