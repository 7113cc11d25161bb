"""A store is built of what a training step would have asked."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.systems.tiny import FEATURES, TinyData, TinyTask, batch_of, teacher_net
from tests.trajectory.processes import in_two_processes
from torch import Tensor, nn

from congener.engine import FitConfig, answers, build_store, fields_of
from congener.engine.feed import epoch_batches, in_training
from congener.errors import DataError, Interrupted, RecipeError, RunError
from congener.runlog import RunLog
from congener.teachers import CachedTeacher, FrozenTeacher, TeacherStore
from congener.types import Batch

CPU = torch.device("cpu")
SAMPLES = 50


def settings(**changes: Any) -> FitConfig:
    return FitConfig(**{"epochs": 1, "batch_size": 20, "device": "cpu", "views": 3} | changes)


class Jittered(TinyData):
    """Draws from every generator that a transform may draw from."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = super().__getitem__(index)
        drawn = torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002
        return image + float(drawn), label


class JitteredTask(TinyTask):
    """Random transforms when read, and an augmentation when prepared."""

    def __init__(self) -> None:
        self.splits = {"train": Jittered(SAMPLES, 0), "test": TinyData(30, 1)}

    def prepare(self, batch: Batch, *, train: bool, seed: int, epoch: int) -> Batch:
        return batch | {"image": batch["image"] * (1.5 if train else 1) + 0.1 * epoch + 0.01 * seed}


def begin(
    folder: Path, teacher: FrozenTeacher, task: TinyTask, *, views: int = 3, **options: Any
) -> TeacherStore:
    fields = fields_of(teacher, batch_of(task), **options)
    return TeacherStore.create(
        folder, {"teacher weights": "a"}, fields, samples=SAMPLES, views=views, versions={},
        shard_bytes=300,
    )  # fmt: skip


def steps(task: TinyTask, config: FitConfig, *, seed: int = 7, epochs: int = 4) -> list[Batch]:
    found = []
    for epoch in range(epochs):
        view = config.view(epoch)
        raws = epoch_batches(
            task, task.splits["train"], batch_size=config.batch_size, seed=seed, epoch=epoch,
            view=view, first=0, last=2, share=(0, 1), workers=0,
        )  # fmt: skip
        found += [in_training(task, raw, config, CPU, seed=seed, view=view) for raw in raws]
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_training_step_finds_what_a_live_teacher_would_say(tmp_path, precision, workers) -> None:
    task, config = JitteredTask(), settings(precision=precision, workers=workers)
    teacher = FrozenTeacher(teacher_net(), task, ["hidden"])
    store = begin(tmp_path, teacher, task, config=config)
    assert store.fields["logits"].returns == ("float32" if precision == "fp32" else "bfloat16")
    build_store(store, teacher, task, task.splits["train"], config, seed=7)
    assert store.missing() == []
    assert store.verify() == []
    cached = CachedTeacher(store, ["hidden"], live=teacher)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for batch in steps(task, config):
            mine, theirs = cached(batch), teacher(batch)
            assert torch.equal(mine.logits, theirs.logits)
            assert mine.logits.dtype == theirs.logits.dtype
            assert torch.equal(mine.features["hidden"], theirs.features["hidden"])


@pytest.mark.parametrize("change", ["seed", "data", "train"])
def test_another_seed_or_other_data_are_noticed(tmp_path, change) -> None:
    task, config = JitteredTask(), settings()
    teacher = FrozenTeacher(teacher_net(), task)
    store = begin(tmp_path, teacher, task)
    build_store(store, teacher, task, task.splits["train"], config, seed=7)
    if change == "data":
        task.splits["train"].images = task.splits["train"].images.flip(0)
    batch = steps(task, config, seed=8 if change == "seed" else 7)[0]
    if change == "train":
        batch = batch | {"image": batch["image"] / 1.5}
    with pytest.raises(Exception, match="saw sample"):
        CachedTeacher(store, [])(batch)


def test_what_is_kept_is_found_out() -> None:
    task = TinyTask()
    teacher = FrozenTeacher(teacher_net(), task, ["hidden", "hidden.0:input"])
    fields = fields_of(teacher, batch_of(task, 2), dtype="fp16", top_k=2, temperature=4.0)
    assert [str(field) for field in fields] == [
        "float32 [3] kept as fp16, top 2 at 4", "float32 [16] kept as fp16",
        "float32 [6] kept as fp16",
    ]  # fmt: skip
    assert [field.name for field in fields] == ["logits", "hidden", "hidden.0:input"]


