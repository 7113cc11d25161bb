"""The loop: what it refuses, what it logs, and how it goes on."""

import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.systems.tiny import TinyTask, student_net, teacher_net
from tests.trajectory.whole_runs import timeless
from torch import Tensor, nn

from congener.engine import FitConfig, FitResult, fit
from congener.errors import DataError, Interrupted, NonFiniteLossError
from congener.losses import KDLoss, SPLoss
from congener.runlog import RunLog
from congener.systems import Distillation
from congener.teachers import fingerprint
from congener.types import Term

Observer = Callable[[dict[str, Any]], None]


def config(**settings: Any) -> FitConfig:
    small = {"steps": 12, "batch_size": 8, "lr": 0.01, "threads": 1, "device": "cpu"}
    return FitConfig(**small | settings)


def train(
    system: Distillation, settings: FitConfig, log: RunLog | None = None, **options: Any
) -> FitResult:
    task = system.task
    return fit(
        system, task, settings,
        train=task.splits["train"], test=task.splits["test"], log=log, **options,
    )  # fmt: skip


def alone(**options: Any) -> Distillation:
    return Distillation(student_net(**options), None, [], task=TinyTask())


class Fault(nn.Module):
    """A loss that fails at one of its calls."""

    name = "fault"

    def __init__(self, call: int, value: float) -> None:
        super().__init__()
        self.calls, self.call, self.value = 0, call, value

    def forward(self, student_logits: Tensor) -> Tensor:
        self.calls += 1
        factor = self.value if self.calls == self.call + 1 else 1.0
        return student_logits.square().mean() * factor


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(("value", "shown"), [(math.nan, "nan"), (math.inf, "inf")])
def test_loss_that_is_not_finite_stops_before_the_step(
    value: float, shown: str, accumulate: int
) -> None:
    system = Distillation(
        student_net(norm=False), teacher_net(), [Term(Fault(4, value), 0.1)], task=TinyTask()
    )
    with pytest.raises(NonFiniteLossError) as error:
        train(system, config(accumulate=accumulate), name="sp/0")
    assert str(error.value) == (
        f"The loss term 'fault' became {shown} at step 4 of 'sp/0'; the weights were left as they "
        "were before it. Lower lr or the term's weight, clip gradients, or train in fp32."
    )
    wanted = Distillation(
        student_net(norm=False), teacher_net(), [Term(Fault(99, value), 0.1)], task=TinyTask()
    )
    train(wanted, config(steps=4, schedule="constant", accumulate=accumulate))
    before = Distillation(
        student_net(norm=False), teacher_net(), [Term(Fault(4, value), 0.1)], task=TinyTask()
    )
    with pytest.raises(NonFiniteLossError):
        train(before, config(schedule="constant", accumulate=accumulate))
    assert fingerprint(before.student) == fingerprint(wanted.student)


def test_epoch_without_a_batch_is_told() -> None:
    with pytest.raises(DataError) as error:
        train(alone(), config(batch_size=64, drop_last=True))
    assert str(error.value) == (
        "An epoch of 50 samples has no batch of 64; lower batch_size or set drop_last to false."
    )


