"""Schedules, layers, several teachers and the loss balance, in the default system."""

import copy
import math
from typing import Any

import pytest
import torch
from tests.systems.tiny import TinyTask, batch_of, student_net, teacher_net
from torch import Tensor, nn

from congener.errors import RecipeError
from congener.losses import KDLoss, SPLoss
from congener.schedules import Schedule
from congener.system import loss_balance
from congener.systems import Distillation
from congener.types import Outputs, Progress, Term


def at(step: int, epoch: int = 0, steps: int = 10) -> Progress:
    return Progress(step, steps, epoch)


def build(*terms: Term, **options: Any) -> Distillation:
    return Distillation(student_net(), teacher_net(), terms, task=TinyTask(), **options)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (Schedule(), [1, 1, 1, 1, 1]),
        (Schedule(end=0.5, stop=3, steps=1), [0.5, 0.5, 0.5, 0, 0]),
        (Schedule("linear", steps=4), [0.25, 0.5, 0.75, 1, 1]),
        (Schedule("linear", start=1, end=0), [0.8, 0.6, 0.4, 0.2, 0]),
        (Schedule("cosine", start=1, end=0, steps=4), [(1 + math.cos(math.pi * w / 4)) / 2
                                                       for w in (1, 2, 3, 4, 4)]),
        (Schedule("linear", start=2, end=4, steps=2, stop=4), [3, 4, 4, 4, 0]),
    ],
)  # fmt: skip
def test_factors_by_step(schedule: Schedule, factors: list[float]) -> None:
    found = [schedule.factor(step, 5, 0) for step in range(5)]
    assert found == pytest.approx(factors, abs=1e-12)


