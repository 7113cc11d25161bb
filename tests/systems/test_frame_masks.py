"""A loss of frames gets the task's mask: in one batch, in pieces of it, and from kept answers."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.systems.tiny import TinyTask, batch_of
from torch import Tensor, nn
from torch.utils.data import Dataset

from congener.engine import FitConfig, build_store, fields_of, fit
from congener.engine.feed import evaluation_batches
from congener.losses import IUSPLoss, MultiLabelKDLoss, SPLoss, iusp_loss
from congener.runlog import RunLog
from congener.systems import Distillation
from congener.teachers import CachedTeacher, FrozenTeacher, TeacherStore
from congener.types import Batch, Progress, Term

FRAMES, BANDS, CLIPS = 12, 6, 21
NOW = Progress(0, 1, 0)


class Clips(Dataset[Any]):
    """Clips of 4 to 12 frames, filled up with noise that no network should hear."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.frames = torch.randn(CLIPS, FRAMES, BANDS, generator=generator, dtype=torch.float64)
        self.lengths = 4 + 4 * (torch.arange(CLIPS) % 3)

    def __len__(self) -> int:
        return CLIPS

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.frames[index], int(self.lengths[index]), index % 3


class ClipTask(TinyTask):
    """Frames of a feature count where they lie within the clip, at any resolution."""

    def __init__(self) -> None:
        self.splits = {"train": Clips(), "test": Clips()}
        self.asked: list[tuple[int, ...]] = []

    def collate(self, samples: Any) -> Batch:
        frames, lengths, labels = zip(*samples, strict=True)
        return {
            "frames": torch.stack(frames),
            "length": torch.tensor(lengths),
            "labels": torch.tensor(labels),
        }

    def call(self, model: nn.Module, batch: Batch) -> Any:
        return model(batch["frames"])

    def mask(self, batch: Batch, feature: Tensor) -> Tensor:
        self.asked.append(tuple(feature.shape))
        frames = feature.shape[-2]
        return torch.arange(frames) < batch["length"].unsqueeze(1) * frames / FRAMES


class States(nn.GRU):
    """The states alone."""

    def forward(self, frames: Tensor) -> Tensor:  # type: ignore[override]
        states: Tensor = super().forward(frames)[0]
        return states


class Last(nn.Module):
    def forward(self, states: Tensor) -> Tensor:
        return states[:, -1]


class Channels(nn.Module):
    """A map (batch, channels, frames / 2, bands / 2) of frames, and what the GRU reads of it."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 2, stride=2)

    def forward(self, frames: Tensor) -> Tensor:
        maps: Tensor = self.convolution(frames.unsqueeze(1)).relu()
        return maps


class Frames(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps.transpose(1, 2).flatten(2)


def student_net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        OrderedDict(states=States(BANDS, 4, batch_first=True), last=Last(), tags=nn.Linear(4, 3))
    ).double()


def teacher_net() -> nn.Module:
    """Half the frames, as channels of a map."""
    torch.manual_seed(2)
    return nn.Sequential(
        OrderedDict(
            maps=Channels(),
            frames=Frames(),
            states=States(12, 8, batch_first=True),
            last=Last(),
            tags=nn.Linear(8, 3),
        )
    ).double()


def terms() -> list[Term]:
    return [
        Term(IUSPLoss(average="frames"), 3.0, ("states", "states"), ("maps", "states")),
        Term(MultiLabelKDLoss(), 0.5),
        Term(SPLoss(), 10.0, "last", "last"),
    ]


def build(task: ClipTask) -> Distillation:
    return Distillation(student_net(), teacher_net(), terms(), task=task)


def test_a_loss_of_frames_gets_the_mask_and_the_others_none() -> None:
    task = ClipTask()
    system, batch = build(task), batch_of(task)
    assert system.teacher is not None
    student, teacher = system.observe(batch), system.teacher(batch)
    found = system(batch, NOW)[1]
    states = student.features["states"]
    assert task.asked == [tuple(states.shape)] * 2  # both pairs of IUSP; SP and KD never
    mask = task.mask(batch, states)
    pairs = [(states, teacher.features[path]) for path in ("maps", "states")]
    masked, whole = (
        torch.stack([iusp_loss(s, t, average="frames", mask=m) for s, t in pairs]).sum()
        for m in (mask, None)
    )
    torch.testing.assert_close(found["iusp"], masked)
    assert not torch.isclose(masked, whole, rtol=1e-3)


def test_what_lies_behind_a_clip_counts_nothing() -> None:
    """Networks that look back alone say the same of a clip, whatever follows it."""
    task = ClipTask()
    batch, other = batch_of(task), batch_of(task)
    behind = torch.arange(FRAMES) >= batch["length"].unsqueeze(1)
    other["frames"] = other["frames"].masked_fill(behind.unsqueeze(2), 9.0)
    system = build(task)
    found, expected = (system(each, NOW)[1]["iusp"] for each in (other, batch))
    torch.testing.assert_close(found, expected)


def test_a_task_without_masks_masks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClipTask, "mask", TinyTask.mask)
    task = ClipTask()
    system, batch = build(task), batch_of(task)
    assert system.teacher is not None
    states, teacher = system.observe(batch).features["states"], system.teacher(batch)
    expected = sum(
        iusp_loss(states, teacher.features[path], average="frames") for path in ("maps", "states")
    )
    torch.testing.assert_close(system(batch, NOW)[1]["iusp"], expected)


def trajectory(task: ClipTask, system: Distillation, **settings: Any) -> list[dict[str, float]]:
    """The losses of each step: batches of 8, the last of an epoch of 5."""
    config = FitConfig(
        epochs=3, batch_size=8, optimizer="sgd", lr=0.05, log_every=1, threads=1, device="cpu",
        **settings,
    )  # fmt: skip
    events: list[dict[str, Any]] = []
    train, test = task.splits["train"], task.splits["test"]
    fit(system, task, config, train=train, test=test, log=RunLog(None, (events.append,)))
    return [e["terms"] | {"total": e["total"]} for e in events if e["event"] == "step"]


@pytest.mark.parametrize("pieces", [2, 3])
def test_pieces_are_the_whole_batch(pieces: int) -> None:
    task = ClipTask()
    whole = trajectory(task, build(task))
    cut = trajectory(task, build(task), accumulate=pieces)
    assert len(whole) == len(cut) == 9
    assert whole[-1]["iusp"] < 0.999 * whole[0]["iusp"]
    for expected, found in zip(whole, cut, strict=True):
        assert found == pytest.approx(expected, rel=1e-9)


def test_kept_answers_are_the_teachers(tmp_path: Path) -> None:
    task = ClipTask()
    live, cached = build(task), build(task)
    assert isinstance(live.teacher, FrozenTeacher)
    taps = ["maps", "states", "last"]
    batch = next(
        evaluation_batches(task, task.splits["train"], batch_size=CLIPS, share=(0, 1), workers=0)
    )
    store = TeacherStore.create(
        tmp_path, {"teacher weights": "a"}, fields_of(live.teacher, batch), samples=CLIPS, views=1,
        versions={}, shard_bytes=10000,
    )  # fmt: skip
    config = FitConfig(epochs=1, batch_size=CLIPS, device="cpu")
    build_store(store, live.teacher, task, task.splits["train"], config, seed=0)
    cached.teacher = CachedTeacher(store, taps)
    expected, found = trajectory(task, live), trajectory(task, cached)
    assert cached.teacher.batches == 9
    for one, other in zip(expected, found, strict=True):
        assert other == pytest.approx(one, rel=1e-6)