class Strange(nn.Module):
    """Answers that cannot be kept."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(FEATURES, 3)

    def forward(self, image: Tensor) -> Tensor:
        logits = self.linear(image)
        if self.kind == "batch":
            return logits - logits.mean(0)
        if self.kind == "chance":
            return logits + torch.randn_like(logits)
        if self.kind == "integers":
            return logits.long()
        return logits.repeat(2, 1) if self.kind == "rows" else logits


@pytest.mark.parametrize(("kind", "sentence"), [
    ("batch", "depend on the rest of its batch, or on chance, so they cannot be kept; ask the te"),
    ("chance", "depend on the rest of its batch, or on chance"),
    ("integers", r"logits of 32 samples are \(32, 3\) of torch.int64, not numbers for each sample"),
    ("rows", r"logits of 32 samples are \(64, 3\) of torch.float32"),
])  # fmt: skip
def test_what_cannot_be_kept_is_refused(kind, sentence) -> None:
    task = TinyTask()
    with pytest.raises(RecipeError, match=sentence):
        fields_of(FrozenTeacher(Strange(kind), task), batch_of(task, 2))
    fields_of(FrozenTeacher(Strange("sound"), task), batch_of(task, 2))


def test_a_teacher_that_normalises_by_the_batch_is_refused() -> None:
    task = TinyTask()
    teacher = FrozenTeacher(teacher_net(), task, batch_statistics=True)
    with pytest.raises(RecipeError, match="depend on the rest of its batch"):
        fields_of(teacher, batch_of(task, 2))


def built_with(
    folder: Path, teacher: FrozenTeacher, task: TinyTask, **options: Any
) -> TeacherStore:
    store = begin(folder, teacher, task, **options)
    build_store(store, teacher, task, task.splits["train"], settings(), seed=7)
    return store


def test_answers_that_are_not_finite_are_refused_with_their_sample(tmp_path) -> None:
    task = TinyTask(SAMPLES)
    task.splits["train"].images[37, 2] = torch.inf
    with pytest.raises(DataError, match="teacher's logits of sample 37 in view 0 are not finite"):
        built_with(tmp_path, FrozenTeacher(teacher_net(), task), task)


def test_an_input_that_is_not_finite_is_refused(tmp_path) -> None:
    task = TinyTask(SAMPLES)
    task.splits["train"].images[37, 2] = torch.inf

    class Deaf(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image.nan_to_num(0, 0, 0)

    with pytest.raises(DataError, match="The inputs of sample 37 in view 0 are not finite"):
        built_with(tmp_path, FrozenTeacher(Deaf(), task), task)


def test_answers_too_large_for_their_format_are_refused(tmp_path) -> None:
    task = TinyTask(SAMPLES)
    network = teacher_net()
    with torch.no_grad():
        network.classifier.weight.mul_(1e6)
    with pytest.raises(DataError, match="which fp16 cannot hold; keep them as bf16 or fp32"):
        built_with(tmp_path, FrozenTeacher(network, task), task, dtype="fp16")


def test_samples_of_several_sizes_are_refused(tmp_path) -> None:
    task = TinyTask(SAMPLES)

    class Growing(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image if image[0, 0] > task.splits["train"].images[39, 0] - 10 else image[:, :3]

    task.splits["train"].images[40:, 0] -= 1000
    with pytest.raises(
        DataError, match=r"of sample 4\d are float32 \[3\] where .* float32 \[6\]; a st"
    ):
        built_with(tmp_path, FrozenTeacher(Growing(), task), task)


def test_samples_with_ids_of_their_own_are_refused(tmp_path) -> None:
    class Named(TinyTask):
        def collate(self, samples: Any) -> Batch:
            batch = super().collate(samples)
            return batch | {"index": torch.arange(len(batch["labels"])) + 1000}

    task = Named(SAMPLES)
    teacher = FrozenTeacher(teacher_net(), task)
    store = begin(tmp_path, teacher, task)
    with pytest.raises(DataError, match=r"places 0 to 15 .* call themselves 1000 to 1015; a store"):
        build_store(store, teacher, task, task.splits["train"], settings(batch_size=5), seed=7)


def test_another_number_of_samples_is_refused(tmp_path) -> None:
    task = TinyTask(SAMPLES)
    teacher = FrozenTeacher(teacher_net(), task)
    store = begin(tmp_path, teacher, task)
    with pytest.raises(DataError, match="is of 50 samples, but the training set has 30"):
        build_store(store, teacher, task, task.splits["test"], settings(), seed=7)


def test_a_disk_that_is_too_small_is_refused(tmp_path, monkeypatch) -> None:
    task = TinyTask(SAMPLES)
    teacher = FrozenTeacher(teacher_net(), task)
    store = begin(tmp_path, teacher, task)
    monkeypatch.setattr("congener.teachers.store.SPARE", 10**18)
    with pytest.raises(RunError, match="its disk has"):
        build_store(store, teacher, task, task.splits["train"], settings(), seed=7)


def counted(teacher: FrozenTeacher) -> list[int]:
    rows: list[int] = []
    teacher.model.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    return rows


def test_only_what_is_missing_is_asked_and_told(tmp_path) -> None:
    task = TinyTask(SAMPLES)
    teacher = FrozenTeacher(teacher_net(), task)
    store = begin(tmp_path, teacher, task)
    events: list[dict[str, Any]] = []
    log, asked = RunLog(None, (events.append,)), counted(teacher)
    build_store(store, teacher, task, task.splits["train"], settings(), seed=7, log=log)
    assert sum(asked) >= 3 * SAMPLES
    assert min(asked) >= answers.LEAST
    names = [event["event"] for event in events]
    assert (names[0], names[-1]) == ("cache_build", "cache_built")
    assert set(names[1:-1]) == {"caching"}
    assert {k: events[0][k] for k in ("bytes", "samples", "views")} == {
        "bytes": store.nbytes, "samples": 50, "views": 3,
    }  # fmt: skip
    done = [event["done"] for event in events[1:-1]]
    assert done == sorted(done)
    assert (done[-1], events[-2]["total"]) == (150, 150)
    assert events[-1]["bytes"] == store.nbytes
    assert events[-1]["seconds"] >= 0
    asked.clear()
    events.clear()
    store.path(store.shards[1]).unlink()
    build_store(store, teacher, task, task.splits["train"], settings(), seed=7, log=log)
    assert sum(asked) == max(store.shards[1].rows, answers.LEAST)
    assert events[1]["done"] == 150 - store.shards[1].rows + min(20, store.shards[1].rows)
    events.clear()
    build_store(store, teacher, task, task.splits["train"], settings(), seed=7, log=log)
    assert not events


def test_an_interrupted_build_goes_on(tmp_path, monkeypatch) -> None:
    task = TinyTask(SAMPLES)
    teacher = FrozenTeacher(teacher_net(), task)
    store = begin(tmp_path, teacher, task)
    import signal

    calls: list[int] = []

    def interrupt(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGTERM)

    hook = teacher.model.register_forward_hook(interrupt)
    with pytest.raises(Interrupted):
        build_store(store, teacher, task, task.splits["train"], settings(), seed=7)
    hook.remove()
    assert 0 < len(store.missing()) < len(store.shards)
    build_store(store, teacher, task, task.splits["train"], settings(), seed=7)
    assert store.verify() == []


def _build(rank: int, folder: str) -> tuple[int, list[str]]:
    task = TinyTask(SAMPLES)
    teacher = FrozenTeacher(teacher_net(), task, ["hidden"])
    store = begin(Path(folder), teacher, task)
    asked = counted(teacher)
    build_store(store, teacher, task, task.splits["train"], settings(), seed=7)
    return sum(asked), store.verify()


def test_two_processes_share_the_work(tmp_path) -> None:
    found = in_two_processes(tmp_path, _build, str(tmp_path / "store"))
    assert [problems for _, problems in found] == [[], []]
    # None is done twice; what is asked is filled up to LEAST rows for each file.
    shards = len(TeacherStore.open(tmp_path / "store").shards)
    assert sum(rows for rows, _ in found) <= shards * 2 * answers.LEAST
    assert not list((tmp_path / "store").rglob("*draft*"))


def test_who_has_nothing_to_do_waits_for_the_others(tmp_path, monkeypatch) -> None:
    task = TinyTask(SAMPLES)
    teacher = FrozenTeacher(teacher_net(), task)
    store = begin(tmp_path, teacher, task)
    other = TeacherStore.open(tmp_path)
    last = store.shards[-1]
    claim = other.claim(last)
    assert claim.__enter__() is not None  # another process is at it
    waited: list[float] = []

    class Patient(answers.threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited.append(timeout or 0)
            assert store.missing() == [last]
            if len(waited) == 2:
                claim.__exit__(None, None, None)  # it was killed
            return False

    builder = answers._Builder(
        store, teacher, task, task.splits["train"], settings(), 7, RunLog(None)
    )
    builder.build(store.missing(), Patient())
    assert waited == [answers.POLL] * 2
    assert store.verify() == []
