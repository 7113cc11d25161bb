"""A step with a live teacher: ours against loops by hand and other toolkits' loops.

    python benchmarks/bench_step.py [words]

WRN-40-2 to WRN-16-1, images of CIFAR's shape, cross-entropy + KD + SP, batch 64, one thread.
"""

from functools import partial

import loops
import peers
import torch
import torch.nn.functional as F
from harness import Comparison, main
from races import Race, Ratio
from torch import Tensor

KEPT, KEPT_BY_HAND = "ours, keeping memory", "by hand, keeping memory"
LOOPS = {
    "by hand": loops.by_hand,
    KEPT_BY_HAND: partial(loops.by_hand, keeps_memory=True),
    "by hand, again": partial(loops.by_hand, keeps_memory=True),
    "by hand, fast": partial(loops.by_hand, fast=True, keeps_memory=True),
    "RepDistiller's way": loops.repdistiller,
    "mdistiller's way": loops.mdistiller,
    "torchdistill": peers.torchdistill,
    "torchdistill, teacher in evaluation": partial(peers.torchdistill, corrected=True),
    "ours": loops.ours,
    KEPT: partial(loops.ours, keep_memory=True),
    "ours, fast": partial(loops.ours, **loops.FAST),
    "ours, fast, bf16 teacher": partial(loops.ours, **loops.FAST, teacher_precision="bf16"),
    "ours, fast, bf16": partial(loops.ours, **loops.FAST, precision="bf16"),
    "ours, fast, int8 teacher": partial(loops.ours, **loops.FAST, teacher_precision="int8"),
}
SAME, OTHER_LAYOUT = 1e-3, 0.03
"""Of the movement over some steps: what another order of summation makes of it."""


Operands = dict[torch.dtype, tuple[Tensor, Tensor]]


def operands() -> Operands:
    """Of a convolution of the teacher's first stage, in channels last."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(loops.BATCH, 32, 32, 32, generator=generator)
    weight = torch.randn(32, 32, 3, 3, generator=generator)
    maps, weight = (x.contiguous(memory_format=torch.channels_last) for x in (maps, weight))
    return {kind: (maps.to(kind), weight.to(kind)) for kind in (torch.float32, torch.bfloat16)}


def convolve(given: Operands, *, dtype: torch.dtype) -> list[Tensor]:
    return [F.conv2d(*given[dtype], padding=1)]


BENCHES = [
    Comparison(
        "machine: a convolution in bf16 vs fp32, by torch alone",
        operands,
        partial(convolve, dtype=torch.float32),
        partial(convolve, dtype=torch.bfloat16),
        rtol=0.05,
    ),
    Race(
        LOOPS,
        [
            Ratio("noise: a step by hand vs itself", "by hand, again", KEPT_BY_HAND),
            Ratio("step: ours vs by hand, both keeping memory", KEPT, KEPT_BY_HAND, 1.02,
                  memory_ratio_goal=1.02, faults_goal=100),
            Ratio("step: ours vs by hand, both as they come", "ours", "by hand", 1.05),
            Ratio("step: ours, fast, vs by hand, fast", "ours, fast", "by hand, fast", 1.02),
            Ratio("step: ours, fast, vs by hand", "ours, fast", "by hand", 0.77),
            Ratio("step: bf16 teacher vs by hand", "ours, fast, bf16 teacher", "by hand", 0.53),
            Ratio("step: bf16 both vs by hand", "ours, fast, bf16", "by hand", 0.45),
            Ratio("step: int8 teacher vs by hand", "ours, fast, int8 teacher", "by hand", 0.33),
            Ratio("step: ours, fast, vs torchdistill", "ours, fast", "torchdistill", 0.80),
            Ratio("step: ours, fast, vs torchdistill's loop with teacher.eval()",
                  "ours, fast", "torchdistill, teacher in evaluation"),
            Ratio("step: bf16 teacher vs torchdistill",
                  "ours, fast, bf16 teacher", "torchdistill", 0.53),
            Ratio("step: bf16 both vs torchdistill", "ours, fast, bf16", "torchdistill", 0.45),
            Ratio("step: ours vs RepDistiller's way", "ours", "RepDistiller's way"),
            Ratio("step: ours vs mdistiller's way", "ours", "mdistiller's way"),
        ],
        rounds=5,
        starts=3,
        alike={
            KEPT_BY_HAND: SAME,
            KEPT: SAME,
            "by hand, fast": OTHER_LAYOUT,
            "RepDistiller's way": SAME,
            "mdistiller's way": SAME,
            "torchdistill, teacher in evaluation": SAME,
            "ours": SAME,
            "ours, fast": OTHER_LAYOUT,
        },
    )
]  # fmt: skip

if __name__ == "__main__":
    main(BENCHES)
