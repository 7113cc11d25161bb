"""The teacher store against a plain memory-mapped file and against what others keep answers in.

    python benchmarks/bench_store.py [words]

A batch is 128 random rows: logits of 100 classes (a float16 of each, 50,000 samples), or features
of 8192 numbers (16 KiB a row). Files are in the page cache, but for the lines that say cold: their
pages are given up before each batch (``posix_fadvise``), and the bytes that came from the disk
are counted to prove it. Those lines and the building are wall times.
"""

import importlib.util
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Bench, Comparison, Line, line, main, ratio
from torch import Tensor

from congener.teachers.formats import Field
from congener.teachers.store import WITNESS, TeacherStore

SAMPLES, FEW, CLASSES, WIDTH, BATCH = 50_000, 5_000, 100, 8192, 128
MAPS = 16_384
"""Samples of the lines with features: 256 MB in float16."""


class Given:
    """What every way of keeping has to give rows of; it is written when first asked for.

    Attributes:
        values: (samples, numbers).
        batches: the rows of some batches.
    """

    def __init__(self, samples: int, width: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.values = 3 * torch.randn(samples, width, generator=generator)
        self.batches = [torch.randint(samples, (BATCH,), generator=generator) for _ in range(50)]
        self._turns = itertools.cycle(self.batches)
        self._folder = tempfile.TemporaryDirectory()
        self._made: Any = None

    def rows(self) -> Tensor:
        """The next batch."""
        return next(self._turns)

    def made(self, write: Callable[[Path, Tensor], Any]) -> Any:
        if self._made is None:
            self._made = write(Path(self._folder.name), self.values)
        return self._made


def field_of(values: Tensor) -> Field:
    name = "logits" if values.shape[1] < WIDTH else "map"
    return Field(name, tuple(values.shape[1:]), "float32", "fp16")


def write_store(folder: Path, values: Tensor) -> TeacherStore:
    field = field_of(values)
    store = TeacherStore.create(
        folder, {"teacher": "of the benchmark"}, [field],
        samples=len(values), views=1, versions={},
    )  # fmt: skip
    for shard in store.missing():
        with store.claim(shard) as draft:
            assert draft is not None
            rows = values[shard.first : shard.last + 1]
            store.write(draft, field.encode(rows) | {WITNESS: torch.zeros(len(rows))})
    return store


def write_memmap(folder: Path, values: Tensor) -> np.ndarray:
    np.save(folder / "plain.npy", values.half().numpy())
    return np.load(folder / "plain.npy", mmap_mode="r")


def write_files(folder: Path, values: Tensor) -> Path:
    """A file a sample, named and filled as torchdistill's releases before 1.1.5 did."""
    for place, row in enumerate(values):
        said = {"teacher_outputs": row.clone(), "extracted_outputs": {".": {"output": row.clone()}}}
        path = file_of(folder, place)
        path.parent.mkdir(exist_ok=True)
        torch.save(said, path)
    return folder


def file_of(folder: Path, place: int) -> Path:
    digits = f"{place:04d}"
    return folder / digits[-4:] / f"{digits}.pt"


def write_arrow(folder: Path, values: Tensor) -> Any:
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"logits": values.numpy()}).save_to_disk(folder / "arrow")
    return datasets.load_from_disk(folder / "arrow").with_format("numpy")


def from_store(given: Given) -> Sequence[Tensor]:
    store = given.made(write_store)
    name = next(iter(store.fields))
    return [store.read([name], given.rows(), 0)[name]]


def from_memmap(given: Given) -> Sequence[Tensor]:
    plain = given.made(write_memmap)
    return [torch.from_numpy(plain[given.rows().numpy()]).float()]


def from_files(given: Given) -> Sequence[Tensor]:
    folder = given.made(write_files)
    rows = given.rows().tolist()
    said = [torch.load(file_of(folder, row), weights_only=False) for row in rows]
    return [torch.stack([each["teacher_outputs"] for each in said])]


def from_arrow(given: Given) -> Sequence[Tensor]:
    plain = given.made(write_arrow)
    return [torch.from_numpy(np.stack(plain[given.rows().tolist()]["logits"]))]


def opened(given: Given) -> Sequence[Tensor]:
    """Open the folder, and read a first batch."""
    store = TeacherStore.open(given.made(write_store).folder)
    name = next(iter(store.fields))
    return [store.read([name], given.batches[0], 0)[name]]


