"""What a network sees depends on the seed, the epoch and the sample, and on nothing else."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from tests.systems.tiny import TinyData, TinyPictureTask, TinyTask
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from congener.engine import FitConfig, fit
from congener.engine.feed import epoch_batches, evaluation_batches, in_training, steps_in_epoch
from congener.systems import Distillation
from congener.task import Task


class Restless(Dataset[Any]):
    """Draws from every global generator, as users' transforms do."""

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        draws = [random.random(), np.random.rand(), torch.rand(()).item()]  # noqa: NPY002
        return torch.tensor([index, *draws], dtype=torch.float64), index


class RestlessBatches(Restless):
    """The same, a whole batch at once."""

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        return [self[index] for index in indices]


def feed(dataset: Dataset[Any], task: Task | None = None, **options: Any) -> list[Any]:
    settings: dict[str, Any] = {
        "batch_size": 5, "seed": 0, "epoch": 0, "first": 0, "last": 5, "share": (0, 1),
        "workers": 0,
    }  # fmt: skip
    return list(epoch_batches(task or TinyTask(), dataset, **settings | options))


def order(**options: Any) -> list[int]:
    return torch.cat([b["index"] for b in feed(TinyData(23, 0), **options)]).tolist()


def by_sample(batches: list[Any]) -> dict[int, list[float]]:
    rows = torch.cat([batch["image"] for batch in batches])
    return {int(row[0]): row[1:].tolist() for row in rows}


def test_order_depends_on_seed_and_epoch_only() -> None:
    first = order()
    torch.manual_seed(99)
    random.seed(99)
    assert order() == first
    assert sorted(first) == list(range(23))
    others = [order(epoch=1), order(seed=1), order(seed=1, epoch=1)]
    assert all(other != first and sorted(other) == list(range(23)) for other in others)
    assert len({tuple(other) for other in others}) == 3


def test_order_does_not_depend_on_the_batch_size() -> None:
    assert order(batch_size=8, last=3) == order()


def test_part_of_an_epoch_is_a_slice_of_it() -> None:
    assert order(first=2, last=4) == order()[10:20]


def test_ragged_last_batch() -> None:
    assert [len(b["index"]) for b in feed(TinyData(23, 0))] == [5, 5, 5, 5, 3]


@pytest.mark.parametrize("world", [2, 3])
def test_shares_of_ranks_partition_the_global_batch(world: int) -> None:
    whole = feed(TinyData(23, 0))
    shares = [feed(TinyData(23, 0), share=(rank, world)) for rank in range(world)]
    for number, batch in enumerate(whole):
        parts = [share[number] for share in shares]
        assert torch.cat([p["index"] for p in parts]).tolist() == batch["index"].tolist()
        assert torch.equal(torch.cat([p["image"] for p in parts]), batch["image"])
        sizes = [len(p["index"]) for p in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("samples", "batch", "drop_last", "processes", "steps"),
    [
        (20, 5, False, 1, 4),
        (23, 5, False, 1, 5),
        (23, 5, True, 1, 4),
        (3, 5, False, 1, 1),
        (3, 5, True, 1, 0),
        (21, 5, False, 2, 4),  # one sample left for two processes
        (22, 5, False, 2, 5),
        (4000, 96, False, 2, 42),
    ],
)
def test_steps_of_an_epoch(
    samples: int, batch: int, drop_last: bool, processes: int, steps: int
) -> None:
    found = steps_in_epoch(samples, batch, drop_last=drop_last, processes=processes)
    assert found == steps


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_sees_every_sample_once_in_order(world: int) -> None:
    found = []
    for rank in range(world):
        batches = evaluation_batches(
            TinyTask(), TinyData(23, 0), batch_size=4, share=(rank, world), workers=0
        )
        found += [index for batch in batches for index in batch["index"].tolist()]
    assert found == list(range(23))


SUBSET = Subset(Restless(), list(range(23)))


@pytest.mark.parametrize("dataset", [Restless(), SUBSET, Subset(SUBSET, list(range(23)))])
def test_random_transforms_are_keyed_by_seed_epoch_and_sample(dataset: Dataset[Any]) -> None:
    whole = by_sample(feed(dataset))
    assert len(whole) == 23
    assert len({tuple(draws) for draws in whole.values()}) == 23
    pieces = [by_sample(feed(dataset, batch_size=3, last=8, share=(r, 2))) for r in range(2)]
    assert pieces[0] | pieces[1] == whole
    assert by_sample(feed(dataset, first=1, last=3)).items() <= whole.items()
    for other in (by_sample(feed(dataset, epoch=1)), by_sample(feed(dataset, seed=1))):
        assert all(a != b for i in whole for a, b in zip(other[i], whole[i], strict=True))


@pytest.mark.parametrize("dataset", [Restless(), SUBSET, RestlessBatches()])
def test_global_generators_are_left_untouched(
    dataset: Dataset[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(seed: int) -> None:
        raise AssertionError("a device's generator was seeded, so its dropout would repeat")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    torch.default_generator.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    feed(dataset)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    for now, then in zip(np.random.get_state(), before[2], strict=True):  # noqa: NPY002
        assert np.array_equal(now, then)


def test_random_batches_are_keyed_by_their_samples() -> None:
    dataset = RestlessBatches()
    assert by_sample(feed(dataset)) == by_sample(feed(dataset))
    assert by_sample(feed(dataset)) != by_sample(feed(dataset, epoch=1))


def test_generators_are_restored_when_a_sample_fails() -> None:
    class Broken(Restless):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            raise OSError("disk")

    random.seed(5)
    before = random.getstate()
    with pytest.raises(OSError, match="disk"):
        feed(Broken())
    assert random.getstate() == before


@pytest.mark.parametrize("dataset", [Restless(), SUBSET])
def test_workers_change_nothing(dataset: Dataset[Any]) -> None:
    torch.manual_seed(1)
    alone = feed(dataset)
    before = torch.get_rng_state()
    helped = feed(dataset, workers=2)
    assert by_sample(helped) == by_sample(alone)
    assert [b["index"].tolist() for b in helped] == [b["index"].tolist() for b in alone]
    assert torch.equal(torch.get_rng_state(), before)


def test_layout_is_that_of_maps_alone() -> None:
    raw = {"image": torch.rand(2, 3, 4, 5), "labels": torch.tensor([0, 1]), "name": ["a", "b"]}
    device = torch.device("cpu")
    for layout in ("contiguous", "channels_last"):
        config = FitConfig(steps=1, layout=layout)
        batch = in_training(TinyTask(), raw, config, device, seed=0, view=3)
        last = layout == "channels_last"
        assert batch["image"].is_contiguous(memory_format=torch.channels_last) == last
        assert torch.equal(batch["image"], raw["image"])
        assert batch["labels"] is raw["labels"]
        assert batch["view"] == 3


def test_layout_of_the_student_is_set_for_the_fit() -> None:
    student = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    task = TinyPictureTask()
    system = Distillation(student, None, [], task=task)
    config = FitConfig(steps=1, layout="channels_last", device="cpu")
    fit(system, task, config, train=task.splits["train"], test=None)
    assert student[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert not student[1].weight.is_contiguous()
