"""Only a gradient that is linear in the teacher's probabilities may be learnt from draws."""

import pytest
from tests.systems.tiny import TinyTask, batch_of, student_net, teacher_net

from congener.engine import learns_from_samples
from congener.losses import DISTLoss, GKDLoss, KDLoss, SPLoss
from congener.schedules import Schedule
from congener.systems import Distillation
from congener.types import Term


@pytest.mark.parametrize(("loss", "temperature", "fits"), [
    (KDLoss(1.0), 1.0, True), (KDLoss(4.0), 4.0, True), (KDLoss(4.0), 1.0, False),
    (GKDLoss(beta=0.0), 1.0, True), (GKDLoss(beta=0.01), 1.0, False),
    (GKDLoss(beta=0.5), 1.0, False), (GKDLoss(beta=1.0), 1.0, False), (DISTLoss(), 1.0, False),
])  # fmt: skip
def test_is_tried(loss, temperature, fits) -> None:
    task = TinyTask()
    system = Distillation(student_net(), teacher_net(), [Term(loss)], task=task)
    assert learns_from_samples(system, batch_of(task), temperature) is fits


def test_terms_that_do_not_read_the_logits_do_not_mind() -> None:
    task = TinyTask()
    feature = Term(SPLoss(), student="hidden", teacher="hidden")
    system = Distillation(student_net(), teacher_net(), [feature], task=task)
    assert learns_from_samples(system, batch_of(task), 1.0)


def test_one_term_of_two_is_enough_to_refuse() -> None:
    task = TinyTask()
    terms = [Term(KDLoss(1.0)), Term(KDLoss(2.0), name="soft", weight=0.1)]
    system = Distillation(student_net(), teacher_net(), terms, task=task)
    assert not learns_from_samples(system, batch_of(task), 1.0)


def test_a_term_whose_weight_grows_from_nothing_is_looked_at() -> None:
    task = TinyTask()
    term = Term(KDLoss(2.0), schedules={"weight": Schedule("linear", start=0.0, end=1.0)})
    system = Distillation(student_net(), teacher_net(), [term], task=task)
    assert not learns_from_samples(system, batch_of(task), 1.0)


def test_further_teachers_are_drawn_from_too() -> None:
    task = TinyTask()
    for temperature, fits in ((1.0, True), (2.0, False)):
        terms = [Term(KDLoss(1.0)), Term(KDLoss(temperature), name="other", of="second")]
        system = Distillation(
            student_net(), teacher_net(), terms, task=task, teachers={"second": teacher_net()}
        )
        assert learns_from_samples(system, batch_of(task), 1.0) is fits
