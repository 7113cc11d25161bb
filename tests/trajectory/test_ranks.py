"""Any number of processes trains as one does, goes on from any other, and shards or not.

Drifts are relative to the term of the straight run of one process: the largest of any step, and the
mean with its sign, which a bias would show long before the largest does.
"""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from tests.systems.tiny import TinyTask, student_net, teacher_net
from tests.trajectory.processes import in_processes
from torch import Tensor, nn

from congener.engine import FitConfig, fit, shards
from congener.losses import CCKDLoss, DISTLoss, KDLoss, SPLoss
from congener.runlog import RunLog
from congener.system import System
from congener.systems import Distillation
from congener.types import Term

# Not one share of any batch is as large as the others': 18, 18 and 17 samples of 53.
SETTINGS: dict[str, Any] = {
    "epochs": 8, "batch_size": 18, "optimizer": "sgd", "lr": 0.05, "clip": 5.0, "log_every": 1,
    "evaluate_every": 3, "checkpoint_every": 10, "balance_every": 7, "threads": 1, "device": "cpu",
}  # fmt: skip
CUT = 13  # the step at which a run is cut off, three after its checkpoint

Steps = list[dict[str, float]]
SLOW = pytest.mark.slow


class Cut(Exception):
    """What ends a run on all of its processes."""


def system_of(task: TinyTask, dtype: torch.dtype, dropout: float) -> System:
    """SP, CCKD, DIST and KD; batch normalisation would see another share in each process."""
    terms = [
        Term(SPLoss(), 50.0, "hidden", "hidden"), Term(CCKDLoss(), 1.0, "hidden", "hidden"),
        Term(DISTLoss(temperature=2.0), 0.5), Term(KDLoss(temperature=4), 0.9),
    ]  # fmt: skip
    student = student_net(norm=False, dropout=dropout).to(dtype)
    return Distillation(student, teacher_net().to(dtype), terms, task=task, task_weight=0.1)


def train(
    rank: int, changes: dict[str, Any], checkpoint: Path | None = None, cut: str = "", *,
    dtype: torch.dtype = torch.float64, dropout: float = 0.0,
) -> tuple[Steps, dict[str, Tensor], dict[str, float]]:  # fmt: skip
    """The losses of each step, the student in the end, and its figures.

    A run is ``cut`` off at one step: ``"all"`` its processes, or the ``"last"`` by kill -9.
    """
    task = TinyTask(count=53)
    for split in task.splits.values():
        split.images = split.images.to(dtype)
    system = system_of(task, dtype, dropout)
    steps: Steps = []

    def observe(event: dict[str, Any]) -> None:
        if event["event"] != "step":
            return
        steps.append({"step": event["step"], "total": event["total"]} | event["terms"])
        if event["step"] == CUT and cut == "all":
            raise Cut
        if event["step"] == CUT and cut == "last" and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    result = fit(
        system, task, FitConfig(**SETTINGS | changes), seed=5, log=RunLog(None, (observe,)),
        train=task.splits["train"], test=task.splits["test"], checkpoint=checkpoint,
    )  # fmt: skip
    assert type(system.student) is nn.Sequential
    return steps, system.student.state_dict(), result.metrics


def start(
    processes: int, folder: Path, changes: dict[str, Any] | None = None,
    checkpoint: Path | None = None, cut: str = "", **options: Any,
) -> tuple[Steps, dict[str, Tensor], dict[str, float]]:  # fmt: skip
    """``train`` in so many processes; what the first one has, which is what all have."""
    arguments = (changes or {}, checkpoint, cut, options)
    first, *others = in_processes(processes, folder, _train, *arguments)
    for steps, student, figures in others:
        assert figures == first[2]
        assert steps == first[0]
        for name, value in first[1].items():
            assert torch.equal(value, student[name]), name
    return first  # type: ignore[no-any-return]


def _train(rank: int, *arguments: Any) -> Any:
    *known, options = arguments
    return train(rank, *known, **options)


def drifts(straight: Steps, found: Steps) -> dict[str, tuple[float, float]]:
    """For each term, the largest relative drift and the mean one with its sign."""
    last = straight[-len(found) :]
    assert [step["step"] for step in last] == [step["step"] for step in found]
    result = {}
    for name in straight[0].keys() - {"step"}:
        off = [(b[name] - a[name]) / abs(a[name]) for a, b in zip(last, found, strict=True)]
        result[name] = (max(map(abs, off)), sum(off) / len(off))
    return result