@pytest.mark.parametrize(("drop_last", "steps"), [(False, 14), (True, 12)])
def test_epochs_count_the_ragged_batch(drop_last: bool, steps: int) -> None:
    seen: list[dict[str, Any]] = []
    settings = config(steps=None, epochs=2, drop_last=drop_last, log_every=1)
    assert train(alone(), settings, RunLog(None, (seen.append,))).steps == steps
    epochs = [e["epoch"] for e in seen if e["event"] == "step"]
    assert epochs == [0] * (steps // 2) + [1] * (steps // 2)


def test_events_of_a_fit() -> None:
    seen: list[dict[str, Any]] = []
    system = Distillation(
        student_net(), teacher_net(), [Term(Fault(99, 0.0), 0.25)], task=TinyTask(), task_weight=0.5
    )
    settings = config(steps=25, evaluate_every=10, log_every=8, warmup=2, lr=0.02)
    result = train(system, settings, RunLog(None, (seen.append,)), name="a/1", seed=4)
    kept = [e for e in seen if e["event"] != "tick"]
    assert kept[0]["event"] == "fit_started"
    assert {k: kept[0][k] for k in ("fit", "steps", "seed", "processes")} == {
        "fit": "a/1", "steps": 25, "seed": 4, "processes": 1,
    }  # fmt: skip
    steps = [e for e in kept if e["event"] == "step"]
    assert [e["step"] for e in steps] == [*range(10), 16, 24]
    for event in steps:
        terms = event["terms"]
        assert event["weighted"] == {"task": 0.5 * terms["task"], "fault": 0.25 * terms["fault"]}
        assert event["total"] == pytest.approx(sum(event["weighted"].values()), rel=1e-6)
    assert [e["lr"] for e in steps[:3]] == [0.01, 0.02, 0.02]
    evaluations = [e for e in kept if e["event"] == "evaluation"]
    assert [e["step"] for e in evaluations] == [10, 20, 25]
    assert evaluations[-1]["epoch"] == 25 / 7
    assert kept[-1]["event"] == "fit_finished"
    assert result.metrics == evaluations[-1]["metrics"] == kept[-1]["metrics"]
    best = max(e["metrics"]["accuracy"] for e in evaluations)
    assert result.best["accuracy"] == best
    first = next(e["step"] for e in evaluations if e["metrics"]["accuracy"] == best)
    assert result.best["step"] == first


def test_evaluation_leaves_no_trace_in_training() -> None:
    one, other = alone(dropout=0.5), alone(dropout=0.5)
    train(one, config())
    train(other, config(evaluate_every=2))
    assert fingerprint(one) == fingerprint(other)
    assert one.student.training


def test_seed_is_what_a_fit_depends_on() -> None:
    def trained(seed: int) -> str:
        system = alone(dropout=0.5)
        torch.manual_seed(seed + 77)
        train(system, config(), seed=seed)
        return fingerprint(system)

    assert trained(0) == trained(0) != trained(1)


def test_clip_bounds_the_step() -> None:
    system = alone(norm=False)
    before = torch.cat([p.detach().flatten() for p in system.parameters()])
    train(system, config(steps=1, optimizer="sgd", lr=1.0, momentum=0.0, clip=0.01))
    after = torch.cat([p.detach().flatten() for p in system.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.01, rel=1e-3)


def stop_at(step: int, number: int = signal.SIGINT) -> Observer:
    def observe(event: dict[str, Any]) -> None:
        if event["event"] == "tick" and event["step"] == step:
            signal.raise_signal(number)

    return observe


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 5, 12, 24])
def test_interrupted_fit_resumes_as_if_never_stopped(
    tmp_path: Path, step: int, number: int
) -> None:
    settings = config(steps=24, evaluate_every=5, log_every=3, optimizer="sgd", checkpoint_every=8)

    def make() -> Distillation:
        return Distillation(
            student_net(dropout=0.3), teacher_net(), [Term(Fault(99, 0.0), 0.25)], task=TinyTask()
        )

    logs = [tmp_path / "straight", tmp_path / "stopped"]
    for folder in logs:
        folder.mkdir()
    straight, stopped, resumed = make(), make(), make()
    wanted = train(straight, settings, RunLog(logs[0]), checkpoint=logs[0] / "c.pt")
    before = signal.getsignal(number)
    with pytest.raises(Interrupted):
        train(
            stopped, settings, RunLog(logs[1], (stop_at(step, number),)),
            checkpoint=logs[1] / "c.pt",
        )  # fmt: skip
    assert signal.getsignal(number) is before
    assert timeless(logs[1])[-1] == {"event": "interrupted", "fit": "fit", "step": step}
    torch.manual_seed(123)
    found = train(resumed, settings, RunLog(logs[1]), checkpoint=logs[1] / "c.pt")
    assert fingerprint(resumed) == fingerprint(straight)
    assert timeless(logs[1]) == timeless(logs[0])
    assert (found.metrics, found.best, found.steps) == (wanted.metrics, wanted.best, wanted.steps)


