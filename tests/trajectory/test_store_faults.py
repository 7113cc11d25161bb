"""Two hundred faults of a teacher store: each is refused in a sentence, or nothing is wrong.

Never is an answer read that is not, bit for bit, what the teacher said about that sample and view.
Where a sentence says which file to remove, removing it and building again heals the store.
"""

import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from tests.systems.tiny import TinyTask, teacher_net

from congener.engine import FitConfig, build_store, fields_of
from congener.engine.feed import in_training, view_batches
from congener.errors import CongenerError
from congener.teachers import CachedTeacher, Field, FrozenTeacher, TeacherStore, shards
from congener.teachers import store as stores
from congener.types import Batch, Outputs

SAMPLES, VIEWS, SEED = 60, 2, 3
TAPS = ("hidden", "hidden.0")
CONFIG = FitConfig(epochs=1, batch_size=16, views=VIEWS, device="cpu")
IDENTITY = {"teacher weights": "3f2a", "transform": "shift", "seed": "3", "data set": "c0ffee"}


class Shifted(TinyTask):
    """Each view moves each sample by another amount."""

    def prepare(self, batch: Batch, *, train: bool, seed: int, epoch: int) -> Batch:
        moved = 0.3 * (epoch + 1) * (1 + batch["index"][:, None] % 5) + 0.01 * seed
        return batch | {"image": batch["image"] + moved}


TASK = Shifted(SAMPLES)


def teacher() -> FrozenTeacher:
    return FrozenTeacher(teacher_net(), TASK, TAPS)


def seen(view: int, task: TinyTask = TASK, seed: int = SEED) -> Batch:
    raw = next(view_batches(task, task.splits["train"], torch.arange(SAMPLES), batch_size=SAMPLES,
                            seed=seed, view=view, workers=0))  # fmt: skip
    return in_training(task, raw, CONFIG, torch.device("cpu"), seed=seed, view=view)


FIELDS = fields_of(teacher(), seen(0))
RIGHT = {view: teacher()(seen(view)) for view in range(VIEWS)}


def create(folder: Path, **changes: Any) -> TeacherStore:
    given: dict[str, Any] = {
        "identity": IDENTITY, "fields": FIELDS, "samples": SAMPLES, "views": VIEWS, "versions": {},
        "shard_bytes": 3000,
    }  # fmt: skip
    return TeacherStore.create(folder, **given | changes)


def use(folder: Path, random: Random) -> None:
    """Open a store as a run does, build what it lacks, and read all of it."""
    store = create(folder)
    build_store(store, teacher(), TASK, TASK.splits["train"], CONFIG, seed=SEED)
    read(store, random)


def read(store: TeacherStore, random: Random) -> None:
    cached = CachedTeacher(store, TAPS)
    for view in range(VIEWS):
        batch = seen(view)
        places = torch.tensor(random.sample(range(SAMPLES), SAMPLES))
        for some in places.split(17):
            said = cached({k: v[some] if torch.is_tensor(v) else v for k, v in batch.items()})
            assert same(said, RIGHT[view], some), "a wrong batch"


