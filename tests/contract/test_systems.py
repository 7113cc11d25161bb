"""What every public system must do; the table is in ``systems_cases.py``."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_model
from tests.contract.systems_cases import SYSTEMS, SystemCase
from tests.systems.tiny import prepared_batch as batch_of
from tests.trajectory.processes import in_two_processes
from torch import nn

import congener.systems
from congener.caching import exchange
from congener.engine import FitConfig, build_store, fields_of, fit, load_weights, prepare
from congener.engine.feed import size
from congener.errors import Interrupted, RecipeError
from congener.runlog import RunLog
from congener.system import System
from congener.systems import BackwardKD, Distillation
from congener.task import Task
from congener.teachers import CachedTeacher, FrozenTeacher, TeacherStore, fingerprint
from congener.types import Progress

CONFIG = FitConfig(
    steps=30, batch_size=16, checkpoint_every=7, evaluate_every=10, log_every=1,
    threads=1, device="cpu",
)  # fmt: skip
SHORT = CONFIG.model_copy(update={"steps": 12, "evaluate_every": 6})
LIVE = {
    "IKD",
    "PseudoLabel",
    "SKD",
    "SSKD",
    "STKD",
    "BackwardKD",
    "MixKD",
    "TwoViewCSKD",
    "distillation, adain",
}
CASES = pytest.mark.parametrize("case", SYSTEMS.values(), ids=SYSTEMS)


def trained_teacher(case: SystemCase) -> nn.Module:
    """A teacher that knows the task better than the students do; each caller has its own."""
    return deepcopy(_trained(case.task, case.teacher))


@cache
def _trained(make_task: Callable[[], Task], make_teacher: Callable[[], nn.Module]) -> nn.Module:
    task, net = make_task(), make_teacher()
    batch = batch_of(task, 50)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        task.loss(task.logits(task.call(net, batch)), batch).backward()
        optimizer.step()
    return net.eval()


def train(
    case: SystemCase,
    teacher: nn.Module,
    log: RunLog | None = None,
    *,
    config: FitConfig = CONFIG,
    **options: Any,
) -> System:
    task = case.task()
    config = config.model_copy(update={"lr": case.lr})
    torch.manual_seed(0)
    system = case.build(task, case.student(), teacher)
    prepare(system, task, config)
    data = {"train": task.splits["train"], "test": task.splits["test"]}
    fit(system, task, config, **data, log=log, **options)
    return system


class Run(NamedTuple):
    """A fit of 30 steps: what it left, with the fingerprints of the teacher before it and of the
    system after it."""

    system: System
    teacher: nn.Module
    teacher_before: str
    trained: str
    events: list[dict[str, Any]]


@cache
def whole_run(case: SystemCase) -> Run:
    """The one fit that several tests look at."""
    events: list[dict[str, Any]] = []
    teacher = trained_teacher(case)
    before = fingerprint(teacher)
    system = train(case, teacher, RunLog(None, (events.append,)))
    return Run(system, teacher, before, fingerprint(system), events)


def test_every_public_system_is_listed() -> None:
    listed = {name for case in SYSTEMS.values() for name in case.covers}
    assert listed == set(congener.systems.__all__)


@CASES
def test_student_improves_in_30_steps(case: SystemCase) -> None:
    events = whole_run(case).events
    totals = [e["total"] for e in events if e["event"] == "step"]
    assert len(totals) == 30
    assert sum(totals[-5:]) < 0.7 * sum(totals[:5])
    figures = [e["metrics"][case.figure] for e in events if e["event"] == "evaluation"]
    task = case.task()
    batch = batch_of(task, 30, "test")
    before = task.loss(task.logits(task.call(case.student().eval(), batch)), batch).item()
    assert figures[-1] < 0.7 * before


@CASES
def test_teacher_is_bit_identical_afterwards(case: SystemCase) -> None:
    system, teacher, before, *_ = whole_run(case)
    assert fingerprint(teacher) == before
    system.train()
    system(batch_of(case.task()), Progress(0, 1, 0))[0].backward()
    assert fingerprint(teacher) == before
    assert not any(m.training for m in teacher.modules())


@CASES
def test_every_trainable_parameter_gets_a_gradient(case: SystemCase) -> None:
    task = case.task()
    system = case.build(task, case.student(), trained_teacher(case)).train()
    prepare(system, task, CONFIG)
    touched: set[str] = set()
    for step in range(3):
        total, _, _ = system(batch_of(task, 16), Progress(step, 3, 0))
        total.backward()
        touched |= {n for n, p in system.named_parameters() if p.grad is not None and p.grad.any()}
    # A bias before batch normalisation cancels; its gradient exists, and rounds to about zero.
    present = {n for n, p in system.named_parameters() if p.requires_grad and p.grad is not None}
    trainable = {n for n, p in system.named_parameters() if p.requires_grad}
    assert present == trainable
    assert {n for n in trainable if not n.endswith("bias")} <= touched


@CASES
def test_kept_answers_train_as_the_teacher_does(case: SystemCase, tmp_path: Path) -> None:
    teacher = trained_teacher(case)
    config = CONFIG.model_copy(update={"steps": 8, "batch_size": 25})  # none of few rows

    def trained(*, kept: bool) -> list[dict[str, Any]]:
        task = case.task()
        torch.manual_seed(0)
        system = case.build(task, case.student(), teacher)
        prepare(system, task, config)
        train = task.splits["train"]

        def ask(name: str, live: FrozenTeacher) -> CachedTeacher:
            store = TeacherStore.create(
                tmp_path / name, {}, fields_of(live, batch_of(task)),
                samples=size(train), views=1, versions={},
            )  # fmt: skip
            build_store(store, live, task, train, config, seed=0)
            return CachedTeacher(store, live.taps)

        if kept:
            exchange(system, ask)
            assert any(tmp_path.iterdir())
        events: list[dict[str, Any]] = []
        log = RunLog(None, (events.append,))
        fit(system, task, config, train=train, test=None, log=log)
        return [event["weighted"] for event in events if event["event"] == "step"]

    system = case.build(case.task(), case.student(), teacher)
    if system.teacher is None or system.needs_live_teacher():
        return
    assert trained(kept=True) == trained(kept=False)


@pytest.mark.slow
@CASES
def test_a_student_in_shards_is_the_whole_one(case: SystemCase, tmp_path: Path) -> None:
    def losses(rank: int) -> list[list[float]]:
        found = []
        for shard in ("none", "student"):
            task = case.task()
            torch.manual_seed(0)
            system = case.build(task, case.student(), case.teacher())
            config = CONFIG.model_copy(update={"steps": 4, "drop_last": True, "shard": shard})
            prepare(system, task, config)
            events: list[dict[str, Any]] = []
            data = {"train": task.splits["train"], "test": task.splits["test"]}
            if shard == "student" and system.needs_whole_weights():
                with pytest.raises(RecipeError, match="be cut into shards: it "):
                    fit(system, task, config, **data)
                return [[], []]
            fit(system, task, config, **data, log=RunLog(None, (events.append,)))
            found.append([e["total"] for e in events if e["event"] == "step"])
        return found

    for whole, cut in in_two_processes(tmp_path, losses):
        assert cut == pytest.approx(whole, rel=1e-3 if BackwardKD.__name__ in case.covers else 1e-6)


def test_a_system_says_why_its_teacher_must_be_live() -> None:
    live = set()
    for name, case in SYSTEMS.items():
        system = case.build(case.task(), case.student(), case.teacher())
        reason = system.needs_live_teacher()
        if reason:
            assert reason[0].islower()
            assert reason[-1] != "."
            live |= {name if type(system) is Distillation else type(system).__name__}
    assert live == LIVE


@CASES
def test_exported_student_loads_into_the_bare_architecture(
    case: SystemCase, tmp_path: Path
) -> None:
    system = whole_run(case).system
    save_model(system.student, str(tmp_path / "student.safetensors"))
    # What a system exports is the bare student, or says itself how it is built (SimKD's is not).
    other = case.build(case.task(), case.student(), trained_teacher(case)).student
    assert fingerprint(other) != fingerprint(system.student)
    load_weights(other, tmp_path / "student.safetensors")
    assert fingerprint(other) == fingerprint(system.student)
    assert type(other) is type(system.student)
    assert not any(m._forward_hooks for m in system.student.modules())
    assert deepcopy(system.student).state_dict().keys() == other.state_dict().keys()


class _Stop:
    """Interrupts a fit at a step, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "tick" and event["step"] == self.step:
            import signal

            signal.raise_signal(signal.SIGINT)