def test_second_interrupt_acts_at_once() -> None:
    def twice(event: dict[str, Any]) -> None:
        if event["event"] == "tick" and event["step"] == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as error:
        train(alone(), config(), RunLog(None, (twice,)))
    assert not isinstance(error.value, Interrupted)


def test_interrupt_while_the_last_evaluation_runs_is_heard(tmp_path: Path) -> None:
    def late(event: dict[str, Any]) -> None:
        if event["event"] == "evaluation":
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        train(alone(), config(), RunLog(tmp_path, (late,)), checkpoint=tmp_path / "c.pt")
    assert [e["event"] for e in timeless(tmp_path)][-2:] == ["evaluation", "interrupted"]
    train(alone(), config(), RunLog(tmp_path), checkpoint=tmp_path / "c.pt")
    assert [e["event"] for e in timeless(tmp_path)][-2:] == ["evaluation", "fit_finished"]


def test_log_rewinds_and_forgets(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    assert log.length == 0
    log.forget(fit="a")
    log.emit("run_started")
    log.emit("step", fit="a")
    mark = log.length
    log.emit("step", fit="b")
    log.rewind(mark)
    assert [e.get("fit") for e in timeless(tmp_path)] == [None, "a"]
    log.emit("step", fit="b")
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "step", "fi')  # cut off by a kill
    log.forget(fit="a")
    assert [e.get("fit") for e in timeless(tmp_path)] == [None, "b"]
    assert (tmp_path / "events.jsonl").read_text().endswith("}\n")


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_balance_is_recorded_every_so_many_steps(accumulate: int) -> None:
    def records(every: int) -> tuple[list[dict[str, Any]], str]:
        events: list[dict[str, Any]] = []
        terms = [Term(KDLoss()), Term(SPLoss(), 10.0, "hidden", "hidden")]
        system = Distillation(student_net(norm=False), teacher_net(), terms, task=TinyTask())
        settings = config(accumulate=accumulate, balance_every=every)
        train(system, settings, RunLog(None, (events.append,)))
        return [e for e in events if e["event"] == "balance"], fingerprint(system.student)

    found, trained = records(5)
    assert [event["step"] for event in found] == [0, 5, 10]
    for event in found:
        assert set(event["terms"]) == {"task", "kd", "sp"}
        assert event["terms"]["task"]["cosine"] == pytest.approx(1)
        assert event["terms"]["sp"]["gradient_norm"] > 0
        assert -1 <= event["terms"]["kd"]["cosine"] <= 1
        # in pieces the task's gradient does not reach the taps
        assert (event["terms"]["sp"]["cosine"] is None) is (accumulate > 1)
    assert records(0) == ([], trained)  # and the record leaves training alone


class Poison(nn.Module):
    """A student whose logits become NaN at one of its calls."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.net, self.calls, self.call = student_net(norm=False), 0, call

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = self.net(x)
        return logits * (math.nan if self.calls == self.call + 1 else 1.0)


def test_a_loss_that_refuses_nan_is_told_with_its_step() -> None:
    task = TinyTask()
    system = Distillation(Poison(3), teacher_net(), [Term(KDLoss())], task=task)
    with pytest.raises(NonFiniteLossError) as error:
        train(system, config(), name="kd/0")
    assert str(error.value) == (
        "The loss term 'kd': An input of the loss is NaN for sample 0 and 7 more of 8; look at "
        "what computed it (a diverging network, a division by zero), or leave such samples out "
        "with `mask` (step 3 of 'kd/0'; the weights were left as they were before it)."
    )
