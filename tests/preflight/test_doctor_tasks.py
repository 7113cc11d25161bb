"""The doctor on tasks that are no classification: it says what is true there, or nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_model
from tests.report.tagging import SAMPLES, Frames, Tones
from tests.systems.scenes import TinyScenes
from torch import Tensor, nn

import congener
from congener import Term
from congener.engine.held import Held
from congener.losses import IUSPLoss, KDLoss, MultiLabelKDLoss, SPLoss
from congener.preflight import doctor
from congener.types import Batch


class Shifted(nn.Module):
    """A network whose answers are changed."""

    def __init__(self, net: nn.Module, change: Any) -> None:
        super().__init__()
        self.net, self.change = net, change

    def forward(self, waveform: Tensor, length: Tensor) -> Tensor:
        result: Tensor = self.change(self.net(waveform, length))
        return result


class Identities(Tones):
    """The same sounds, each of one of many identities: networks give embeddings."""

    class_names = ()
    metric = "recall_at_1"

    def __init__(self) -> None:
        super().__init__()
        sounds = {name: split.columns for name, split in self.splits.items()}
        self.splits = {
            name: Held(dict(columns) | {"labels": torch.arange(len(columns["length"])) // 4})
            for name, columns in sounds.items()
        }

    def labels(self, split: str) -> Tensor:
        labels: Tensor = self.splits[split].columns["labels"]
        return labels

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """How unlike those are that have the same identity; 0 where there are none."""
        same = (batch["labels"][:, None] == batch["labels"]).float().fill_diagonal_(0)
        return (torch.cdist(logits, logits).square() * same).mean()


def examine(task: Any, terms: Any, *, student: Any = None, teacher: Any = None, **more: Any) -> Any:
    torch.manual_seed(0)
    student, teacher = student or Frames(4), teacher or Frames(8)
    settings = {"steps": 5, "batch_size": 16, "threads": 1, "device": "cpu"} | more
    recipe = congener.describe(student, teacher, task, terms=terms, **settings)
    return [finding.name for finding in doctor(recipe, out=Path("no-such-run"))]


def tags() -> list[Term]:
    return [Term(MultiLabelKDLoss()), Term(IUSPLoss(), 0.01, "frames", "frames")]


def test_a_sound_experiment_on_tags_has_no_findings() -> None:
    assert examine(Tones(), tags()) == []


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_probabilities_of_tags_are_found(who: str) -> None:
    networks = {who: Shifted(Frames(4), torch.sigmoid)}
    assert examine(Tones(), [Term(MultiLabelKDLoss())], **networks) == ["probabilities"]


@pytest.mark.parametrize("factor", [1e5, 1e-7])
def test_tags_are_no_distribution_whose_entropy_counts(factor: float) -> None:
    teacher = Shifted(Frames(8), lambda z: factor * z)
    assert "temperature_without_effect" not in examine(
        Tones(), [Term(MultiLabelKDLoss())], teacher=teacher
    )


def test_tags_taken_for_classes_are_found() -> None:
    assert examine(Tones(), [Term(KDLoss(), 0.1)]) == ["tags_as_rivals"]


def test_embeddings_are_neither_probabilities_nor_classes() -> None:
    near = Shifted(Frames(4, 8), lambda z: F.normalize(z.exp(), dim=1))
    far = Shifted(Frames(8, 8), lambda z: 1e5 * F.normalize(z.exp(), dim=1))
    terms = [Term(SPLoss(), 1.0, "net.frames", "net.frames"), Term(KDLoss(), 1e-9)]
    settings = {"sampler": "class_uniform", "per_class": 2}
    found = examine(Identities(), terms, student=near, teacher=far, **settings)
    assert not {"probabilities", "temperature_without_effect", "teacher_at_chance"} & {*found}


def test_the_batch_is_drawn_as_training_draws_it() -> None:
    """With two of an identity in each batch the task has something to say; shuffled, it has not."""
    terms = [Term(SPLoss(), 1.0, "frames", "frames")]
    task = Identities()
    columns = dict(task.splits["train"].columns) | {"labels": torch.arange(40) // 2}
    task.splits = dict(task.splits) | {"train": Held(columns)}
    networks = {"student": Frames(4, 8), "teacher": Frames(8, 8)}
    alike = examine(task, terms, **networks, batch_size=8, sampler="class_uniform", per_class=2)
    assert alike == []
    task.loss = lambda logits, batch: Identities.loss(task, logits, batch)  # type: ignore[method-assign]
    columns["labels"] = torch.arange(40)
    assert "no_signal" in examine(task, terms, **networks, batch_size=8)


def test_groups_and_few_labels_are_drawn_together() -> None:
    task = Identities()
    columns = dict(task.splits["train"].columns)
    columns["labels"] = torch.where(torch.arange(40) < 21, columns["labels"], -100)
    task.splits = dict(task.splits) | {"train": Held(columns)}
    task.labelled = torch.arange(21)
    found = examine(
        task, [Term(SPLoss(), 1.0, "frames", "frames")], student=Frames(4, 8), teacher=Frames(8, 8),
        sampler="class_uniform", per_class=3, batch_size=15, labelled_per_batch=9,
    )  # fmt: skip
    assert found == []


@pytest.mark.parametrize(("asks", "leaks"), [(False, False), (True, True), (None, True)])
def test_of_a_database_only_queries_must_be_new(asks: bool | None, leaks: bool) -> None:
    task = Tones()
    test = {name: column.clone() for name, column in task.splits["test"].columns.items()}
    seen = task.splits["train"].columns["waveform"][:10]
    assert seen.shape == (10, SAMPLES)
    test["waveform"][:10] = seen
    if asks is not None:
        test["query"] = (torch.arange(20) < 10) == asks
    task.splits = dict(task.splits) | {"test": Held(test)}
    assert ("leak" in examine(task, tags())) == leaks


@pytest.mark.parametrize("own", [False, True])
def test_what_was_asked_of_another_teacher_or_in_another_way_is_found(
    own: bool, tmp_path: Path
) -> None:
    body = {"name": "small_cnn", "widths": [8, 8, 8], "norm": "none", "levels": 1, "channels": 32}
    torch.manual_seed(7)
    task = TinyScenes(20)
    save_model(task.build_model(**body), str(tmp_path / "teacher.safetensors"))
    ikd: dict[str, Any] = {"name": "ikd", "attack": {"steps": 1}, "alpha": 1e-3}
    ikd |= {"folder": str(tmp_path / "own")} if own else {}

    def described(**changes: Any) -> Any:
        return {
            "task": task, "student": body, "alone": False,
            "teacher": body | {"checkpoint": str(tmp_path / "teacher.safetensors")},
            "arms": {"ikd": {"system": ikd | changes, "terms": [{"loss": "detection_kd"}]}},
            "train": {"steps": 1, "batch_size": 16, "threads": 1, "device": "cpu"},
        }  # fmt: skip

    out = tmp_path / "run"
    assert doctor(described(), out=out) == []
    congener.run(described(), out=out)
    assert (tmp_path / "own").exists() == own
    assert doctor(described(), out=out) == []
    assert doctor(described(alpha=1.0), out=out) == []
    (found,) = doctor(described(attack={"steps": 2}), out=out)
    assert found.name == "stale_cache"
    assert "'ikd-adversarial'" in found.where
    assert found.measured.endswith("is expected.")
    assert doctor(described(attack={"steps": 2}, online=True), out=out) == []
