"""What is asked about each sample once: kept, gone on with, refused, and read again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tests.systems.tiny import TinyData, TinyTask, student_net, teacher_net
from tests.trajectory.processes import in_two_processes
from torch import Tensor, nn

from congener.engine import FitConfig, asking, prepare
from congener.engine.stages import check_stage, stage_path
from congener.errors import DataError, StaleCache
from congener.runlog import RunLog
from congener.system import AnswerStage
from congener.systems import Distillation
from congener.teachers import TeacherStore
from congener.types import Batch, Outputs

SAMPLES = 50
IDS = torch.tensor([49, 3, 3, 17])


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten samples to a file."""
    monkeypatch.setitem(TeacherStore.create.__func__.__kwdefaults__, "shard_bytes", 160)
    monkeypatch.setattr("congener.engine.answers.POLL", 0.01)


def settings(**changes: Any) -> FitConfig:
    given = {"steps": 4, "batch_size": 20, "threads": 1, "device": "cpu"} | changes
    return FitConfig(**given)


class Doubles:
    """Answers with twice the image, counts how often it is asked, and fails after some."""

    def __init__(self, lasts: int = 1000) -> None:
        self.lasts, self.asked = lasts, list[int]()

    def __call__(self, batch: Batch) -> Outputs:
        if len(self.asked) >= self.lasts:
            raise MemoryError
        self.asked.append(len(batch["index"]))
        return Outputs(2 * batch["image"] + batch.get("shift", 0))

    def to(self, _device: torch.device) -> "Doubles":
        return self


class Asking(Distillation):
    """A student alone, whose stage asks."""

    def __init__(self, task: TinyTask, ask: Any, **stage: Any) -> None:
        super().__init__(student_net(), None, [], task=task)
        self.stage = AnswerStage("twice", ask, self.keep, **stage)
        self.read: Callable[[Tensor], Tensor] | None = None

    def keep(self, read: Callable[[Tensor], Tensor]) -> None:
        self.read = read

    def stages(self) -> list[AnswerStage]:
        return [self.stage]


class Shaken(TinyTask):
    """Training sees other points than testing."""

    def prepare(self, batch: Batch, *, train: bool, seed: int, epoch: int) -> Batch:
        return batch | {"shift": torch.full_like(batch["image"], 100.0 * train)}


def ready(
    ask: Any, out: Path | None, *, task: TinyTask | None = None,
    config: FitConfig | None = None, log: RunLog | None = None, **stage: Any,
) -> Asking:  # fmt: skip
    task = task or Shaken(SAMPLES)
    system = Asking(task, ask, **stage)
    prepare(system, task, config or settings(), folder=out, log=log)
    return system


def wanted(ids: Tensor = IDS) -> Tensor:
    return 2 * TinyData(SAMPLES, 0).images[ids]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_what_is_read_is_what_was_said_of_each_sample_as_it_is(
    tmp_path: Path, dtype: Any, workers: int
) -> None:
    config = settings(workers=workers)
    held = ready(Doubles(), None, config=config)
    kept = ready(Doubles(), tmp_path, config=config, dtype=dtype)
    assert torch.equal(held.read(IDS), wanted())
    rounded = wanted().half().float() if dtype == "fp16" else wanted()
    assert torch.equal(kept.read(IDS), rounded)
    assert kept.read(IDS).dtype == torch.float32


def test_it_is_asked_once() -> None:
    ask = Doubles()
    system = ready(ask, None)
    assert ask.asked == [20, 20, 16]  # the last ten with some of them again
    system.read(IDS)
    assert len(ask.asked) == 3


def test_a_second_run_does_not_ask_again(tmp_path: Path) -> None:
    ready(Doubles(), tmp_path)
    again = ready(Doubles(lasts=0), tmp_path)
    assert torch.equal(again.read(IDS), wanted().half().float())
    (folder,) = tmp_path.iterdir()
    assert folder == stage_path(tmp_path, again.stage, again.task, settings())


def test_who_is_cut_off_goes_on(tmp_path: Path) -> None:
    first = Doubles(lasts=3)
    with pytest.raises(MemoryError):
        ready(first, tmp_path)
    (folder,) = tmp_path.iterdir()
    done = sorted((folder / "view-0").glob("[0-9]*.safetensors"))
    assert len(done) == 2  # beside the one that told the shape
    before = [path.stat().st_mtime_ns for path in done]
    second = Doubles()
    events: list[dict[str, Any]] = []
    system = ready(second, tmp_path, log=RunLog(None, (events.append,)))
    assert second.asked == [16, 16, 16]
    assert [path.stat().st_mtime_ns for path in done] == before
    assert torch.equal(system.read(torch.arange(SAMPLES)), wanted(torch.arange(SAMPLES)).half())
    assert {e["event"] for e in events} == {"cache_build", "caching", "cache_built"}


