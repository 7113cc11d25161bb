"""Data sets in memory are indexed where they lie, and give what a loader would give."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

import congener.engine.feed
import congener.engine.held
from congener.engine.feed import epoch_batches, evaluation_batches
from congener.engine.held import Held, held, resident
from congener.tasks.image_classification import ArrayDataset, ImageClassification
from congener.tasks.image_classification.data.datasets import in_memory
from congener.types import Batch

IMAGES = torch.arange(23 * 4, dtype=torch.float32).view(23, 1, 2, 2)
LABELS = torch.arange(23) % 3
DATA = ArrayDataset(IMAGES, LABELS)
TASK = object.__new__(ImageClassification)  # collates only


class Plain(Dataset[Any]):
    """The same samples, one at a time: what goes through a loader."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]


class Moved(ArrayDataset):
    """Reads its samples in a way of its own."""

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        batch = super().__getitems__(indices)
        return batch | {"image": batch["image"] + torch.rand(())}


class Doubled(Subset[Any]):
    """A part that changes what it hands on."""

    def __getitems__(self, indices: list[int]) -> Any:
        batch = super().__getitems__(indices)
        return batch | {"image": 2 * batch["image"]}  # type: ignore[operator]


def feed(dataset: Dataset[Any], task: Any = TASK, **options: Any) -> list[Batch]:
    settings: dict[str, Any] = {
        "batch_size": 5, "seed": 0, "epoch": 0, "first": 0, "last": 5, "share": (0, 1),
        "workers": 0,
    }  # fmt: skip
    return list(epoch_batches(task, dataset, **settings | options))


def same(found: list[Batch], wanted: list[Batch]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert value.dtype == other[name].dtype
            assert torch.equal(value, other[name])


@pytest.fixture
def _no_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a loader was made, or a generator seeded")

    monkeypatch.setattr(congener.engine.feed, "DataLoader", refuse)
    monkeypatch.setattr(congener.engine.feed, "seed_generators", refuse)


PART = Subset(DATA, [*range(3, 20), 7, 7, 0])
PARTS = pytest.mark.parametrize(
    "dataset", [DATA, PART, Subset(PART, [19, 2, 2, *range(7)])], ids=["all", "part", "parts"]
)


@PARTS
@pytest.mark.parametrize("share", [(0, 1), (1, 2)])
def test_batches_are_those_of_a_loader(dataset: Dataset[Any], share: tuple[int, int]) -> None:
    same(feed(dataset, share=share), feed(Plain(dataset), share=share))
    same(feed(dataset, share=share, first=1, last=2), feed(dataset, share=share)[1:2])
    measured = [
        list(evaluation_batches(TASK, each, batch_size=4, share=share, workers=0))
        for each in (dataset, Plain(dataset))
    ]
    same(*measured)


@pytest.mark.usefixtures("_no_loader")
@PARTS
def test_no_loader_is_made_and_no_generator_seeded(dataset: Dataset[Any]) -> None:
    assert feed(dataset, workers=2)
    assert list(evaluation_batches(TASK, dataset, batch_size=4, share=(0, 1), workers=2))


def test_index_tells_the_row_of_the_whole_data_set() -> None:
    for batch in feed(Subset(PART, [19, 2, 18])):
        assert torch.equal(batch["image"], IMAGES[batch["index"]])
        assert sorted(batch["index"].tolist()) == [0, 5, 7]


def test_a_share_may_be_empty() -> None:
    few = Subset(DATA, [4])
    assert list(evaluation_batches(TASK, few, batch_size=4, share=(1, 2), workers=0)) == []


@pytest.mark.parametrize(
    "dataset", [Moved(IMAGES, LABELS), Subset(Moved(IMAGES, LABELS), [1, 2]), Doubled(DATA, [3, 4])]
)
def test_a_data_set_that_reads_in_its_own_way_is_asked(dataset: Dataset[Any]) -> None:
    assert held(dataset) is None
    for batch in feed(dataset):
        assert not torch.equal(batch["image"], IMAGES[batch["index"]])


def test_a_data_set_without_columns_is_not_held() -> None:
    assert held(Plain(DATA)) is None
    assert held(torch.utils.data.TensorDataset(IMAGES)) is None


@pytest.mark.parametrize(("share", "moves"), [(4.0, True), (3.99, False)])
def test_a_device_takes_what_fits_into_a_quarter_of_its_free_memory(
    monkeypatch: pytest.MonkeyPatch, share: float, moves: bool
) -> None:
    free = int(share * (IMAGES.nbytes + LABELS.nbytes))
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda _: (free, 10 * free))
    found = resident(PART, torch.device("meta"))
    if not moves:
        assert found is PART
        return
    assert isinstance(found, Held)
    assert len(found) == len(PART)
    assert {v.device.type for v in found.columns.values()} == {"meta"}
    sizes = [len(batch["labels"]) for batch in feed(found)]
    assert sizes == [5, 5, 5, 5]
    assert all(v.device.type == "meta" for batch in feed(found) for v in batch.values())


def test_on_the_cpu_nothing_moves() -> None:
    assert resident(PART, torch.device("cpu")) is PART
    assert resident(Plain(DATA), torch.device("meta")).__class__ is Plain


def test_what_is_held_gives_the_same_batches() -> None:
    found = held(PART)
    assert found is not None
    same(feed(found.to(torch.device("cpu"))), feed(PART))


@pytest.mark.parametrize("read", [held, lambda data: Held(data.columns, torch.tensor([2, 0]))])
def test_augmentation_cannot_reach_the_data(read: Callable[[ArrayDataset], Any]) -> None:
    before = IMAGES.clone()
    for batch in feed(read(DATA)):
        batch["image"].zero_()
    assert torch.equal(IMAGES, before)


def test_transforms_of_samples_draw_as_they_do_one_by_one() -> None:
    """The generators are put back once for a batch, and seeded anew for each sample."""

    class Drawn(Plain):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.rand(3), index

    batches = feed(Drawn(DATA))
    for batch in batches:
        for index, row in zip(batch["index"].tolist(), batch["image"], strict=True):
            generator = torch.Generator().manual_seed(hash((0, 0, index)) % 2**63)
            assert torch.equal(torch.rand(3, generator=generator), row)


def test_tensors_of_a_user_are_held_and_give_what_they_gave() -> None:
    """Of the types that a loader would have made anew, too; others go through the loader."""
    kinds = [(torch.float32, torch.int64), (torch.float64, torch.int32), (torch.uint8, torch.int64)]
    for images, labels in kinds:
        given = TensorDataset(IMAGES.to(images), LABELS.to(labels))
        task = ImageClassification.from_datasets(given, given)
        train = task.splits["train"]
        assert held(train) is not None
        same(feed(train, task=task), feed(Plain(given), task=task))
    for other in (TensorDataset(IMAGES.half(), LABELS), Subset(given, [1, 2])):
        assert in_memory(other) is other


def test_a_device_that_does_not_tell_its_memory_gets_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def silent(_: torch.device) -> tuple[int, int]:
        raise RuntimeError("getMemoryInfo is not implemented for this allocator yet.")

    monkeypatch.setattr(torch.accelerator, "get_memory_info", silent)
    assert resident(PART, torch.device("meta")) is PART


class Table(Plain):
    """Its columns are names."""

    columns = ("image", "labels")

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[index] for index in indices]


def test_columns_that_are_no_tensors_are_not_held() -> None:
    assert held(Table(DATA)) is None
