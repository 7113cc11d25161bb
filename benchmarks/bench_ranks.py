"""SP of the batch of all processes against SP of each process' own: a DDP step on two ranks.

    python benchmarks/bench_ranks.py [words]

The local loss is not the loss of the batch; it is here for what it costs. Each rank runs on one
thread. A step is forward, loss, backward with DDP's mean of the gradients, and an update; the ways
take turns step by step, and the ratio is that of wall times, since ranks wait for each other.
"""

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from harness import Line, line, main, memory
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from congener.losses import sp_loss
from congener.ops.collectives import Scope

RANKS = 2


@dataclass(frozen=True)
class Step:
    """A step of a small net on ``batch`` images a rank, with SP on its pooled features or its map.

    Attributes:
        name: what is compared, with its shapes.
        batch: images of each rank.
        pooled: whether the features are averaged over places, (batch, 64), or stay a map of
            64 x 64, (batch, 4096).
        goal: the largest ratio of the global loss' step to the local one's.
        rounds: how many pairs of steps are timed.
    """

    name: str
    batch: int
    pooled: bool
    goal: float
    rounds: int = 41


STEPS = [
    Step("sp over 2 ranks, pooled features 512 x 64, DDP step", 256, pooled=True, goal=1.05),
    Step("sp over 2 ranks, map 64 x 4096, DDP step", 32, pooled=False, goal=1.15),
]


def network() -> nn.Module:
    """A few convolutions on CIFAR's images, to a map of 64 channels and 8 x 8 places."""
    channels = (3, 32, 64, 64, 64)
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(itertools.pairwise(channels)):
        stride = 2 if i in (1, 2) else 1
        layers += [nn.Conv2d(before, after, 3, stride, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


def measure(step: Step) -> float:
    """The median over the rounds of the ratio of both ways' times, on this rank."""
    torch.manual_seed(dist.get_rank())
    images = torch.randn(step.batch, 3, 32, 32)
    teacher_map = torch.randn(step.batch, 64, 8, 8).relu()
    ways = {scope: prepare(step, scope, images, teacher_map) for scope in ("global", "local")}
    for _ in range(3):
        for way in ways.values():
            way()
    ratios = []
    for i in range(step.rounds):
        order = list(ways)[:: 1 if i % 2 else -1]
        seconds = {scope: timed(ways[scope]) for scope in order}
        ratios.append(seconds["global"] / seconds["local"])
    return statistics.median(ratios)


def prepare(step: Step, scope: Scope, images: Tensor, teacher_map: Tensor) -> Callable[[], None]:
    torch.manual_seed(0)
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def run() -> None:
        optimizer.zero_grad()
        features = [model(images), teacher_map]
        if step.pooled:
            features = [F.adaptive_avg_pool2d(x, 1).flatten(1) for x in features]
        sp_loss(*features, scope=scope).backward()
        optimizer.step()

    return run


def timed(way: Callable[[], None]) -> float:
    dist.barrier()
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def assert_global_is_one_process(step: Step) -> None:
    """Before anything is timed: the loss of all ranks is that of the batch they make."""
    torch.manual_seed(0)
    student, teacher = torch.randn(2, RANKS * 16, 64 if step.pooled else 4096)
    own = slice(16 * dist.get_rank(), 16 * (dist.get_rank() + 1))
    value, whole = sp_loss(student[own], teacher[own]), sp_loss(student, teacher, scope="local")
    torch.testing.assert_close(value, whole, rtol=1e-5, atol=0)


def serve(rank: int, store: str, results: str, names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    lines = []
    for step in STEPS:
        if step.name not in names:
            continue
        assert_global_is_one_process(step)
        before = memory("VmRSS")
        ratio = measure(step)
        peak = memory("VmHWM") - before
        lines.append(line(step.name, step.rounds, ratio=ratio, goal=step.goal, memory_mb=peak))
    if rank == 0:
        Path(results).write_text(json.dumps(lines))
    dist.destroy_process_group()


class Ranks:
    """The steps, in processes of their own."""

    names = tuple(step.name for step in STEPS)

    def run(self, names: Sequence[str]) -> Iterator[Line]:
        if not names:
            return
        with tempfile.TemporaryDirectory() as folder:
            results = Path(folder) / "results.json"
            store = str(Path(folder) / "store")
            torch.multiprocessing.spawn(serve, (store, str(results), names), nprocs=RANKS)
            yield from json.loads(results.read_text())


BENCHES = [Ranks()]

if __name__ == "__main__":
    main(BENCHES)