class Builder:
    """How fast rows are written, the disk waited for; and what they take on it."""

    names = (
        "store: built, MB a second",
        "store: size over the float16 numbers, 100 classes",
        "store: size over the float16 numbers, 1000 classes",
    )
    rounds = 5

    def run(self, names: Sequence[str]) -> Iterator[Line]:
        if self.names[0] in names:
            speed = statistics.median(self.speed() for _ in range(self.rounds))
            met = [speed >= 300]
            yield line(self.names[0], self.rounds, more_goals=met, mb_per_second=round(speed),
                       mb_per_second_goal=300)  # fmt: skip
        for name, classes in zip(self.names[1:], (100, 1000), strict=True):
            if name in names:
                given = Given(FEW, classes)
                size = given.made(write_store).nbytes / (2 * given.values.numel())
                yield line(name, 1, more_goals=[size <= 1.01], size_ratio=round(size, 4),
                           size_ratio_goal=1.01)  # fmt: skip

    def speed(self) -> float:
        given = Given(FEW, WIDTH)
        given.values = given.values.half().float()
        started = time.perf_counter()
        given.made(write_store)
        return 2e-6 * given.values.numel() / (time.perf_counter() - started)


class Cold:
    """Batches of which no page is in memory."""

    names = ("store: cold, features, vs a plain memmap",)
    rounds = 15

    def run(self, names: Sequence[str]) -> Iterator[Line]:
        if not names:
            return
        given, plain = Given(MAPS, WIDTH), Given(MAPS, WIDTH)
        store, folder = given.made(write_store), plain.made(write_memmap).filename
        times: dict[str, list[float]] = {"store": [], "memmap": []}
        read = dict.fromkeys(times, 0)
        for rows in given.batches[: self.rounds]:
            paths = sorted(store.folder.glob("view-*/*.safetensors"))
            for way, files in (("store", paths), ("memmap", [Path(folder)])):
                forget(files)
                before = from_disk()
                times[way].append(self.seconds(way, store.folder, Path(folder), rows))
                read[way] += from_disk() - before
        payload = self.rounds * BATCH * WIDTH * 2
        cold = all(count >= 0.9 * payload for count in read.values())
        seconds = statistics.median(times["store"])
        found = ratio(times["store"], times["memmap"])
        yield line(
            self.names[0], self.rounds, ratio=found, goal=0.125, more_goals=[cold, seconds <= 0.01],
            seconds=round(seconds, 5), seconds_goal=0.01, cold=cold,
            mb_read=round(read["store"] / 1e6), mb_read_other=round(read["memmap"] / 1e6),
        )  # fmt: skip

    def seconds(self, way: str, folder: Path, plain: Path, rows: Tensor) -> float:
        """Opened anew, for a page that is mapped is not given up."""
        if way == "store":
            store = TeacherStore.open(folder)
            started = time.perf_counter()
            store.read(["map"], rows, 0)
        else:
            file = np.load(plain, mmap_mode="r")
            started = time.perf_counter()
            torch.from_numpy(file[rows.numpy()]).float()
        return time.perf_counter() - started


def forget(files: Sequence[Path]) -> None:
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def from_disk() -> int:
    """Bytes that this process had the system fetch from storage."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(each.split()[1]) for each in lines if each.startswith("read_bytes"))


def reading(
    name: str, samples: int, width: int, plain: Callable[[Given], Sequence[Tensor]], goal: float,
    *, package: str | None = None,
) -> list[Bench]:  # fmt: skip
    """A comparison, where the package of the other way is installed."""
    if package is not None and importlib.util.find_spec(package) is None:
        return []
    given = partial(Given, samples, width)
    return [Comparison(f"store: {name}", given, plain, from_store, goal=goal, rtol=1e-3)]


logits = f"logits {SAMPLES:,} x {CLASSES}"
BENCHES: list[Bench] = [
    *reading(f"{logits} vs a plain memmap", SAMPLES, CLASSES, from_memmap, 1.5),
    *reading(f"features {FEW:,} x {WIDTH} vs a plain memmap", FEW, WIDTH, from_memmap, 1.5),
    *reading("logits vs torchdistill's files", FEW, CLASSES, from_files, 0.01),
    *reading("logits vs datasets (Arrow)", SAMPLES, CLASSES, from_arrow, 0.1, package="datasets"),
    Comparison(
        "store: opened, and a first batch", partial(Given, SAMPLES, CLASSES), None, opened,
        seconds_goal=0.005,
    ),
    Builder(),
    Cold(),
]  # fmt: skip

if __name__ == "__main__":
    main(BENCHES)