def assert_same(straight: Any, found: Any, largest: float, mean: float) -> None:
    for name, (most, signed) in drifts(straight[0], found[0]).items():
        assert most <= largest, f"{name}: largest drift {most}"
        assert abs(signed) <= mean, f"{name}: mean drift {signed}"
    for name, value in straight[1].items():
        torch.testing.assert_close(found[1][name], value, rtol=10 * largest, atol=largest)
    assert found[2] == pytest.approx(straight[2], rel=10 * largest)


@pytest.fixture(scope="module")
def alone() -> Any:
    """One process, float64."""
    run = train(0, {})
    assert len(run[0]) == 24
    assert run[0][-1]["total"] < 0.8 * run[0][0]["total"]
    return run


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_train_as_one(processes: int, alone: Any, tmp_path: Path) -> None:
    found = start(processes, tmp_path)
    assert found[0] != alone[0]  # they do compute differently
    assert_same(alone, found, largest=1e-12, mean=1e-13)


def test_processes_train_as_one_in_single_precision(tmp_path: Path) -> None:
    straight = train(0, {}, dtype=torch.float32)
    found = start(2, tmp_path, dtype=torch.float32)
    assert_same(straight, found, largest=1e-4, mean=2e-5)


@pytest.mark.parametrize(
    ("processes", "pieces"),
    [
        (1, 8), (2, 4),
        pytest.param(8, 1, marks=SLOW), pytest.param(4, 2, marks=SLOW),
    ],
)  # fmt: skip
def test_pieces_and_processes_are_interchangeable(
    processes: int, pieces: int, alone: Any, tmp_path: Path
) -> None:
    found = start(processes, tmp_path, {"accumulate": pieces})
    assert_same(alone, found, largest=1e-12, mean=1e-13)


@pytest.mark.parametrize(
    ("before", "after"),
    [(4, 1), (2, 4), pytest.param(4, 2, marks=SLOW), pytest.param(1, 2, marks=SLOW)],
)
def test_a_checkpoint_goes_on_in_any_number_of_processes(
    before: int, after: int, alone: Any, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pt"
    cut_off(before, tmp_path, {}, path)
    found = start(after, tmp_path, checkpoint=path)
    assert [step["step"] for step in found[0]] == list(range(10, 24))
    assert_same(alone, found, largest=1e-12, mean=1e-13)


def cut_off(processes: int, folder: Path, changes: dict[str, Any], path: Path, **more: Any) -> None:
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match="Cut"):
        start(processes, folder, changes, path, "all", **more)
    assert path.exists()


def test_a_checkpoint_goes_on_with_its_random_states(tmp_path: Path) -> None:
    """As many processes as before: bit for bit, dropout included. More: the same each time."""
    path = tmp_path / "checkpoint.pt"
    straight = start(2, tmp_path, dropout=0.3)
    cut_off(2, tmp_path, {}, path, dropout=0.3)
    kept = path.read_bytes()
    found = {}
    for run, processes in {"as before": 2, "more": 3, "more again": 3}.items():
        path.write_bytes(kept)
        found[run] = start(processes, tmp_path, checkpoint=path, dropout=0.3)[0]
    assert found["as before"] == straight[0][10:]
    assert found["more"] == found["more again"] != straight[0][10:]


def test_a_process_that_is_killed_costs_the_steps_since_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    straight = start(2, tmp_path, dropout=0.3)
    with pytest.raises(torch.multiprocessing.ProcessExitedException, match="SIGKILL"):
        start(2, tmp_path, {}, path, "last", dropout=0.3)
    found = start(2, tmp_path, checkpoint=path, dropout=0.3)
    assert found[0] == straight[0][10:]
    assert all(torch.equal(value, found[1][name]) for name, value in straight[1].items())


@pytest.mark.parametrize(
    "shard", ["both", pytest.param("student", marks=SLOW), pytest.param("teacher", marks=SLOW)]
)
def test_shards_train_as_whole_networks(
    shard: str, alone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "UNIT", 0)
    found = start(2, tmp_path, {"shard": shard})
    assert_same(alone, found, largest=1e-12, mean=1e-13)


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("sgd", marks=SLOW)])
def test_a_checkpoint_of_shards_is_one_of_whole_networks(optimizer: str, tmp_path: Path) -> None:
    """From shards to none, and from none to shards of another number of processes."""
    settings = {"optimizer": optimizer, "lr": 0.02}
    straight = train(0, settings)
    sharded = settings | {"shard": "both"}
    for before, after in [((2, sharded), (1, settings)), ((1, settings), (3, sharded))]:
        path = tmp_path / "checkpoint.pt"
        cut_off(before[0], tmp_path, before[1], path)
        state = torch.load(path, weights_only=True)
        assert state["system"]["student.hidden.0.weight"].shape == (8, 6)
        found = start(after[0], tmp_path, after[1], path)
        assert_same(straight, found, largest=1e-12, mean=1e-13)
        path.unlink()
