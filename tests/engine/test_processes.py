"""Several processes: what they measure, share and refuse together."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.systems.tiny import TinyTask, student_net, teacher_net
from tests.trajectory.processes import in_processes, in_two_processes
from torch import Tensor, nn
from torch.utils.data import Subset

from congener.engine import FitConfig, build_accelerator, company, evaluate, fit, on_first, prepare
from congener.errors import CheckpointError, CongenerError, DataError, RunError
from congener.losses import KDLoss, SPLoss
from congener.ops import collectives
from congener.runlog import RunLog
from congener.system import FitStage
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


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"lr": 0.5}, RunError, "differ in settings: '\"lr\": 0.05,' on process 0, '\"lr\": 0.5,'"),
        ({"samples": 52}, RunError, "differ in training samples: '53' on process 0, '52' on proc"),
        ({"seed": 1}, RunError, "differ in seed: '0' on process 0, '1' on process 1; start all"),
        ({"batch_size": 1, "both": True}, DataError, "A batch of 1 samples is too small for 2 pro"),
        ({"test": 1, "both": True}, DataError, "1 samples to evaluate on are too few for 2 pro"),
    ],
)
def test_what_they_cannot_do_together_is_said_by_all(
    changes: dict[str, Any], error: type[Exception], said: str, tmp_path: Path
) -> None:
    for outcome in in_two_processes(tmp_path, _refused, changes):
        assert type(outcome) is error
        assert said in str(outcome)


def _refused(rank: int, changes: dict[str, Any]) -> Any:
    everywhere = changes.pop("both", False)
    changes = {"samples": 53, "test": 30, "seed": 0} | (changes if rank or everywhere else {})
    task = TinyTask(count=changes.pop("samples"))
    test, seed = Subset(task.splits["test"], range(changes.pop("test"))), changes.pop("seed")
    config = FitConfig(**{"steps": 5, "batch_size": 16, "lr": 0.05, "device": "cpu"} | changes)
    system = Distillation(student_net(), None, [], task=task)
    try:
        fit(system, task, config, train=task.splits["train"], test=test, seed=seed)
    except CongenerError as error:
        return error
    return None


def test_threads_and_workers_may_differ(tmp_path: Path) -> None:
    assert in_two_processes(tmp_path, _refused, {"threads": 2}) == [None, None]


def test_a_checkpoint_of_other_epochs_is_refused(tmp_path: Path) -> None:
    """A last batch of one sample is left out by two processes."""
    path = tmp_path / "checkpoint.pt"
    assert _fit_on(0, 33, path) is None
    for said in in_two_processes(tmp_path, _fit_on, 33, path):
        assert "with 3 batches in an epoch, and here there are 2: resume with the same" in said
        assert "start no more processes than it has samples" in said
    path.unlink()
    assert in_two_processes(tmp_path, _fit_on, 34, path) == [None, None]
    assert _fit_on(0, 34, path) is None


def _fit_on(rank: int, samples: int, path: Path) -> str | None:
    task = TinyTask(count=samples)
    system = Distillation(student_net(), None, [], task=task)
    config = FitConfig(steps=2, batch_size=16, threads=1, device="cpu")
    try:
        fit(system, task, config, train=task.splits["train"], test=None, checkpoint=path)
    except CheckpointError as error:
        return str(error)
    return None


def test_only_the_first_process_reads_for_all(tmp_path: Path) -> None:
    assert in_two_processes(tmp_path, _reads) == [("read by 0", "broken on 0")] * 2


def _reads(rank: int) -> tuple[str, str]:
    build_accelerator(FitConfig(steps=1, device="cpu"))

    def broken() -> None:
        raise RunError(f"broken on {rank}")

    with pytest.raises(RunError) as error:
        on_first(broken)
    return on_first(lambda: f"read by {rank}"), str(error.value)


def test_patience_is_half_an_hour(tmp_path: Path) -> None:
    assert in_two_processes(tmp_path, _patience) == [1800, 1800]


def _patience(rank: int) -> float:
    build_accelerator(FitConfig(steps=1, device="cpu"))
    group: Any = dist.distributed_c10d._get_default_group()
    return float(group._get_backend(torch.device("cpu")).options._timeout.total_seconds())


def test_a_process_that_is_gone_is_told_in_a_sentence(tmp_path: Path) -> None:
    said = in_two_processes(tmp_path, _deserted)[0]
    assert said.startswith("Another process ended, or said nothing for 30 minutes (")
    assert "peer" in said
    assert said.endswith("start all of them again with --resume (in Python: resume=True).")
    assert "\n" not in said
    assert "/" not in said


def _deserted(rank: int) -> str:
    build_accelerator(FitConfig(steps=1, device="cpu"))
    if rank:
        return ""
    with pytest.raises(RunError) as error, company():
        dist.all_reduce(torch.ones(1))
    return str(error.value)


@pytest.mark.parametrize("bug", [RuntimeError("a bug"), RunError("a /gloo/ word"), ValueError()])
def test_other_errors_stay_what_they_are(bug: Exception) -> None:
    with pytest.raises(type(bug)) as error, company():
        raise bug
    assert error.value is bug


def test_rows_are_gathered_in_both_ways(tmp_path: Path) -> None:
    """By messages from each to each, and by the collective that GPUs have."""
    wanted = torch.arange(10.0).reshape(5, 2)
    for ways in in_processes(3, tmp_path, _gathered):
        assert all(torch.equal(found, wanted) for found in ways)


def _gathered(rank: int) -> tuple[Tensor, Tensor]:
    build_accelerator(FitConfig(steps=1, device="cpu"))
    sizes = [2, 0, 3]
    own = torch.split(torch.arange(10.0).reshape(5, 2), sizes)[rank]
    return collectives._exchange(own, sizes), collectives._all_gather(own, sizes)


def test_a_stage_leaves_all_processes_with_one_network(tmp_path: Path) -> None:
    """Batch normalisation sees another share on each; a stage is not evaluated, nor sharded."""
    first, second = in_two_processes(tmp_path, _stage)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert not torch.equal(first["hidden.1.running_mean"], torch.zeros(8))


def _stage(rank: int) -> dict[str, Tensor]:
    task = TinyTask()
    stage = FitStage("head", Distillation(student_net(), None, [], task=task), ())
    config = FitConfig(steps=3, batch_size=16, shard="both", threads=1, device="cpu")
    prepare(_Asks(stage), task, config)
    assert isinstance(stage.system.student.classifier.weight, nn.Parameter)
    return stage.system.student.state_dict()


class _Asks:
    """What has one stage and no teacher."""

    teacher = None

    def __init__(self, stage: FitStage) -> None:
        self.stage = stage

    def stages(self) -> list[FitStage]:
        return [self.stage]
