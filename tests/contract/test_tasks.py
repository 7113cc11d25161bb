"""What every task pack must do; the table is in ``tasks_cases.py``."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from tests.contract.tasks_cases import TASKS, TaskCase
from tests.systems.tiny import batch_of
from tests.trajectory.processes import in_two_processes
from torch import Tensor, nn

from congener.assembly import tasks_by_name
from congener.engine import FitConfig, build_store, fields_of, fit, longest_answer
from congener.engine.feed import size
from congener.errors import Interrupted, RecipeError
from congener.runlog import RunLog
from congener.systems import Distillation
from congener.task import Task
from congener.teachers import CachedTeacher, FrozenTeacher, TeacherStore, fingerprint
from congener.types import Batch, Exhibit, Panel

CONFIG = FitConfig(
    steps=12, batch_size=20, checkpoint_every=5, evaluate_every=6, log_every=1,
    threads=1, device="cpu",
)  # fmt: skip
WITHOUT_CONTROL = ("ImageClassification", "LanguageModelling", "Detection")
CASES = pytest.mark.parametrize("case", TASKS.values(), ids=TASKS)


def rows_of(batch: Batch, rows: Any) -> Batch:
    count = len(batch["index"])
    return {
        name: value[rows] if isinstance(value, Tensor) and len(value) == count else value
        for name, value in batch.items()
    }


def network(case: TaskCase, task: Task, which: str) -> nn.Module:
    described = dict(case.student if which == "student" else case.teacher)
    torch.manual_seed(3)
    return task.build_model(described.pop("name"), **described)


def prepared(task: Task, split: str = "train", count: int = 12) -> Batch:
    return task.prepare(batch_of(task, count, split), train=False, seed=0, epoch=0)


def said(task: Task, net: nn.Module, batch: Batch) -> Tensor:
    with torch.no_grad():
        logits: Tensor = task.logits(task.call(net, batch))
    return logits


def by_sample(task: Task, batch: Batch, rows: Tensor) -> list[Tensor]:
    """What of the rows of the logits belongs to each sample: one, or one for each of its tokens."""
    mask = task.token_mask(batch)
    counts = [1] * len(batch["index"]) if mask is None else mask.sum(1).tolist()
    return list(torch.split(rows, counts))


def test_every_task_pack_is_listed() -> None:
    found = {name: build().__name__ for name, build in tasks_by_name().items()}
    assert found == {name: case.covers for name, case in TASKS.items()}


@CASES
def test_a_batch_has_the_reserved_keys_and_what_networks_see(case: TaskCase) -> None:
    task = case.build()
    assert {"train", "test"} <= task.splits.keys()
    for split in task.splits:
        batch = batch_of(task, 7, split)
        assert batch["index"].tolist() == list(range(7))
        ready = task.prepare(batch, train=False, seed=0, epoch=0)
        assert "labels" in batch
        assert {"labels", *case.inputs} <= ready.keys()
        assert all(len(ready[name]) == 7 for name in case.inputs)
    labels = batch_of(task, size(task.splits["train"]))["labels"]
    known = (labels != task.ignore_label).view(len(labels), -1).any(1)
    assert task.labelled is not None
    assert task.labelled.tolist() == known.nonzero().flatten().tolist()


@CASES
def test_what_a_sample_becomes_depends_on_nothing_but_itself(case: TaskCase) -> None:
    task = case.build()
    raw = batch_of(task, 12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))

    def views(batch: Batch, epoch: int = 1) -> dict[str, Tensor]:
        ready = task.prepare(batch, train=True, seed=5, epoch=epoch)
        return {name: ready[name] for name in case.inputs}

    whole = views(raw)
    for name, value in views(rows_of(raw, order)).items():
        assert torch.equal(value, whole[name][order])
    for name, value in views(rows_of(raw, slice(4, 9))).items():
        assert torch.equal(value, whole[name][4:9])
    other = views(raw, epoch=2)
    same = all(torch.equal(whole[name], other[name]) for name in case.inputs)
    assert same != bool(task.augments)


@CASES
def test_answers_follow_the_order_of_the_samples(case: TaskCase) -> None:
    task = case.build()
    batch, net = prepared(task), network(case, task, "student").eval()
    order = torch.arange(11, -1, -1)
    whole = by_sample(task, batch, said(task, net, batch))
    assert len(whole) == 12
    for rows in (order, torch.arange(5)):
        some = rows_of(batch, rows)
        expected = torch.cat([whole[place] for place in rows])
        torch.testing.assert_close(said(task, net, some), expected, rtol=1e-4, atol=1e-5)


@CASES
def test_there_is_a_target_for_each_row_of_the_logits(case: TaskCase) -> None:
    task = case.build()
    batch, net = prepared(task), network(case, task, "student").eval()
    targets, logits = task.targets(batch), said(task, net, batch)
    assert targets is not None
    assert len(targets) == len(logits)
    mask = task.token_mask(batch)
    if mask is not None:
        assert mask.dtype == torch.bool
        assert not mask[(batch["labels"] == task.ignore_label).all(1)].any()
        assert (targets >= 0).all()


def _loss(task: Task, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    leaf = logits.detach().clone().requires_grad_()
    value = task.loss(leaf, batch)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


@CASES
def test_samples_without_a_label_are_as_if_absent_in_the_loss(case: TaskCase) -> None:
    task = case.build()
    batch, net = prepared(task, "test"), network(case, task, "student").eval()
    blank, first = case.unlabelled(batch, slice(8, 12)), rows_of(batch, slice(0, 8))
    value, gradient = _loss(task, said(task, net, blank), blank)
    expected, theirs = _loss(task, said(task, net, first), first)
    assert value > 0
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient[: len(theirs)], theirs)
    assert not gradient[len(theirs) :].any()
    empty = case.unlabelled(batch, slice(0, 12))
    nothing, none = _loss(task, said(task, net, empty), empty)
    assert nothing == 0
    assert not none.any()


def _loss_of_a_share(rank: int, name: str) -> tuple[Tensor, Tensor]:
    PartialState(cpu=True)
    case = TASKS[name]
    task = case.build()
    batch, net = prepared(task), network(case, task, "student").eval()
    mine = slice(0, 8) if rank == 0 else slice(8, 12)
    share = rows_of(batch, mine)
    return _loss(task, said(task, net, share), share)


@pytest.mark.parametrize("name", TASKS)
def test_the_loss_is_that_of_the_global_batch(name: str, tmp_path: Path) -> None:
    case = TASKS[name]
    task = case.build()
    batch, net = prepared(task), network(case, task, "student").eval()
    value, gradient = _loss(task, said(task, net, batch), batch)
    first, second = in_two_processes(tmp_path, _loss_of_a_share, name)
    torch.testing.assert_close(first[0], value)
    torch.testing.assert_close(second[0], value)
    # A rank's gradient is that of the sum of both ranks' equal losses.
    torch.testing.assert_close(torch.cat([first[1], second[1]]) / 2, gradient)


def _figures(case: TaskCase, sizes: Sequence[int]) -> dict[str, float]:
    task = case.build()
    net = network(case, task, "student").eval()
    whole = prepared(task, "test", size(task.splits["test"]))
    figures = task.metrics(torch.device("cpu"))
    start = 0
    with torch.no_grad():
        for count in sizes:
            batch = rows_of(whole, slice(start, start + count))
            figures.update(task.respond(net, batch), batch)
            start += count
    return figures.compute()


def _figures_of_a_share(rank: int, name: str) -> dict[str, float]:
    PartialState(cpu=True)
    case = TASKS[name]
    task = case.build()
    net = network(case, task, "student").eval()
    whole = prepared(task, "test", size(task.splits["test"]))
    figures = task.metrics(torch.device("cpu"))
    for mine in ((slice(0, 9), slice(9, 13)), (slice(13, 20),))[rank]:
        batch = rows_of(whole, mine)
        with torch.no_grad():
            figures.update(task.respond(net, batch), batch)
    return figures.compute()


@pytest.mark.parametrize("name", TASKS)
def test_figures_do_not_depend_on_batches_or_processes(name: str, tmp_path: Path) -> None:
    case = TASKS[name]
    whole = _figures(case, [20])
    assert case.build().metric in whole
    assert all(math.isfinite(value) for value in whole.values())
    assert _figures(case, [1, 12, 7]) == pytest.approx(whole, rel=1e-5, abs=1e-6)
    for found in in_two_processes(tmp_path, _figures_of_a_share, name):
        assert found == pytest.approx(whole, rel=1e-5, abs=1e-6)


@CASES
def test_a_misspelt_network_is_met_with_the_nearest(case: TaskCase) -> None:
    with pytest.raises(
        RecipeError, match=f"{case.wrong!r}.*{case.meant or case.student['name']!r}"
    ):
        case.build().build_model(case.wrong)
    arguments = {k: v for k, v in case.student.items() if k != "name"}
    with pytest.raises(RecipeError, match="'widht'"):
        case.build().build_model(case.student["name"], **arguments, widht=3)


@CASES
def test_a_mask_fits_the_frames_of_a_feature(case: TaskCase) -> None:
    task = case.build()
    batch = prepared(task)
    mask = task.mask(batch, torch.zeros(12, 9, 4))
    if mask is not None:
        assert mask.shape == (12, 9)
        assert mask.dtype == torch.bool
        assert mask.any(1).all()
        maps = task.mask(batch, torch.zeros(12, 3, 5, 4))
        assert maps.shape == (12, 5) if "waveform" in case.inputs else maps is None


def train(case: TaskCase, log: RunLog | None = None, **options: Any) -> Distillation:
    task = case.build()
    teacher = network(case, task, "teacher")
    torch.manual_seed(0)
    system = Distillation(network(case, task, "student"), teacher, case.terms(), task=task)
    config = CONFIG.model_copy(update={"lr": case.lr, **options.pop("config", {})})
    data = {"train": task.splits["train"], "test": task.splits["test"]}
    fit(system, task, config, **data, log=log, **options)
    return system


def steps_of(events: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [{"total": e["total"]} | e["terms"] for e in events if e["event"] == "step"]


@CASES
def test_a_student_learns_and_is_measured(case: TaskCase) -> None:
    events: list[dict[str, Any]] = []
    train(case, RunLog(None, (events.append,)), config={"steps": 40, "evaluate_every": 20})
    totals = [step["total"] for step in steps_of(events)]
    assert sum(totals[-5:]) < 0.9 * sum(totals[:5])
    figures = [event["metrics"] for event in events if event["event"] == "evaluation"]
    assert len(figures) == 2
    assert all(math.isfinite(value) for each in figures for value in each.values())


@CASES
def test_resumed_is_straight(case: TaskCase, tmp_path: Path) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "tick" and event["step"] == 7:
            import signal

            signal.raise_signal(signal.SIGINT)

    straight = train(case)
    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(Interrupted):
        train(case, RunLog(None, (stop,)), checkpoint=checkpoint)
    torch.manual_seed(12345)
    assert fingerprint(train(case, checkpoint=checkpoint)) == fingerprint(straight)


def _train_here(rank: int, name: str) -> tuple[list[dict[str, float]], str]:
    events: list[dict[str, Any]] = []
    system = train(TASKS[name], RunLog(None, (events.append,)), config={"batch_size": 15})
    return steps_of(events), fingerprint(system)


@pytest.mark.parametrize("name", TASKS)
def test_two_processes_train_as_one(name: str, tmp_path: Path) -> None:
    one, _ = _train_here(0, name)
    (first, mine), (second, theirs) = in_two_processes(tmp_path, _train_here, name)
    assert mine == theirs
    for a, b, c in zip(one, first, second, strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-6)
        assert c == pytest.approx(a, rel=1e-4, abs=1e-6)


@CASES
def test_kept_answers_train_as_the_teacher_does(case: TaskCase, tmp_path: Path) -> None:
    def trained(*, kept: bool) -> list[dict[str, float]]:
        task = case.build()
        teacher = network(case, task, "teacher")
        torch.manual_seed(0)
        system = Distillation(network(case, task, "student"), teacher, case.terms(), task=task)
        config = CONFIG.model_copy(update={"lr": case.lr, "batch_size": 20, "views": 2})
        data = task.splits["train"]
        if kept:
            live = system.teacher
            assert isinstance(live, FrozenTeacher)
            sample = task.prepare(batch_of(task), train=True, seed=0, epoch=0)
            places = longest_answer(task, data, config, seed=0, views=2)
            store = TeacherStore.create(
                tmp_path / "store", {}, fields_of(live, sample, places=places),
                samples=size(data), views=2, versions={},
            )  # fmt: skip
            build_store(store, live, task, data, config, seed=0)
            system.teacher = CachedTeacher(store, live.taps, task=task)
        events: list[dict[str, Any]] = []
        fit(system, task, config, train=data, test=None, log=RunLog(None, (events.append,)))
        return steps_of(events)

    live, kept = trained(kept=False), trained(kept=True)
    for a, b in zip(live, kept, strict=True):
        assert b == pytest.approx(a, rel=1e-5, abs=1e-7)


@CASES
def test_exhibits_are_plain_records(case: TaskCase) -> None:
    task = case.build()
    networks = {"teacher": network(case, task, "teacher").eval(),
                "alone": network(case, task, "student").eval()}  # fmt: skip
    terms = case.terms()

    def last(side: str) -> str | None:
        paths = [getattr(term, side) for term in terms if getattr(term, side)]
        path = paths[0] if paths else None
        return path if path is None or isinstance(path, str) else path[-1]

    shown = task.exhibits(networks, {"teacher": last("teacher"), "alone": last("student")})
    for exhibit in shown:
        assert isinstance(exhibit, Exhibit)
        assert exhibit.title
        assert exhibit.text.endswith(".")
        for panel in (panel for row in exhibit.rows.values() for panel in row):
            assert isinstance(panel, Panel)
            if panel.picture is not None and panel.kind in ("image", "scene"):
                assert panel.picture.dtype == torch.uint8
                assert panel.picture.shape[2] == 3
            elif panel.picture is not None:
                assert panel.picture.ndim == 2
                assert panel.picture.isfinite().all()
        if exhibit.sound is not None:
            assert exhibit.sound[0].abs().max() <= 1
    assert case.covers == "ImageClassification" or shown


@CASES
def test_a_control_is_chosen_on_the_slice(case: TaskCase) -> None:
    task, held = case.build(), case.build()
    if case.covers in WITHOUT_CONTROL:
        assert task.control(held) is None
        return
    found = task.control(held)
    assert found is not None
    assert found["metric"] == task.metric
    assert 0 <= found["value"] <= 1
    assert found["classifier"] in found["chosen_on"]
