"""How time and memory of the relational losses and of the store grow; no goals, a table.

    python benchmarks/bench_scaling.py [words]

Value and gradient over batch, width and ranks; a random batch of 128 rows over samples. ``plain``
is the published formula, where it can run.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from bench_relations import cckd, features, rkd
from bench_sp import sp
from bench_store import CLASSES, Given, from_memmap, from_store
from harness import Bench, Comparison, Line, forget_peak, line, main, memory, of_pair
from torch import Tensor

from congener import losses

Loss = Callable[[Tensor, Tensor], Tensor]


def correlation(student: Tensor, teacher: Tensor) -> Tensor:
    """Of the rows, Pearson's."""
    s, t = (x - x.mean(dim=1, keepdim=True) for x in (student, teacher))
    return torch.nn.functional.cosine_similarity(s, t, dim=1, eps=1e-8)


def dist_plain(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = student.softmax(dim=1), teacher.softmax(dim=1)
    return 2 - correlation(s, t).mean() - correlation(s.T, t.T).mean()


def scaling(
    name: str, plain: Loss, loss: Loss, shapes: Sequence[tuple[int, int]], *, up_to: int
) -> list[Bench]:
    """A comparison for each shape; ``plain`` up to a batch."""
    return [
        Comparison(
            f"scaling: {name} {rows} x {width}",
            partial(features, rows, width),
            partial(of_pair, plain) if rows <= up_to else None,
            partial(of_pair, loss),
            rtol=1e-2,  # other benches say how exact they are
            rounds=3,
        )
        for rows, width in shapes
    ]


class Ranks:
    """SP of one batch over some ranks: what each of them spends and needs."""

    counts = (1, 2, 4)
    rows, width, rounds = 1024, 512, 9

    @property
    def names(self) -> list[str]:
        return [
            f"scaling: sp {self.rows} x {self.width} over {count} ranks" for count in self.counts
        ]

    def run(self, names: Sequence[str]) -> Iterator[Line]:
        alone = None
        for name, count in zip(self.names, self.counts, strict=True):
            if not names or (name not in names and count > 1):
                continue
            seconds, peak = self.measure(count)
            alone = alone or seconds
            if name in names:
                yield line(name, self.rounds, ratio=seconds / alone, memory_mb=peak,
                           seconds=round(seconds, 6))  # fmt: skip

    def measure(self, count: int) -> tuple[float, float]:
        """CPU seconds and peak of the first rank."""
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(self.serve, (folder, count), nprocs=count)
            seconds, peak = json.loads((Path(folder) / "result.json").read_text())
        return seconds, peak

    def serve(self, rank: int, folder: str, count: int) -> None:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=count)
        student, teacher = (
            x.tensor_split(count)[rank].clone().requires_grad_(number == 0)
            for number, x in enumerate(features(self.rows, self.width))
        )
        seconds = []
        before = forget_peak()
        for _ in range(self.rounds):
            started = time.process_time()
            losses.sp_loss(student, teacher).backward()
            seconds.append(time.process_time() - started)
        peak = memory("VmHWM") - before
        if rank == 0:
            result = [sorted(seconds)[len(seconds) // 2], peak]
            (Path(folder) / "result.json").write_text(json.dumps(result))
        dist.destroy_process_group()


WIDE = [(64, 64), (256, 64), (256, 512), (1024, 64), (1024, 512), (1024, 2048)]
LARGE = [(4096, 64), (4096, 512)]
LOGITS = [(64, 100), (256, 1000), (1024, 1000), (4096, 1000)]
SAMPLES = (10_000, 100_000, 1_000_000)

BENCHES: list[Bench] = [
    *scaling("sp", sp, losses.sp_loss, WIDE + LARGE, up_to=4096),
    *scaling("cckd", cckd, losses.cckd_loss, WIDE + LARGE, up_to=4096),
    *scaling("rkd", rkd, losses.rkd_loss, [s for s in WIDE if s[0] * s[1] < 10**6], up_to=256),
    *scaling("dist", dist_plain, losses.dist_loss, LOGITS, up_to=4096),
    Ranks(),
    *[
        Comparison(
            f"scaling: store, {samples:,} x {CLASSES} logits", partial(Given, samples, CLASSES),
            from_memmap, from_store, rtol=1e-3,
        )
        for samples in SAMPLES
    ],
]  # fmt: skip

if __name__ == "__main__":
    main(BENCHES)
