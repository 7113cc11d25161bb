"""What is measured by several processes is the network that the first one saves."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.systems.tiny import TinyTask, student_net, teacher_net
from tests.trajectory.processes import in_two_processes
from torch import Tensor

from congener.engine import FitConfig, build_accelerator, evaluate, fit
from congener.losses import KDLoss, SPLoss
from congener.runlog import RunLog
from congener.systems import Distillation
from congener.types import Term


def _train(rank: int, accumulate: int) -> tuple[dict[str, float], dict[str, Tensor], list[Any]]:
    task = TinyTask()
    system = Distillation(student_net(), None, [], task=task)
    config = FitConfig(
        steps=5,
        batch_size=16,
        lr=0.05,
        accumulate=accumulate,
        drop_last=True,
        threads=1,
        device="cpu",
    )
    events: list[Any] = []
    log = RunLog(None, (events.append,))
    result = fit(
        system, task, config, train=task.splits["train"], test=task.splits["test"], log=log
    )
    return result.metrics, system.student.state_dict(), events


@pytest.mark.parametrize("accumulate", [1, 2])
def test_figures_are_those_of_the_saved_statistics(tmp_path: Path, accumulate: int) -> None:
    """Each process' batch normalisation sees its own share, so their statistics part ways."""
    (figures, saved, _), (others, _, _) = in_two_processes(tmp_path, _train, accumulate)
    task, student = TinyTask(), student_net()
    student.load_state_dict(saved)
    accelerator = build_accelerator(FitConfig(steps=1, device="cpu"))
    wanted = evaluate(student, task, task.splits["test"], accelerator, batch_size=64)
    assert figures == pytest.approx(wanted, rel=1e-5)
    assert others == figures


def test_auto_is_the_cpu_where_nothing_is_faster(tmp_path: Path) -> None:
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    worlds = in_two_processes(tmp_path, _world)
    assert worlds == [(2, "cpu"), (2, "cpu")]


def _world(rank: int) -> tuple[int, str]:
    accelerator = build_accelerator(FitConfig(steps=1, device="auto"))
    return accelerator.num_processes, accelerator.device.type


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_balance_is_that_of_the_whole_batch(tmp_path: Path, accumulate: int) -> None:
    two, others = in_two_processes(tmp_path, _balance, accumulate)
    one = _balance(0, accumulate)
    assert set(one) == {"task", "kd", "sp"}
    for name, figures in one.items():
        assert two[name] == pytest.approx(others[name], rel=1e-12, nan_ok=True)
        assert two[name] == pytest.approx(figures, rel=1e-5, nan_ok=True), name


def _balance(rank: int, accumulate: int) -> dict[str, dict[str, float]]:
    task, events = TinyTask(), []
    terms = [Term(KDLoss()), Term(SPLoss(), 10.0, "hidden", "hidden")]
    system = Distillation(student_net(norm=False), teacher_net(), terms, task=task)
    config = FitConfig(steps=1, batch_size=16, accumulate=accumulate, threads=1, device="cpu")
    log = RunLog(None, (events.append,))
    fit(system, task, config, train=task.splits["train"], test=task.splits["test"], log=log)
    (found,) = [event["terms"] for event in events if event["event"] == "balance"]
    return {
        name: {key: math.nan if value is None else value for key, value in figures.items()}
        for name, figures in found.items()
    }
