"""``import congener.losses`` against ``import torch``: CPU time of fresh processes, in turns.

python benchmarks/bench_import.py [words]
"""

import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence

from harness import Line, line, main, ratio

ROUNDS = 11
GOAL = 1.15


def spent(statement: str) -> tuple[float, float]:
    """CPU seconds and peak memory, MB, of a process that does nothing else."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = (
        f"{statement}; import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, int(done.stdout) / 1024


class Import:
    names = ("import: congener.losses vs torch",)

    def run(self, names: Sequence[str]) -> Iterator[Line]:
        if not names:
            return
        for statement in ("import congener.losses", "import torch"):
            spent(statement)  # the files are read and compiled now
        pairs = [(spent("import congener.losses"), spent("import torch")) for _ in range(ROUNDS)]
        ours, plain = zip(*pairs, strict=True)
        found = ratio([seconds for seconds, _ in ours], [seconds for seconds, _ in plain])
        beyond = max(mb for _, mb in ours) - max(mb for _, mb in plain)
        yield line(self.names[0], ROUNDS, ratio=found, goal=GOAL, memory_mb=beyond)


BENCHES = [Import()]

if __name__ == "__main__":
    main(BENCHES)
