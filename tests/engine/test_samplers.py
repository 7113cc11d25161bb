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
        (
            {"sampler": "superclass_uniform", "labelled_per_batch": 4},
            "`labelled_per_batch` and `sampler: superclass_uniform` both say",
        ),
        (
            {"labelled_per_batch": 6},
            r"`labelled_per_batch` \(6\) that is a multiple of `per_class` \(4\)",
        ),
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
    FitConfig(steps=1, labelled_per_batch=8, **CLASS_WISE)
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
            "but 3 of 40 have no label; set labelled_per_batch, or use sampler 'super",
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


FEW = torch.where(GROUPS == 1000, -100, GROUPS)  # 17 samples of no known group, 23 of four
KNOWN = (FEW >= 0).nonzero().flatten()
MIXED: dict[str, Any] = {"labelled": KNOWN, "labelled_per_batch": 6}


@pytest.mark.parametrize("epoch", range(3))
def test_a_part_of_a_batch_by_group_and_the_others_once(epoch: int) -> None:
    found = feed(FEW, epoch=epoch, **MIXED)
    assert [len(batch) for batch in found] == [9, 9, 9, 9, 9, 8]  # ⌈17 / 3⌉
    others = torch.cat([batch[FEW[batch] < 0] for batch in found])
    assert sorted(others.tolist()) == (FEW < 0).nonzero().flatten().tolist()
    for batch in found:
        runs = [FEW[run].tolist() for run in batch.split(EACH)]
        grouped = [run for run in runs if run[0] >= 0]
        assert len(grouped) == 2
        assert all(run == run[:1] * EACH for run in grouped)
        assert grouped[0] != grouped[1]
        assert all(k == -100 for run in runs if run not in grouped for k in run)


def test_the_blocks_of_a_batch_lie_among_the_others() -> None:
    places = {
        tuple(int(FEW[run[0]]) >= 0 for run in batch.split(EACH))
        for epoch in range(4)
        for batch in feed(FEW, epoch=epoch, **MIXED)[:5]
    }
    assert len(places) == 3


def test_a_part_by_group_depends_on_seed_and_epoch_alone() -> None:
    first = [batch.tolist() for batch in feed(FEW, **MIXED)]
    torch.manual_seed(99)
    assert [batch.tolist() for batch in feed(FEW, **MIXED)] == first
    assert [batch.tolist() for batch in feed(FEW, first=2, last=4, **MIXED)] == first[2:4]
    others = [feed(FEW, **MIXED, **change) for change in ({"epoch": 1}, {"seed": 1})]
    assert len({str(other) for other in [*others, first]}) == 3


@pytest.mark.parametrize(("world", "sizes"), [(2, ((6, 3), (6, 2))), (3, ((3,) * 3, (3, 3, 2)))])
def test_ranks_get_whole_blocks_of_a_mixed_batch(world: int, sizes: Any) -> None:
    shares = [feed(FEW, share=(rank, world), **MIXED) for rank in range(world)]
    for number, batch in enumerate(feed(FEW, **MIXED)):
        parts = [share[number] for share in shares]
        assert torch.cat(parts).tolist() == batch.tolist()
        assert tuple(map(len, parts)) == sizes[number == 5]
        for run in (run for part in parts for run in part.split(EACH)):
            assert len(set(FEW[run].tolist())) == 1


def test_labelled_positions_count_only_where_a_batch_is_to_have_some() -> None:
    unused: dict[str, Any] = {"labelled": KNOWN, "labelled_per_batch": 0}
    for groups in (GROUPS, None):
        expected = [batch.tolist() for batch in feed(groups)]
        assert [batch.tolist() for batch in feed(groups, **unused)] == expected


def test_steps_of_an_epoch_with_a_part_by_group() -> None:
    config = FitConfig(epochs=1, batch_size=9, per_class=3, labelled_per_batch=6, **CLASS_WISE)
    for processes in (1, 2):
        assert steps_per_epoch(TinyData(40, 0), config, KNOWN, processes=processes) == 6


