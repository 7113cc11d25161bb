"""A teacher that answers from a store says what it said, about the same samples alone."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.systems.tiny import TinyTask, teacher_net
from torch import nn

from congener.engine import FitConfig, build_store, fields_of
from congener.engine.feed import in_training, view_batches
from congener.errors import StaleCache
from congener.teachers import CachedTeacher, FrozenTeacher, TeacherStore
from congener.teachers.store import WITNESS
from congener.types import Batch

CONFIG = FitConfig(epochs=1, batch_size=20, device="cpu")
SAMPLES = 40


class Shifted(TinyTask):
    """Each view moves each sample by another amount."""

    def prepare(self, batch: Batch, *, train: bool, seed: int, epoch: int) -> Batch:
        moved = batch["image"] + (0.1 * (epoch + 1) + seed) * (1 + batch["index"][:, None] % 3)
        return batch | {"image": moved}


@pytest.fixture
def task() -> TinyTask:
    return Shifted(SAMPLES)


def live(task: TinyTask, *taps: str) -> FrozenTeacher:
    return FrozenTeacher(teacher_net(), task, taps or ("hidden", "hidden.0"))


def seen(task: TinyTask, rows: int = SAMPLES, view: int = 0) -> Batch:
    raw = next(view_batches(task, task.splits["train"], torch.arange(rows), batch_size=rows,
                            seed=0, view=view, workers=0))  # fmt: skip
    return in_training(task, raw, CONFIG, torch.device("cpu"), seed=0, view=view)


def store_of(task: TinyTask, folder: Path, teacher: FrozenTeacher, **options: Any) -> TeacherStore:
    fields = fields_of(teacher, seen(task), **options)
    store = TeacherStore.create(
        folder, {"teacher weights": "a"}, fields, samples=SAMPLES, views=2, versions={},
        shard_bytes=1000,
    )  # fmt: skip
    build_store(store, teacher, task, task.splits["train"], CONFIG, seed=0)
    return store


@pytest.fixture
def store(task: TinyTask, tmp_path: Path) -> TeacherStore:
    return store_of(task, tmp_path, live(task))


def rows(batch: Batch, places: torch.Tensor) -> Batch:
    return {k: v[places] if torch.is_tensor(v) else v for k, v in batch.items()}


@pytest.mark.parametrize("view", [0, 1, 2, 5])
def test_is_the_live_teacher_bit_for_bit(task, store, view) -> None:
    batch = seen(task, view=view % 2) | {"view": view}
    batch = rows(batch, torch.randperm(SAMPLES)[:23])
    cached, wanted = CachedTeacher(store, ["hidden.0", "hidden"])(batch), live(task)(batch)
    assert torch.equal(cached.logits, wanted.logits)
    assert list(cached.features) == ["hidden.0", "hidden"]
    for path, value in wanted.features.items():
        assert torch.equal(cached.features[path], value)
        assert not cached.features[path].requires_grad


def test_rows_may_repeat_and_batches_may_be_ragged(task, store) -> None:
    batch, cached = seen(task), CachedTeacher(store, [])
    whole = cached(batch).logits
    for places in (torch.tensor([5, 5, 39, 0]), torch.tensor([7]), torch.arange(0)):
        assert torch.equal(cached(rows(batch, places)).logits, whole[places])
    assert cached.batches == 4


def test_only_the_taps_that_are_asked_for_are_read(task, store, monkeypatch) -> None:
    asked, read = [], TeacherStore.read
    monkeypatch.setattr(
        TeacherStore,
        "read",
        lambda self, names, *rest: asked.append(names) or read(self, names, *rest),
    )
    assert CachedTeacher(store, ["hidden"])(seen(task)).features.keys() == {"hidden"}
    assert asked == [["logits", "hidden", WITNESS]]


def test_a_tap_that_was_not_kept(store) -> None:
    with pytest.raises(StaleCache, match="does not hold 'classifier'"):
        CachedTeacher(store, ["hidden", "classifier"])


def test_a_tap_called_logits_is_not_the_logits(tmp_path, task) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Linear(6, 3)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return 2 * self.logits(image)

    teacher = FrozenTeacher(Named(), task, ["logits"])
    batch = seen(task)
    found = CachedTeacher(store_of(task, tmp_path, teacher), ["logits"], live=teacher)(batch)
    assert torch.equal(found.logits, 2 * found.features["logits"])
    assert torch.equal(found.logits, teacher(batch).logits)


@pytest.mark.parametrize(("change", "count"), [
    (lambda b: b | {"image": b["image"].flip(1)}, SAMPLES),
    (lambda b: b | {"image": b["image"].roll(1, 0)}, SAMPLES),
    (lambda b: b | {"index": b["index"].flip(0)}, SAMPLES),
    (lambda b: b | {"view": 1}, SAMPLES),
    (lambda b: b | {"strong_image": b["image"]}, SAMPLES),
    (lambda b: {k: v for k, v in b.items() if k != "image"}, SAMPLES),
    (lambda b: b | {"image": torch.cat([b["image"][:7], 2 * b["image"][7:8], b["image"][8:]])}, 1),
])  # fmt: skip
def test_another_input_is_refused(task, store, change, count) -> None:
    cached = CachedTeacher(store, [])
    batch = seen(task)
    cached(batch)
    with pytest.raises(
        StaleCache, match=rf"saw sample \d+ otherwise .* and so {count} of its 40 sa"
    ):
        cached(change(batch))
    cached(batch | {"labels": batch["labels"] + 1})  # which the teacher did not see


def test_the_sample_is_named(task, store) -> None:
    batch = rows(seen(task, view=1), torch.tensor([3, 31, 12]))
    batch["image"][1] += 1
    with pytest.raises(
        StaleCache, match="saw sample 31 otherwise than it is in this batch, in view 1"
    ):
        CachedTeacher(store, [])(batch)


def test_the_live_teacher_is_asked_once(task, store) -> None:
    teacher, calls = live(task), []
    teacher.model.register_forward_hook(lambda *_: calls.append(1))
    moves, to = [], teacher.to
    teacher.to = lambda device: moves.append(device.type) or to(device)
    cached = CachedTeacher(store, ["hidden"], live=teacher)
    for view in (0, 1):
        cached(seen(task, view=view))
    assert len(calls) == 1
    assert moves == ["cpu", "cpu"]  # to the batch, and back
    assert cached.to(torch.device("meta")) is cached
    assert {p.device.type for p in teacher.model.parameters()} == {"cpu"}


@pytest.mark.parametrize("size", [1, 5, SAMPLES])
def test_the_first_batch_may_be_of_any_size(task, store, size) -> None:
    CachedTeacher(store, ["hidden"], live=live(task))(seen(task, size))


class Softened(nn.Module):
    """Has the weights of another network and answers otherwise."""

    def __init__(self, network: nn.Module, share: float) -> None:
        super().__init__()
        self.network, self.share = network, share

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.network(image) * (1 + self.share)


@pytest.mark.parametrize(("options", "seen_from", "unseen_to"), [
    ({}, 1e-4, 3e-6), ({"dtype": "fp16"}, 0.01, 1e-4), ({"dtype": "bf16"}, 0.1, 1e-3),
    ({"top_k": 1}, 0.5, 1e-4), ({"dtype": "fp16", "top_k": 2, "temperature": 2.0}, 0.5, 1e-4),
])  # fmt: skip
def test_a_teacher_that_changed_is_noticed(tmp_path, task, options, seen_from, unseen_to) -> None:
    network = teacher_net()
    store = store_of(task, tmp_path, FrozenTeacher(network, task), **options)
    batch = seen(task)
    CachedTeacher(store, [], live=FrozenTeacher(deepcopy(network), task))(batch)
    CachedTeacher(store, [], live=FrozenTeacher(Softened(network, unseen_to), task))(batch)
    with pytest.raises(StaleCache, match=r"does not say what it said .* 'logits' differ by"):
        CachedTeacher(store, [], live=FrozenTeacher(Softened(network, seen_from), task))(batch)


def test_a_feature_that_changed_is_noticed(task, store) -> None:
    network = teacher_net()
    teacher = FrozenTeacher(network, task, ["hidden", "hidden.0"])
    with torch.no_grad():  # one dies and the other is not read
        network.hidden[1].running_mean.add_(0.1)
    for tap in ("hidden", "hidden.0"):
        cached = CachedTeacher(store, [tap], live=teacher)
        with pytest.raises(StaleCache, match="'logits' differ by"):
            cached(seen(task))
    network.hidden[2].register_forward_hook(lambda module, args, out: out * 1.01)
    cached = CachedTeacher(store, ["hidden"], live=teacher)
    with pytest.raises(StaleCache):
        cached(seen(task))


def test_a_feature_alone_that_changed_is_noticed(task, store) -> None:
    network = teacher_net()
    network.hidden[0].register_forward_hook(lambda module, args, out: out + 1)
    network.hidden[1].register_forward_pre_hook(lambda module, args: (args[0] - 1,))
    cached = CachedTeacher(store, ["hidden.0"], live=FrozenTeacher(network, task, ["hidden.0"]))
    with pytest.raises(StaleCache, match=r"'hidden.0' differ by"):
        cached(seen(task))


def test_a_teacher_of_other_classes_is_noticed(task, store) -> None:
    network = teacher_net()
    network.classifier = nn.Linear(16, 4)
    with pytest.raises(StaleCache, match="'logits' differ by inf"):
        CachedTeacher(store, [], live=FrozenTeacher(network, task))(seen(task))