def same(said: Outputs, right: Outputs, some: torch.Tensor) -> bool:
    return torch.equal(said.logits, right.logits[some]) and all(
        torch.equal(said.features[path], right.features[path][some]) for path in TAPS
    )


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "store"
    use(folder, Random(0))
    return folder


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of another teacher, of the same shapes."""
    folder = tmp_path_factory.mktemp("foreign") / "store"
    other = teacher()
    with torch.no_grad():
        other.model.classifier.bias.add_(1)
    store = create(folder, identity=IDENTITY | {"teacher weights": "91bc"})
    build_store(store, other, TASK, TASK.splits["train"], CONFIG, seed=SEED)
    return folder


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def heal(folder: Path, random: Random) -> int:
    """Do what the sentences say until the store is right; how many there were."""
    for count in range(len(files(folder)) + 2):
        try:
            use(folder, random)
        except CongenerError as error:
            found = re.findall(r"(/\S+(?:\.safetensors|manifest\.json)) ", str(error))
            if "remove that folder" in str(error):
                shutil.rmtree(folder)
            else:
                Path(found[0]).unlink()
        else:
            return count
    raise AssertionError("the store does not heal")


def flip(path: Path, random: Random) -> None:
    data = bytearray(path.read_bytes())
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, random: Random) -> None:
    os.truncate(path, random.randrange(path.stat().st_size))


def swap(path: Path, other: Path) -> None:
    mine = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(mine)


def exchange_payloads(path: Path, other: Path) -> None:
    """Swap all but the headers."""
    one, two = path.read_bytes(), other.read_bytes()
    header, its = (8 + int.from_bytes(data[:8], "little") for data in (one, two))
    path.write_bytes(one[:header] + two[its:])
    other.write_bytes(two[:its] + one[header:])


def damage_shard(folder: Path, foreign: Path, random: Random) -> None:
    for _ in range(random.choice([1, 1, 1, 2, 40])):
        flip(random.choice(files(folder)), random)


def damage_manifest(folder: Path, foreign: Path, random: Random) -> None:
    flip(folder / "manifest.json", random)


def truncate_something(folder: Path, foreign: Path, random: Random) -> None:
    truncate(random.choice([*files(folder), folder / "manifest.json"]), random)


def swap_shards(folder: Path, foreign: Path, random: Random) -> None:
    random.choice([swap, exchange_payloads])(*random.sample(files(folder), 2))


def bring_a_foreign_shard(folder: Path, foreign: Path, random: Random) -> None:
    theirs = random.choice(files(foreign))
    shutil.copy(theirs, folder / theirs.relative_to(foreign))


def bring_a_foreign_payload(folder: Path, foreign: Path, random: Random) -> None:
    theirs = random.choice(files(foreign))
    mine = folder / theirs.relative_to(foreign)
    data, its = mine.read_bytes(), theirs.read_bytes()
    size = 8 + int.from_bytes(data[:8], "little")
    mine.write_bytes(data[:size] + its[8 + int.from_bytes(its[:8], "little") :])


def lose_a_shard(folder: Path, foreign: Path, random: Random) -> None:
    random.choice(files(folder)).unlink()


def bring_a_foreign_manifest(folder: Path, foreign: Path, random: Random) -> None:
    shutil.copy(foreign / "manifest.json", folder)


FAULTS: dict[Callable[[Path, Path, Random], None], int] = {
    damage_shard: 60, damage_manifest: 25, truncate_something: 25, swap_shards: 15,
    bring_a_foreign_shard: 6, bring_a_foreign_payload: 6, lose_a_shard: 6,
    bring_a_foreign_manifest: 2,
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_damage(fault, sound, foreign, tmp_path) -> None:
    random, refused = Random(fault.__name__), 0
    for number in range(FAULTS[fault]):
        folder = tmp_path / str(number)
        shutil.copytree(sound, folder)
        fault(folder, foreign, random)
        refused += heal(folder, random) > 0
        shutil.rmtree(folder)
    # A flip may hit what nothing depends on; what is lost is built without a word.
    if fault is lose_a_shard:
        assert refused == 0
    elif fault is damage_manifest:
        assert refused > 15
    else:
        assert refused == FAULTS[fault]


OTHERS: list[dict[str, Any]] = [
    {"identity": IDENTITY | {"teacher weights": "91bc"}},
    {"identity": IDENTITY | {"transform": "shift, flip"}},
    {"identity": IDENTITY | {"seed": "4"}},
    {"identity": IDENTITY | {"data set": "decade"}},
    {"identity": IDENTITY | {"precision": "bf16"}},
    {"fields": FIELDS[:2]},
    {"fields": [*FIELDS, Field("dropout", (16,), "float32")]},
    {"fields": [Field("logits", (3,), "float32", "fp16"), *FIELDS[1:]]},
    {"views": 1},
    {"views": 3},
    {"samples": 59},
    {"samples": 61},
]


@pytest.mark.parametrize("changes", OTHERS)
def test_the_store_of_something_else(changes, sound) -> None:
    with pytest.raises(CongenerError, match=r"was built for something else: its .*, and now it is"):
        create(sound, **changes)


UNSEEN: dict[str, Callable[[], Batch]] = {
    "another order of the data": lambda: seen(0) | {"index": torch.arange(SAMPLES).flip(0)},
    "data shifted by one": lambda: seen(0) | {"index": torch.arange(SAMPLES).roll(1)},
    "another transform": lambda: seen(0) | {"image": seen(0)["image"].flip(1)},
    "another seed": lambda: seen(0, seed=4),
    "another view": lambda: seen(1) | {"view": 0},
    "one view more": lambda: seen(2),
    "other data": lambda: seen(0) | {"image": seen(0)["image"].roll(1, 0)},
    "no transform": lambda: seen(0) | {"image": TASK.splits["train"].images},
}


@pytest.mark.parametrize("change", UNSEEN, ids=lambda name: name.replace(" ", "_"))
def test_what_no_manifest_tells(change, sound) -> None:
    """The store is right and the batch is of something else."""
    with pytest.raises(CongenerError, match="saw sample"):
        CachedTeacher(create(sound), TAPS)(UNSEEN[change]())


def child(work: Callable[[], None]) -> int:
    """Do something in a process of its own; its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    finally:
        os._exit(0)


