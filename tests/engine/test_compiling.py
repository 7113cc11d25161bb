"""Compiled training: the same student, wherever it is looked at."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.contract.systems_cases import SYSTEMS, SystemCase
from tests.engine.test_loop import config, train
from tests.systems.tiny import TinyTask, student_net, teacher_net
from torch import Tensor, nn

import congener.engine.compiling
from congener.engine import FitConfig, fit, prepare
from congener.losses import KDLoss, SPLoss
from congener.runlog import RunLog
from congener.systems import Distillation
from congener.teachers import fingerprint
from congener.types import Term

Graphs = list[int]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    """A backend that runs what was traced as it is, so that nothing may round otherwise."""
    found: Graphs = []

    def backend(graph: torch.fx.GraphModule, _inputs: Any) -> Callable[..., Any]:
        found.append(len(graph.graph.nodes))
        return graph.forward

    monkeypatch.setattr(congener.engine.compiling, "OPTIONS", {"backend": backend})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, while it compiles
        yield found


def system(**options: Any) -> Distillation:
    terms = [Term(KDLoss(), 0.5), Term(SPLoss(), 2.0, "hidden", "hidden")]
    return Distillation(student_net(**options), teacher_net(), terms, task=TinyTask())


def fitted(build: Distillation, settings: FitConfig, **options: Any) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    train(build, settings, RunLog(None, (events.append,)), **options)
    return [{k: v for k, v in e.items() if k not in ("time", "seconds")} for e in events]


def named(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == name]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulate": 3, "drop_last": True},
        {"precision": "bf16"},
        {"drop_last": True},
        {"batch_size": 50},
    ],
    ids=str,
)
def test_a_traced_fit_is_the_plain_fit_bit_for_bit(graphs: Graphs, changes: Any) -> None:
    """Dropout's draws and BatchNorm's statistics show that the trial left no trace."""
    common = {"steps": 20, "log_every": 1, "evaluate_every": 6, "balance_every": 0} | changes
    ends = []
    for compiled in (False, True):
        build = system(dropout=0.4)
        events = fitted(build, config(compile=compiled, **common))
        state = torch.get_rng_state()
        told = named(events, "compiled")
        assert len(told) == compiled
        assert all(event["difference"] == 0.0 for event in told)
        kept = [event for event in events if event["event"] != "compiled"]
        ends.append((fingerprint(build), kept, state.tolist()))
    assert ends[0] == ends[1]
    assert graphs


def test_a_fit_compiles_for_two_sizes_and_no_more(graphs: Graphs) -> None:
    """50 samples in batches of 8: a ragged batch in every epoch."""
    fitted(system(), config(steps=4, compile=True))
    few = len(graphs)
    assert few == 2
    fitted(system(), config(steps=40, compile=True, evaluate_every=5))
    assert len(graphs) == 2 * few


def test_the_student_is_left_as_it_was(graphs: Graphs) -> None:
    build = system()
    names = list(build.state_dict())
    during: list[Any] = []
    network = build.student

    def look(event: dict[str, Any]) -> None:
        if event["event"] == "tick":
            during.append((network._compiled_call_impl is None, list(build.state_dict()) == names))

    train(build, config(compile=True), RunLog(None, (look,)))
    assert during == [(False, True)] * 12
    assert network._compiled_call_impl is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in build.modules())
    assert graphs


def test_evaluation_runs_as_it_is_written(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = congener.engine.loop.evaluate
    stances: list[bool] = []

    def evaluate(model: nn.Module, *arguments: Any, **options: Any) -> Any:
        before = len(graphs)
        figures = plain(model, *arguments, **options)
        stances.append(len(graphs) == before)
        return figures

    monkeypatch.setattr(congener.engine.loop, "evaluate", evaluate)
    fitted(system(), config(compile=True, evaluate_every=3))
    assert stances == [True] * 4


def test_what_cannot_be_compiled_is_trained_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(*_: Any) -> Any:
        raise RuntimeError("no compiler found\nand a long trace")

    monkeypatch.setattr(congener.engine.compiling, "OPTIONS", {"backend": backend})
    ends = []
    for compiled in (False, True):
        build = system(dropout=0.4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            events = fitted(build, config(compile=compiled, evaluate_every=5))
        ends.append((fingerprint(build), [e for e in events if e["event"] != "not_compiled"]))
    assert ends[0] == ends[1]
    (told,) = named(events, "not_compiled")
    assert told["fit"] == "fit"
    assert "no compiler found" in told["reason"]
    assert "\n" not in told["reason"]
    assert build.student._compiled_call_impl is None


class Broken(nn.Module):
    """Compiled in two pieces; the statistics of the first have moved when the second fails."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        torch._dynamo.graph_break()
        result: Tensor = self.last(x).relu()
        return result


def test_a_compiler_that_fails_midway_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, _inputs: Any) -> Callable[..., Any]:
        compiled.append(1)
        if len(compiled) == 2:
            raise RuntimeError("cannot lower this")
        return graph.forward

    monkeypatch.setattr(congener.engine.compiling, "OPTIONS", {"backend": backend})
    ends = []
    for asked in (False, True):
        build = Distillation(Broken(), None, [], task=TinyTask())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            events = fitted(build, config(compile=asked, steps=3))
        ends.append(fingerprint(build))
    assert ends[0] == ends[1]
    assert named(events, "not_compiled")


def test_a_fit_that_goes_on_is_the_straight_one_and_tells_it_once(
    graphs: Graphs, tmp_path: Path
) -> None:
    settings = config(compile=True, steps=12, checkpoint_every=5)
    straight = system(dropout=0.4)
    train(straight, settings, checkpoint=tmp_path / "straight.pt")

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "tick" and event["step"] == 8:
            raise RuntimeError("the power went")

    path = tmp_path / "stopped.pt"
    with pytest.raises(RuntimeError, match="the power went"):
        train(system(dropout=0.4), settings, RunLog(tmp_path, (stop,)), checkpoint=path)
    resumed = system(dropout=0.4)
    train(resumed, settings, RunLog(tmp_path), checkpoint=path)
    assert fingerprint(resumed) == fingerprint(straight)
    assert (tmp_path / "events.jsonl").read_text().count('"compiled"') == 1
    before = len(graphs)
    train(system(), settings, RunLog(tmp_path), checkpoint=path)  # which is done
    assert len(graphs) == before


@pytest.mark.slow
@pytest.mark.parametrize("case", SYSTEMS.values(), ids=SYSTEMS)
def test_every_system_trains_traced_as_it_does_plain(graphs: Graphs, case: SystemCase) -> None:
    ends = []
    for compiled in (False, True):
        task, events = case.task(), []
        torch.manual_seed(0)
        build = case.build(task, case.student(), case.teacher())
        settings = config(steps=8, batch_size=16, balance_every=0, log_every=1, compile=compiled)
        prepare(build, task, settings)
        data = {"train": task.splits["train"], "test": task.splits["test"]}
        fit(build, task, settings, **data, log=RunLog(None, (events.append,)))
        assert bool(named(events, "compiled")) == compiled
        steps = [(e["total"], e["terms"]) for e in named(events, "step")]
        ends.append((fingerprint(build), steps))
    assert ends[0] == ends[1]
    assert graphs
