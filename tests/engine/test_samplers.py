"""CCKD's samplers: every clause of what a batch of groups is, and a fit that draws from them."""

import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tests.systems.tiny import TinyData, TinyTask, student_net, teacher_net
from tests.trajectory.processes import in_two_processes
from torch import Tensor

from congener.engine import FitConfig, check_groups, fit, prepare, steps_per_epoch
from congener.engine.feed import epoch_batches
from congener.errors import DataError, Interrupted
from congener.losses import CCKDLoss, KDLoss
from congener.runlog import RunLog
from congener.system import FitStage
from congener.systems import Distillation
from congener.teachers import fingerprint
from congener.types import Term

SIZES = (11, 8, 3, 1, 17)  # five groups, one smaller than a block
GROUPS = torch.repeat_interleave(torch.tensor([40, 7, 9, 3, 1000]), torch.tensor(SIZES))
GROUPS = GROUPS[torch.randperm(40, generator=torch.Generator().manual_seed(5))]
CLASS_WISE: dict[str, Any] = {"sampler": "class_uniform"}
EACH, BATCH, STEPS = 3, 9, 5  # ⌈40 / 9⌉ batches of three blocks


def feed(groups: Tensor | None = GROUPS, count: int = 40, **changes: Any) -> list[Tensor]:
    settings: dict[str, Any] = {
        "batch_size": BATCH, "seed": 0, "epoch": 0, "first": 0, "last": None, "share": (0, 1),
        "workers": 0, "groups": groups, "per_group": EACH,
    }  # fmt: skip
    batches = epoch_batches(TinyTask(), TinyData(count, 0), **settings | changes)
    return [batch["index"] for batch in batches]


def blocks(batches: list[Tensor], each: int = EACH) -> list[list[int]]:
    return [block for batch in batches for block in batch.view(-1, each).tolist()]


def test_shuffled_batches_are_slices_of_one_permutation() -> None:
    order = torch.randperm(23, generator=torch.Generator().manual_seed(3 * 1_000_003 + 2))
    found = feed(None, 23, batch_size=5, seed=3, epoch=2, per_group=4)
    assert [batch.tolist() for batch in found] == [part.tolist() for part in order.split(5)]


def test_batches_with_labels_are_two_permutations_mixed() -> None:
    generator = torch.Generator().manual_seed(1)
    pool = torch.tensor([k for k in range(10) if k not in (2, 5)])
    pool = pool[torch.randperm(8, generator=generator)]
    drawn = [torch.tensor([2, 5])[torch.randperm(2, generator=generator)] for _ in range(3)]
    first = torch.cat([torch.cat(drawn)[:2], pool[:3]])[torch.randperm(5, generator=generator)]
    found = feed(
        None, 10, batch_size=5, epoch=1, per_group=4,
        labelled=torch.tensor([2, 5]), labelled_per_batch=2,
    )  # fmt: skip
    assert len(found) == 3
    assert found[0].tolist() == first.tolist()


@pytest.mark.parametrize("epoch", range(4))
def test_a_batch_is_blocks_of_different_groups(epoch: int) -> None:
    found = feed(epoch=epoch)
    assert len(found) == STEPS
    for batch in found:
        assert len(batch) == BATCH  # the last one, too
        kinds = [set(GROUPS[block].tolist()) for block in batch.view(-1, EACH)]
        assert all(len(kind) == 1 for kind in kinds)
        assert len(set.union(*kinds)) == BATCH // EACH


@pytest.mark.parametrize("epoch", range(4))
def test_a_group_is_drawn_without_replacement_until_exhausted(epoch: int) -> None:
    groups = torch.tensor([0] * 6 + [1] * 4 + [2] * 10)  # 20 / 6: 4 batches, each of all groups
    found = blocks(feed(groups, 20, epoch=epoch, batch_size=6, per_group=2), 2)
    reshuffled = []
    for group in range(3):
        members = (groups == group).nonzero().flatten().tolist()
        drawn = [k for block in found if groups[block[0]] == group for k in block]
        assert len(drawn) == 8
        passes = [drawn[k : k + len(members)] for k in range(0, 8, len(members))]
        for turn in passes:
            assert len(set(turn)) == len(turn)
            assert set(turn) <= set(members)
        reshuffled.append(passes)
    assert sorted(reshuffled[1][0]) == sorted(reshuffled[1][1])


