"""A loss that is not finite never reaches the weights, read at once or later."""

import math
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.engine.test_loop import Fault, alone, config, train
from tests.systems.tiny import TinyTask, student_net, teacher_net
from torch import nn

import congener.engine.guard
import congener.engine.loop
from congener.engine import FitConfig
from congener.engine.feed import epoch_batches, in_training
from congener.engine.guard import Guard, may_defer
from congener.engine.held import held
from congener.errors import NonFiniteLossError
from congener.losses import ATLoss, KDLoss
from congener.runlog import RunLog
from congener.systems import Distillation
from congener.tasks.image_classification import ArrayDataset, ImageClassification, Splits
from congener.teachers import fingerprint
from congener.types import Progress, Term


def faulty(call: int, value: float = math.nan) -> Distillation:
    terms = [Term(Fault(call, value), 0.1)]
    return Distillation(student_net(norm=False), teacher_net(), terms, task=TinyTask())


def settings(**changes: Any) -> FitConfig:
    return config(**{"fused": True, "schedule": "constant", "balance_every": 0} | changes)


@pytest.fixture
def _deferred(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does: torch's fused kernels on the CPU read ``found_inf``, too."""
    monkeypatch.setattr(congener.engine.loop, "may_defer", lambda *_: True)


@pytest.mark.usefixtures("_deferred")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("call", [0, 12, 14])
def test_weights_are_left_as_they_were_before_the_bad_step(
    optimizer: str, value: float, call: int
) -> None:
    """Steps 12 to 19 are read together at 20, after some good ones."""
    seen: list[dict[str, Any]] = []
    changed, log = (
        settings(optimizer=optimizer, steps=30, log_every=20),
        RunLog(None, (seen.append,)),
    )
    system = faulty(call, value)
    with pytest.raises(NonFiniteLossError) as error:
        train(system, changed, log, name="sp/0")
    assert str(error.value).startswith(
        f"The loss term 'fault' became {value} at step {call} of 'sp/0'; the weights were left as "
        "they were before it."
    )
    ticks = [event["step"] for event in seen if event["event"] == "tick"]
    assert (ticks or [0])[-1] == (0 if call == 0 else 20)  # it was told at the next reading
    wanted = faulty(99)
    if call:
        train(wanted, settings(optimizer=optimizer, steps=call))
    assert fingerprint(system.student) == fingerprint(wanted.student)


@pytest.mark.usefixtures("_deferred")
def test_told_at_the_end_and_before_a_checkpoint(tmp_path: Any) -> None:
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(NonFiniteLossError, match="at step 13 "):
        train(faulty(13), settings(steps=15, checkpoint_every=0), checkpoint=path)
    with pytest.raises(NonFiniteLossError, match="at step 13 "):
        train(faulty(13), settings(steps=40, checkpoint_every=14), checkpoint=path)
    assert not path.exists()
    with pytest.raises(NonFiniteLossError, match="at step 13 "):
        train(faulty(13), settings(steps=40, evaluate_every=14))


@pytest.mark.usefixtures("_deferred")
def test_told_after_so_many_steps_whatever_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(congener.engine.guard, "UNREAD", 4)
    seen: list[dict[str, Any]] = []
    with pytest.raises(NonFiniteLossError, match="at step 11 "):
        train(faulty(11), settings(steps=40, log_every=40), RunLog(None, (seen.append,)))
    assert [event["step"] for event in seen if event["event"] == "tick"][-1] < 15


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_deferred_fit_is_the_same_fit(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    for deferred in (False, True):
        monkeypatch.setattr(congener.engine.loop, "may_defer", lambda *_, now=deferred: now)
        events: list[dict[str, Any]] = []
        system = alone(dropout=0.3)
        changed = settings(optimizer=optimizer, steps=25, log_every=7, evaluate_every=9, clip=0.5)
        train(system, changed, RunLog(None, (events.append,)))
        timeless = [
            {k: v for k, v in event.items() if k not in ("time", "seconds")} for event in events
        ]
        ends.append((fingerprint(system), timeless))
    assert ends[0] == ends[1]


def test_no_part_of_a_step_reads_a_number_from_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device ``meta`` there are no numbers, and whoever reads one fails."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which meta has not
    meta = torch.device("meta")
    images = torch.randint(0, 256, (24, 3, 8, 8), dtype=torch.uint8)
    data = ArrayDataset(images, torch.arange(24) % 3)
    splits = Splits(data, data, tuple("abc"), (0.5,) * 3, (0.2,) * 3, (3, 8, 8))
    task = ImageClassification(splits, augment="crop_flip")
    nets = [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
        for _ in range(2)
    ]
    system = Distillation(
        nets[0], nets[1], [Term(KDLoss()), Term(ATLoss(), 1, "0", "0")], task=task
    )
    system.to(meta)
    assert system.teacher is not None
    system.teacher.to(meta)
    optimizer, fused = (torch.optim.SGD(system.parameters(), 0.1) for _ in range(2))
    guard = Guard(fused, "fit", deferred=True)
    found = held(data)
    assert found is not None
    batches = epoch_batches(
        task,
        found.to(meta),
        batch_size=8,
        seed=0,
        epoch=0,
        first=0,
        last=3,
        share=(0, 1),
        workers=0,
    )
    for step, raw in enumerate(batches):
        batch = in_training(task, raw, settings(), meta, seed=0, view=0)
        total, terms, _ = system(batch, Progress(step, 3, 0))
        total.backward()
        guard.see(step, {"total": total, **terms})
        optimizer.step()
    with pytest.raises((NotImplementedError, RuntimeError)):
        guard.read()  # this is the one that reads
    with pytest.raises((NotImplementedError, RuntimeError)):
        Guard(optimizer, "fit", deferred=False).see(0, {"total": total})


@pytest.mark.parametrize(
    ("kind", "changes", "may"),
    [
        ("cuda", {"fused": True}, True),
        ("cuda", {"fused": False}, False),
        ("cuda", {"fused": True, "shard": "teacher"}, False),
        ("cpu", {"fused": True}, False),
        ("mps", {"fused": True}, False),
    ],
)
def test_only_a_gpu_with_a_fused_optimiser_defers(
    kind: str, changes: dict[str, Any], may: bool
) -> None:
    machine: Any = SimpleNamespace(device=torch.device(kind), scaler=None)
    assert may_defer(config(**changes), machine) is may
    machine.scaler = object()  # it has a verdict of its own
    assert not may_defer(config(**changes), machine)