def test_groups_of_the_labelled_that_do_not_fit() -> None:
    config = FitConfig(steps=1, batch_size=12, per_class=3, labelled_per_batch=6, **CLASS_WISE)
    check_groups(config, FEW, 40, labelled=KNOWN, processes=2)
    with pytest.raises(DataError, match="has 2 groups for 3 processes"):
        check_groups(config, FEW, 40, labelled=KNOWN, processes=3)
    with pytest.raises(DataError, match=r"needs 2 groups for a batch of 6 .* has 1; lower"):
        check_groups(config, FEW.clamp(max=0), 40, labelled=KNOWN)
    with pytest.raises(DataError, match="but 17 of 40 have no label"):
        check_groups(config, FEW, 40, labelled=torch.arange(40))


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


def _mixed_totals(rank: int) -> list[float]:
    events: list[dict[str, Any]] = []
    config = TRAINING.model_copy(update={"batch_size": 12, "labelled_per_batch": 8})
    labels = TinyTask(30).splits["train"].labels.clone()
    labels[20:] = -100
    given = {"groups": labels, "labelled": torch.arange(20)}
    train(config, norm=False, log=RunLog(None, (events.append,)), **given)
    return [event["total"] for event in events if event["event"] == "step"]


def test_two_processes_are_one_with_a_part_by_group(tmp_path: Path) -> None:
    one = _mixed_totals(0)
    assert len(one) == 9
    for found in in_two_processes(tmp_path, _mixed_totals):
        assert found == pytest.approx(one, rel=1e-5)


def test_the_stages_of_a_system_are_shuffled() -> None:
    class Asks:
        teacher = None

        def stages(self) -> tuple[FitStage]:
            head = Distillation(student_net(), None, [], task=TinyTask(30))
            return (FitStage("head", head, ()),)

    prepare(Asks(), TinyTask(30), TRAINING)


LENGTHS = torch.randint(3, 90, (427,), generator=torch.Generator().manual_seed(8))
BY_LENGTH: dict[str, Any] = {"batch_size": 4, "lengths": LENGTHS}


def test_batches_by_length_have_each_sample_once_and_little_padding() -> None:
    found = feed(None, 427, **BY_LENGTH)
    assert sorted(torch.cat(found).tolist()) == list(range(427))
    assert [len(batch) for batch in found] == [4] * 106 + [3]

    def padding(batches: list[Tensor]) -> int:
        return sum(int((LENGTHS[batch].max() - LENGTHS[batch]).sum()) for batch in batches)

    assert padding(found) < 0.1 * padding(feed(None, 427, batch_size=4))
    whole = [int(LENGTHS[batch].max()) for batch in found[:106]]
    assert sorted(whole[:50]) != whole[:50]
    assert max(whole[:20]) > 2 * min(whole[:20])  # short and long ones lie mixed


def test_batches_by_length_are_new_in_each_epoch_and_shared_by_processes() -> None:
    one, two = (feed(None, 427, epoch=epoch, **BY_LENGTH) for epoch in (0, 1))
    assert [b.tolist() for b in one] == [b.tolist() for b in feed(None, 427, **BY_LENGTH)]
    assert {frozenset(b.tolist()) for b in one} != {frozenset(b.tolist()) for b in two}
    parts = [feed(None, 427, share=(rank, 2), **BY_LENGTH) for rank in (0, 1)]
    joined = [torch.cat(pair).tolist() for pair in zip(*parts, strict=True)]
    assert joined == [batch.tolist() for batch in one]


def test_by_length_needs_lengths_and_whole_batches_to_itself() -> None:
    config = FitConfig(steps=1, sampler="by_length", batch_size=4)
    check_groups(config, LENGTHS, 427)
    with pytest.raises(DataError, match="needs one group for each of the 427"):
        check_groups(config, None, 427)
    with pytest.raises(ValidationError, match="by_length"):
        FitConfig(steps=1, sampler="by_length", batch_size=4, labelled_per_batch=2)