def test_each_pass_through_a_group_has_an_order_of_its_own() -> None:
    groups = torch.tensor([0] * 4 + [1] * 96)
    found = blocks(feed(groups, 100, batch_size=8, per_group=4), 4)
    passes = {tuple(block) for block in found if groups[block[0]] == 0}
    assert len(passes) > 6  # of 13, among 24 orders
    assert (
        len({tuple(feed(groups, 100, batch_size=8, per_group=4, epoch=e)[0]) for e in range(9)})
        == 9
    )


def test_a_group_smaller_than_a_block_fills_it() -> None:
    alone = int((GROUPS == 3).nonzero())
    found = [block for e in range(4) for block in blocks(feed(epoch=e)) if alone in block]
    assert found
    assert all(block == [alone] * EACH for block in found)


def test_every_group_comes_equally_often() -> None:
    counts = Counter(int(GROUPS[b[0]]) for e in range(60) for b in blocks(feed(epoch=e)))
    assert set(counts) == {40, 7, 9, 3, 1000}
    assert all(abs(n / 180 - 1) < 0.2 for n in counts.values())  # 60 · 5 · 3 / 5 = 180


def test_each_batch_draws_its_groups_anew() -> None:
    drawn = [{int(GROUPS[block[0]]) for block in blocks([batch])} for batch in feed()]
    assert len({frozenset(groups) for groups in drawn}) > 2  # of 5, among 10 triples


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_alone() -> None:
    first = feed()
    torch.manual_seed(99)
    assert torch.equal(torch.stack(feed()), torch.stack(first))
    others = [feed(epoch=1), feed(seed=1), feed(seed=1, epoch=1)]
    assert len({str(other) for other in [first, *others]}) == 4


def test_a_part_of_an_epoch_is_a_slice_of_it() -> None:
    assert torch.equal(torch.stack(feed(first=2, last=4)), torch.stack(feed()[2:4]))


@pytest.mark.parametrize(("world", "sizes"), [(2, (6, 3)), (3, (3, 3, 3))])
def test_ranks_get_whole_blocks_and_their_union_is_the_batch(world: int, sizes: Any) -> None:
    shares = [feed(share=(rank, world)) for rank in range(world)]
    assert all(len(b) == sizes[rank] for rank in range(world) for b in shares[rank])
    for share in shares:
        assert all(len(set(GROUPS[block].tolist())) == 1 for block in blocks(share))
    for number, batch in enumerate(feed()):
        assert torch.cat([share[number] for share in shares]).tolist() == batch.tolist()