def test_factors_by_epoch() -> None:
    warm_up = Schedule("linear", epochs=20)  # DKD: min(epoch / 20, 1), epochs from 1
    assert [warm_up.factor(7, 100, epoch) for epoch in (0, 9, 19, 30)] == [0.05, 0.5, 1, 1]
    stop = Schedule(stop=2)
    assert [stop.factor(99, 100, epoch) for epoch in (0, 1, 2, 3)] == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"shape": "step"}, "shape must be one of"),
        ({"epochs": 0}, "epochs of a schedule must be at least 1"),
        ({"stop": -1}, "stop of a schedule must be at least 1"),
        ({"epochs": 2, "steps": 2}, "`epochs` or `steps`, not both"),
    ],
)
def test_wrong_schedules_are_told(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Schedule(**options)


def test_words() -> None:
    assert str(Schedule("linear", epochs=20)) == "0 → 1, linear over 20 epochs"
    assert str(Schedule(stop=3)) == "1, 0 after 3 epochs"
    assert str(Schedule("cosine", 1, 0)) == "1 → 0, cosine over the whole training"


def test_a_weight_follows_training() -> None:
    term = Term(KDLoss(), 2.0, schedules={"weight": Schedule("linear", steps=4)})
    system = build(term)
    batch = batch_of(system.task)
    for step, weight in ((0, 0.5), (1, 1.0), (3, 2.0), (9, 2.0)):
        total, terms, _ = system(batch, at(step))
        torch.testing.assert_close(total, terms["task"] + weight * terms["kd"])
        assert system.weights(at(step)) == {"task": 1.0, "kd": weight}


def test_a_temperature_follows_training() -> None:
    schedule = Schedule("linear", start=1.0, end=0.25)
    system = build(Term(KDLoss(8), schedules={"temperature": schedule}))  # 8: as YAML has it
    batch = batch_of(system.task)
    for step in (9, 0, 4):  # any order, as after a resume
        _, terms, _ = system(batch, at(step))
        temperature = 8.0 * schedule.factor(step, 10, 0)
        student, teacher = system.observe(batch), system.teacher(batch)  # type: ignore[misc]
        expected = KDLoss(temperature)(student.logits, teacher.logits)
        torch.testing.assert_close(terms["kd"], expected)


def test_what_cannot_be_scheduled_is_told() -> None:
    for name, near in (("temprature", "temperature"), ("reduction", "")):
        with pytest.raises(RecipeError, match=f"schedules '{name}', which is no number.*{near}"):
            build(Term(KDLoss(), schedules={name: Schedule()}))


def test_layers_have_weights() -> None:
    taps = ("hidden", "hidden.1")
    batch = batch_of(TinyTask())

    def value(**options: Any) -> Tensor:
        return build(Term(SPLoss(), 1.0, taps, taps, **options))(batch, at(0))[1]["sp"]

    first, second = (value(layer_weights=pair) for pair in ((1.0, 0.0), (0.0, 1.0)))
    assert not torch.isclose(first, second)
    torch.testing.assert_close(value(), first + second)
    torch.testing.assert_close(value(layer_weights=(3.0, 0.5)), 3 * first + second / 2)
    with pytest.raises(RecipeError, match="3 `layer_weights` for 2 pairs of taps"):
        value(layer_weights=(1.0, 2.0, 3.0))


class Features(nn.Module):
    def forward(self, student_features: list[Tensor], teacher_features: list[Tensor]) -> Tensor:
        return student_features[0].sum() + teacher_features[0].sum()


def test_layer_weights_are_for_pairs() -> None:
    with pytest.raises(RecipeError, match="compares one pair at a time"):
        build(Term(Features(), 1.0, "hidden", "hidden", layer_weights=(2.0,)))


def test_terms_learn_of_their_own_teachers() -> None:
    torch.manual_seed(5)
    other = teacher_net()
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    terms = [
        Term(KDLoss(), name="a"),
        Term(KDLoss(), name="b", of="other"),
        Term(SPLoss(), 1.0, "hidden", "hidden", of="other"),
    ]
    system = build(*terms, teachers={"other": other, "idle": teacher_net()})
    batch = batch_of(system.task)
    _, found, _ = system(batch, at(0))
    logits = system.observe(batch).logits
    for name, net in (("a", teacher_net()), ("b", other)):
        alone = Distillation(copy.deepcopy(system.student), net, [Term(KDLoss())], task=system.task)
        if name == "b":
            torch.testing.assert_close(found[name], alone(batch, at(0))[1]["kd"])
            torch.testing.assert_close(
                found[name],
                KDLoss()(logits, system.teacher(batch).members["other"].logits),  # type: ignore[misc]
            )
    assert not torch.isclose(found["a"], found["b"])
    assert set(system.teacher(batch).members) == {"other"}  # type: ignore[misc]
    assert not any(p.requires_grad for p in other.parameters())
    assert not [name for name in system.state_dict() if "other" in name]


def test_a_teacher_that_is_not_there_is_told() -> None:
    with pytest.raises(RecipeError, match="'othr' that is not there; did you mean 'other'"):
        build(Term(KDLoss(), of="othr"), teachers={"other": teacher_net()})


def test_outputs_of_several_teachers_are_joined() -> None:
    parts = [Outputs(torch.ones(2, 3), {}, {"b": Outputs(torch.full((2, 3), i))}) for i in (1.0, 2)]
    joined = Outputs.concatenate(parts)
    assert joined.members["b"].logits[:, 0].tolist() == [1, 1, 2, 2]


def test_balance_at_the_logits() -> None:
    logits = torch.tensor([[3.0, 4.0]], requires_grad=True)
    student = Outputs(logits * 1)
    x = student.logits
    terms = {"task": x[0, 0] * 2, "with": x[0, 0], "against": -x[0, 0], "across": x[0, 1] * 5}
    found = loss_balance(student, terms, {"with": 10.0})
    figures = {name: {k: float(v) for k, v in each.items()} for name, each in found.items()}
    assert figures["task"] == {"weighted": 6, "gradient_norm": 2, "cosine": 1}
    assert figures["with"] == {"weighted": 30, "gradient_norm": 10, "cosine": 1}
    assert figures["against"] == {"weighted": -3, "gradient_norm": 1, "cosine": -1}
    assert figures["across"] == {"weighted": 20, "gradient_norm": 5, "cosine": 0}


def test_balance_at_a_tap() -> None:
    """A term of features is compared with the task where the term reads."""
    tap = torch.tensor([[1.0, 2.0]], requires_grad=True) * 1
    student = Outputs(tap @ torch.tensor([[3.0], [4.0]]), {"tap": tap})
    terms = {"task": student.logits.sum(), "sum": tap.sum(), "first": tap[0, 0] * 2}
    found = loss_balance(student, terms, {})
    assert float(found["task"]["gradient_norm"]) == 1  # at the logits
    assert float(found["sum"]["gradient_norm"]) == pytest.approx(math.sqrt(2))
    assert float(found["sum"]["cosine"]) == pytest.approx(7 / (5 * math.sqrt(2)))
    assert float(found["first"]["cosine"]) == pytest.approx(3 / 5)


def test_balance_that_is_not_defined() -> None:
    logits = torch.tensor([[3.0, 4.0]], requires_grad=True)
    student = Outputs(logits * 1)
    terms = {"task": 0 * student.logits.sum(), "kd": student.logits.sum()}
    found = loss_balance(student, terms | {"constant": torch.tensor(2.0)}, {})
    assert math.isnan(found["kd"]["cosine"])
    assert float(found["kd"]["gradient_norm"]) == pytest.approx(math.sqrt(2))
    assert float(found["constant"]["gradient_norm"]) == 0


def test_balance_leaves_the_step_alone() -> None:
    batch = batch_of(TinyTask())
    gradients = []
    for balance in (False, True):
        system = build(Term(KDLoss()), Term(SPLoss(), 10.0, "hidden", "hidden"))
        total, _, shares = system(batch, at(0), balance=balance)
        assert set(shares) == ({"task", "kd", "sp"} if balance else set())
        total.backward()
        gradients.append([p.grad for p in system.student.parameters()])
    for plain, weighed in zip(*gradients, strict=True):
        assert torch.equal(plain, weighed)  # type: ignore[arg-type]