@CASES
@pytest.mark.parametrize("step", [7, 16])
def test_resumed_is_straight(case: SystemCase, step: int, tmp_path: Path) -> None:
    teacher = trained_teacher(case)
    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(Interrupted):
        train(case, teacher, RunLog(None, (_Stop(step),)), checkpoint=checkpoint)
    torch.manual_seed(12345)
    resumed = train(case, teacher, checkpoint=checkpoint)
    assert fingerprint(resumed) == whole_run(case).trained


def _train_here(rank: int, name: str) -> tuple[list[dict[str, float]], str, int]:
    events: list[dict[str, Any]] = []
    case = _without_norm(SYSTEMS[name])
    log = RunLog(None, (events.append,))
    system = train(case, trained_teacher(case), log, config=SHORT)
    steps = [{"total": e["total"]} | e["terms"] for e in events if e["event"] == "step"]
    return steps, fingerprint(system), events[0]["processes"]


def _without_norm(case: SystemCase) -> SystemCase:
    """Batch normalisation sees its own process' share; without it two processes are one."""
    return replace(case, student=partial(case.student, norm=False))


@pytest.mark.parametrize("name", SYSTEMS)
def test_two_processes_are_one(name: str, tmp_path: Path) -> None:
    one, _, _ = _train_here(0, name)
    (first, mine, processes), (second, theirs, _) = in_two_processes(tmp_path, _train_here, name)
    assert processes == 2
    assert mine == theirs
    assert all(math.isfinite(value) for step in first for value in step.values())
    if SYSTEMS[name].ranks == "run":
        assert SYSTEMS[name].why
        return
    for a, b, c in zip(one, first, second, strict=True):
        assert b == pytest.approx(a, rel=SYSTEMS[name].rtol, abs=1e-6)
        assert c == pytest.approx(a, rel=SYSTEMS[name].rtol, abs=1e-6)