def test_small_answers_are_several_files_so_that_a_kill_loses_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All would fit into one."""
    monkeypatch.setitem(TeacherStore.create.__func__.__kwdefaults__, "shard_bytes", 1 << 20)
    monkeypatch.setattr(asking, "ROWS", 15)
    with pytest.raises(MemoryError):
        ready(Doubles(lasts=3), tmp_path)
    (folder,) = tmp_path.iterdir()
    names = ["0-14.safetensors", "15-29.safetensors"]  # beside what was asked for the shape
    assert sorted(p.name for p in (folder / "view-0").glob("[0-9]*.safetensors")) == names
    second = Doubles()
    system = ready(second, tmp_path)
    assert len(second.asked) == 1 + 1  # rows 30 to 44, and the last five
    everyone = torch.arange(SAMPLES)
    assert torch.equal(system.read(everyone), wanted(everyone).half().float())


# Something else


def trained(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(2, 2)


@pytest.mark.parametrize("change", ["depends", "key", "data", "precision", "dtype"])
def test_something_else_is_refused_in_a_folder_of_ones_own(tmp_path: Path, change: str) -> None:
    given: dict[str, Any] = {"depends": (trained(0),), "key": ("a", 1), "folder": tmp_path / "own"}
    ready(Doubles(), tmp_path / "stages", **given)
    assert not (tmp_path / "stages").exists()
    ready(Doubles(lasts=0), None, **given | {"depends": (trained(0),)})
    config = settings(precision="bf16") if change == "precision" else settings()
    task = Shaken(SAMPLES)
    if change == "data":
        task.splits["train"].images = task.splits["train"].images + 1
    other = {"depends": (trained(1),), "key": ("a", 2), "dtype": "fp32"}
    given |= {change: other[change]} if change in other else {}
    with pytest.raises(StaleCache) as caught:
        ready(Doubles(), None, task=task, config=config, **given)
    assert str(caught.value) == (
        f"{tmp_path / 'own'} holds 'twice' made with another teacher, other data or other "
        "settings; name another folder, or remove it and it will be made anew."
    )
    (tmp_path / "own").rename(tmp_path / "old")
    ready(Doubles(), None, task=task, config=config, **given)


def test_beside_other_stages_each_has_a_folder_of_its_own(tmp_path: Path) -> None:
    for key in ("a", "b"):
        ready(Doubles(), tmp_path, key=(key,))
    assert len(list(tmp_path.iterdir())) == 2


# Damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[-20] ^= 1
    path.write_bytes(bytes(whole))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (cut, r"is truncated: expected \d+ bytes, came \d+; remove that file and run this again: "),
        (flip, "is damaged: .* is not what was written; remove that file and run this again: only"),
        (Path.unlink, "is missing; run this again: it builds what is missing"),
    ],
)
def test_damage_is_told_with_the_way_out(tmp_path: Path, damage: Any, sentence: str) -> None:
    system = ready(Doubles(), tmp_path)
    (path,) = tmp_path.glob("*/view-0/40-49.safetensors")
    damage(path)
    assert torch.equal(system.read(IDS[1:]), wanted(IDS[1:]).half())  # of another file
    with pytest.raises(DataError, match=sentence) as caught:
        system.read(torch.arange(40, 50))
    assert "cache build" not in str(caught.value)
    path.unlink(missing_ok=True)
    again = Doubles()
    assert torch.equal(ready(again, tmp_path).read(IDS), wanted().half())
    assert again.asked == [16]


def test_a_damaged_manifest_is_told(tmp_path: Path) -> None:
    ready(Doubles(), tmp_path)
    (path,) = tmp_path.glob("*/manifest.json")
    cut(path)
    with pytest.raises(DataError, match=r"is damaged.* remove that file and run this again: what"):
        ready(Doubles(), tmp_path)
    path.unlink()
    again = Doubles()
    ready(again, tmp_path)
    assert again.asked == [16]  # the shape, and nothing that was there


def test_ids_that_are_no_places_are_told(tmp_path: Path) -> None:
    class Named(Shaken):
        def collate(self, samples: Any) -> Batch:
            batch = super().collate(samples)
            return batch | {"index": batch["labels"] + 70}

    for folder in (None, tmp_path):
        with pytest.raises(DataError, match=r"call themselves 70 to \d+; a store needs ids that "):
            ready(Doubles(), folder, task=Named(SAMPLES))


def test_answers_that_are_not_finite_are_told(tmp_path: Path) -> None:
    task = Shaken(SAMPLES)
    task.splits["train"].images[37, 2] = torch.inf
    with pytest.raises(DataError, match="answer of sample 37 in view 0 are not finite"):
        ready(Doubles(), tmp_path, task=task)


# Several processes


def _ready_here(rank: int, folder: Path) -> tuple[Tensor, int]:
    Accelerator(cpu=True)
    ask = Doubles()
    system = ready(ask, folder)
    return system.read(torch.arange(SAMPLES)), len(ask.asked)


def test_two_processes_build_one_store(tmp_path: Path) -> None:
    results = in_two_processes(tmp_path / "results", _ready_here, tmp_path / "kept")
    for found, _ in results:
        assert torch.equal(found, wanted(torch.arange(SAMPLES)).half().float())
    (folder,) = (tmp_path / "kept").iterdir()
    assert len(list((folder / "view-0").glob("[0-9]*.safetensors"))) == 5
    assert sum(asked for _, asked in results) <= 5 + 2  # each its own, and the shape


# Before anything is trained


def test_a_check_asks_about_a_batch_and_stands_in(tmp_path: Path) -> None:
    task, ask = Shaken(SAMPLES), Doubles()
    system = Asking(task, ask, folder=tmp_path / "own", depends=(teacher_net(),))
    batch = task.prepare(
        task.collate([task.splits["train"][k] for k in range(4)]), train=True, seed=0, epoch=0
    ) | {"index": torch.arange(4)}  # fmt: skip
    assert check_stage(system.stage, task, settings(), batch)
    assert ask.asked == [4]
    assert system.read(IDS).shape == (4, 6)
    assert not (tmp_path / "own").exists()
