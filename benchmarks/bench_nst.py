"""NST by matrix products against every pair of channels at every place: value and gradient.

python benchmarks/bench_nst.py [words]
"""

from functools import partial

import torch
import torch.nn.functional as F
from harness import Comparison, main, of_pair
from torch import Tensor

from congener import losses

Pair = tuple[Tensor, Tensor]
SHAPES = {(64, 64, 8, 8): 0.037, (16, 128, 8, 8): 0.037, (64, 32, 16, 16): 0.037}
"""(batch, channels, height, width) of stages of CIFAR networks, and the goal: pairs are C²."""


def maps(shape: tuple[int, ...]) -> Pair:
    """Maps after a ReLU, the student's near the teacher's."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(*shape, generator=generator)
    return (teacher + torch.randn(*shape, generator=generator)).relu(), teacher.relu()


def kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a.unsqueeze(1) * b.unsqueeze(2)).sum(dim=3).square()


def broadcast(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = (F.normalize(x.flatten(2), dim=2) for x in (student, teacher))
    return kernel(t, t).mean() + kernel(s, s).mean() - 2 * kernel(s, t).mean()


BENCHES = [
    Comparison(
        name=f"nst {'x'.join(map(str, shape))}",
        inputs=partial(maps, shape),
        plain=partial(of_pair, broadcast),
        ours=partial(of_pair, losses.nst_loss),
        goal=goal,
        memory_ratio_goal=0.15,
        rtol=2e-5,
        rounds=5,
    )
    for shape, goal in SHAPES.items()
]

if __name__ == "__main__":
    main(BENCHES)
