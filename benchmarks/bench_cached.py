"""A step whose teacher was asked before: against the student alone, and against torchdistill.

    python benchmarks/bench_cached.py [words]

WRN-40-2 to WRN-16-1, images of CIFAR's shape, batch 64, one thread; answers are kept in fp32, the
map with 8192 numbers a sample. The files are in the page cache. torchdistill reads one file a
sample (its releases before 1.1.5 could).
"""

from functools import partial

import loops
import peers
from harness import main
from races import Race, Ratio

ALONE, KD, MAPS = "the student alone", "cached, KD", "cached"
LOOPS = {
    "by hand": loops.by_hand,
    ALONE: partial(loops.ours, learns="", keep_memory=True),
    KD: partial(loops.ours_cached, learns="kd", keep_memory=True),
    MAPS: partial(loops.ours_cached, keep_memory=True),
    "cached, fast": partial(loops.ours_cached, **loops.FAST),
    "cached, fast, bf16": partial(loops.ours_cached, **loops.FAST, precision="bf16"),
    "live": partial(loops.ours, keep_memory=True),
    "torchdistill": peers.torchdistill,
    "torchdistill, cached": peers.torchdistill_cached,
}

BENCHES = [
    Race(
        LOOPS,
        [
            Ratio("cached step: KD vs the student alone", KD, ALONE, 1.02),
            Ratio("cached step: KD + SP on an 8192-wide map vs the student alone", MAPS, ALONE,
                  1.05),
            Ratio("cached step: KD + SP vs the live teacher, both ours", MAPS, "live"),
            Ratio("cached step: fast vs torchdistill", "cached, fast", "torchdistill", 0.25),
            Ratio("cached step: fast, bf16, vs torchdistill", "cached, fast, bf16",
                  "torchdistill", 0.18),
            Ratio("cached step: vs torchdistill's cached step", MAPS, "torchdistill, cached",
                  0.88),
            Ratio("cached step: fast, vs torchdistill's cached step", "cached, fast",
                  "torchdistill, cached"),
        ],
        alike={
            MAPS: 1e-3,
            "cached, fast": 0.03,
            "live": 1e-3,
            "torchdistill, cached": 1e-3,
        },
        rounds=5,
        starts=3,
        warm_up=loops.SAMPLES // loops.BATCH + 1,  # every page and file once
        prepare=loops.keep_answers,
    )
]  # fmt: skip

if __name__ == "__main__":
    main(BENCHES)
