"""A student that learns a teacher's answers as if they were labels."""

from typing import Any

import pytest
import torch
from tests.systems.scenes import detecting_teacher, detector, squares
from tests.systems.tiny import TinyTask, prepared_batch, student_net, teacher_net

from congener.errors import RecipeError
from congener.systems import PseudoLabel
from congener.tasks.detection import Detection
from congener.types import Progress

START = Progress(0, 1, 0)


def sure_of(task: Detection, monkeypatch: pytest.MonkeyPatch, *answers: Any) -> None:
    """Let every network answer so about the images that it is asked about."""

    def respond(_model: Any, batch: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
        assert len(batch["image"]) == len(answers)
        names = ("boxes", "scores", "labels")
        return [dict(zip(names, map(torch.as_tensor, answer), strict=True)) for answer in answers]

    monkeypatch.setattr(task, "respond", respond)


def test_what_the_teacher_answers_labels_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Detection(squares(10, 4))
    batch = prepared_batch(task, 10)
    unknown = (batch["labels"] == -100).all(1)
    assert unknown.nonzero().flatten().tolist() == [3, 8]
    boxes = [[1.0, 2, 9, 12], [20.0, 3, 30, 9], [0.0, 0, 5, 5], [0.0, 3, 0.5, 9]]
    sure_of(task, monkeypatch, (boxes, [0.9, 0.5, 0.49, 0.9], [2, 0, 1, 1]),
            (torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)))  # fmt: skip
    system = PseudoLabel(detector(norm=False), detecting_teacher(), task=task)
    seen = system.views(batch, START)
    assert seen["labels"][3].tolist() == [2, 0]
    assert seen["boxes"][3].tolist() == boxes[:2]
    assert seen["labels"][8].tolist() == [-1, -1]  # annotated, and empty
    assert torch.equal(seen["labels"][~unknown], batch["labels"][~unknown])
    assert torch.equal(seen["boxes"][~unknown], batch["boxes"][~unknown])
    said = system.observe(seen)
    total, terms = system.score(said, None, seen, START)
    assert terms.keys() == {"task"}
    assert torch.equal(total, task.loss(said.logits, seen))
    assert not torch.equal(total, task.loss(said.logits, batch))


def test_more_answers_than_there_were_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Detection(squares(10, 4))
    batch = prepared_batch(task, 4)
    boxes = [[1.0, 2, 9, 12 + row] for row in range(5)]
    sure_of(task, monkeypatch, (boxes, [0.9] * 5, [1] * 5))
    seen = task.pseudo_labelled(batch, detector())
    assert seen["labels"].tolist()[3] == [1] * 5
    assert seen["labels"][:3, 2:].eq(-1).all()
    assert seen["boxes"].shape == (4, 5, 4)
    assert seen["crowd"].shape == (4, 5)
    assert task.loss(task.logits(task.call(detector(norm=False), seen)), seen).isfinite()


def test_a_task_of_single_classes_has_a_loss_for_that() -> None:
    with pytest.raises(RecipeError, match=r"TinyTask does not turn.*'hard_label'"):
        PseudoLabel(student_net(), teacher_net(), task=TinyTask())