def end(pid: int, *, kill: bool = True) -> None:
    if kill:
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def slow() -> None:
    """In a child: writing takes long, so that a signal finds it at work."""

    def wait(_file: int) -> None:
        time.sleep(0.005)

    stores.os.fsync = wait  # type: ignore[assignment]
    checksum = shards.Layout.checksum

    def slowly(*arguments: Any) -> int:
        time.sleep(0.0005)
        return checksum(*arguments)

    shards.Layout.checksum = slowly  # type: ignore[method-assign]


def build(folder: Path) -> None:
    store = create(folder)
    build_store(store, teacher(), TASK, TASK.splits["train"], CONFIG, seed=SEED)


def build_slowly(folder: Path) -> None:
    slow()
    build(folder)


def dying_at(write: int, folder: Path) -> None:
    """In a child: build, and die at one of the writes, with half of it done."""
    layout, left = shards.Layout, [write]
    whole = layout.write

    class Half:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: Any) -> None:
            left[0] -= 1
            data = bytes(data)
            self.file.write(data if left[0] else data[: len(data) // 2])
            self.file.flush()
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    layout.write = lambda self, file, tensors: whole(self, Half(file), tensors)  # type: ignore
    build(folder)


def settled(folder: Path, random: Random) -> None:
    """What is there is right, and the rest is built without a word."""
    if (folder / "manifest.json").exists():
        there = TeacherStore.open(folder)
        assert len(there.verify()) == len(there.missing())
    use(folder, random)
    assert not list(folder.rglob("*draft*"))


def test_killed_at_a_write(tmp_path) -> None:
    random, writes = Random(1), 9 * len(create(tmp_path / "some").shards)
    for number in range(12):
        folder = tmp_path / str(number)
        end(child(lambda: dying_at(random.randrange(1, writes), folder)), kill=False)  # noqa: B023
        random.random()  # the child's draw was its own
        assert create(folder).missing()
        settled(folder, random)


def test_killed_at_any_moment(tmp_path) -> None:
    random, halfway, started = Random(2), 0, time.monotonic()
    end(child(lambda: build_slowly(tmp_path / "whole")), kill=False)
    took = time.monotonic() - started  # on this machine, as busy as it is
    for number in range(10):
        folder = tmp_path / str(number)
        pid = child(lambda: build_slowly(folder))  # noqa: B023
        time.sleep(random.uniform(0.0, took))
        end(pid)
        halfway += 0 < len(files(folder)) < len(create(folder).shards)
        settled(folder, random)
    assert halfway


def test_two_builders_of_which_one_is_killed(tmp_path) -> None:
    random = Random(3)
    for number in range(7):
        folder = tmp_path / str(number)
        pids = [child(lambda: build_slowly(folder)) for _ in range(2)]  # noqa: B023
        time.sleep(random.uniform(0.02, 0.12))
        end(pids.pop(random.randrange(2)))
        end(pids[0], kill=False)  # it takes over what the other left
        store = TeacherStore.open(folder)
        assert store.missing() == []
        settled(folder, random)


def test_killed_while_reading(sound, tmp_path) -> None:
    random = Random(4)
    folder = tmp_path / "store"
    shutil.copytree(sound, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def read_on() -> None:
        while True:
            read(create(folder), random)

    for _ in range(6):
        pid = child(read_on)
        time.sleep(random.uniform(0.0, 0.05))
        end(pid)
        assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
        settled(folder, random)


def test_there_are_two_hundred() -> None:
    killed = 12 + 10 + 7 + 6
    assert sum(FAULTS.values()) + len(OTHERS) + len(UNSEEN) + killed == 200