@pytest.mark.parametrize(
    ("samples", "changes", "processes", "steps"),
    [
        (40, {}, 1, 5),
        (36, {}, 1, 4),
        (40, {"drop_last": True}, 1, 4),
        (37, {}, 2, 5),  # every batch is full: no process goes without
        (37, {"sampler": "shuffle"}, 2, 4),
    ],
)
def test_steps_of_an_epoch(samples: int, changes: Any, processes: int, steps: int) -> None:
    config = FitConfig(**{"epochs": 1, "batch_size": 9, "per_class": 3, **CLASS_WISE, **changes})
    assert steps_per_epoch(TinyData(samples, 0), config, None, processes=processes) == steps


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"labelled_per_batch": 4}, "`labelled_per_batch` and `sampler: class_uniform` both say"),
        ({"batch_size": 62}, r"`batch_size` \(62\) that is a multiple of `per_class` \(4\)"),
        (
            {"sampler": "superclass_uniform", "superclasses": 15},
            "64 with `per_class` 4 needs 16 superclasses, but `superclasses` is 15; raise it to 16",
        ),
    ],
)
def test_settings_that_do_not_fit_each_other(settings: Any, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        FitConfig(steps=1, **(CLASS_WISE | settings))
    shuffled = {"sampler": "shuffle", "superclasses": 15}
    FitConfig(steps=1, **(settings | shuffled))
    FitConfig(steps=1, sampler="class_uniform", superclasses=1)
    FitConfig(steps=1, sampler="superclass_uniform", superclasses=16)


@pytest.mark.parametrize(
    ("groups", "processes", "sentence"),
    [
        (None, 1, "needs one group for each of the 40 training samples, but got none; pass"),
        (GROUPS[:39], 1, r"got the shape \(39,\)"),
        (GROUPS[:, None], 1, r"got the shape \(40, 1\)"),
        (
            torch.where(GROUPS == 9, -100, GROUPS),
            1,
            "but 3 of 40 have no label; use sampler 'super",
        ),
        (GROUPS % 2, 1, "needs 3 groups for a batch of 9 with per_class=3, but .* has 2; lower"),
        (GROUPS, 4, "has 3 groups for 4 processes, and a group stays on one"),
    ],
)
def test_groups_that_do_not_fit(groups: Any, processes: int, sentence: str) -> None:
    config = FitConfig(steps=1, batch_size=9, per_class=3, **CLASS_WISE)
    with pytest.raises(DataError, match=sentence):
        check_groups(config, groups, 40, processes=processes)
    check_groups(config.model_copy(update={"sampler": "shuffle"}), groups, 40, processes=processes)
    check_groups(config, GROUPS, 40, processes=3)
    check_groups(config, GROUPS.clamp(max=9) // 2, 40)  # three groups, all in each batch


TRAINING = FitConfig(
    steps=9, batch_size=8, per_class=4, lr=0.02, checkpoint_every=4, log_every=1, threads=1,
    device="cpu", **CLASS_WISE,
)  # fmt: skip


def train(config: FitConfig = TRAINING, *, norm: bool = True, **options: Any) -> Distillation:
    torch.manual_seed(0)
    task = TinyTask(30)
    terms = [Term(CCKDLoss(), 10.0, "hidden", "hidden"), Term(KDLoss())]
    system = Distillation(student_net(norm=norm), teacher_net(), terms, task=task)
    data = {"train": task.splits["train"], "test": task.splits["test"]}
    fit(system, task, config, **({"groups": data["train"].labels} | options), **data)
    return system


def test_a_fit_draws_from_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    whole = TinyTask.prepare

    def prepare(self: TinyTask, batch: Any, **options: Any) -> Any:
        if options["train"]:
            seen.append(batch["labels"])
        return whole(self, batch, **options)

    monkeypatch.setattr(TinyTask, "prepare", prepare)
    train()
    assert len(seen) == 9
    assert all(sorted(torch.bincount(labels).tolist())[-2:] == [4, 4] for labels in seen)
    seen.clear()
    train(TRAINING.model_copy(update={"sampler": "shuffle"}))
    assert any(sorted(torch.bincount(labels).tolist())[-2:] != [4, 4] for labels in seen)


def test_a_fit_without_groups_is_refused_before_training() -> None:
    with pytest.raises(DataError, match="needs one group for each of the 30 training samples"):
        train(groups=None)
    train(TRAINING.model_copy(update={"sampler": "shuffle"}), groups=None)


@pytest.mark.parametrize("step", [2, 6])  # in the middle of the first epoch, and of the second
def test_resumed_is_straight(step: int, tmp_path: Path) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "tick" and event["step"] == step:
            signal.raise_signal(signal.SIGINT)

    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(Interrupted):
        train(log=RunLog(None, (stop,)), checkpoint=checkpoint)
    assert fingerprint(train(checkpoint=checkpoint)) == fingerprint(train())


def _totals(rank: int) -> list[float]:
    events: list[dict[str, Any]] = []
    train(norm=False, log=RunLog(None, (events.append,)))
    return [event["total"] for event in events if event["event"] == "step"]


def test_two_processes_are_one(tmp_path: Path) -> None:
    one = _totals(0)
    first, second = in_two_processes(tmp_path, _totals)
    assert len(one) == 9
    assert first == pytest.approx(one, rel=1e-5)
    assert second == pytest.approx(one, rel=1e-5)


def test_the_stages_of_a_system_are_shuffled() -> None:
    class Asks:
        teacher = None

        def stages(self) -> tuple[FitStage]:
            head = Distillation(student_net(), None, [], task=TinyTask(30))
            return (FitStage("head", head, ()),)

    prepare(Asks(), TinyTask(30), TRAINING)
