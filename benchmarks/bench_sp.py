"""SP against the formula as published code writes it: value and gradient.

python benchmarks/bench_sp.py [words]
"""

from functools import partial

import peers
import torch
import torch.nn.functional as F
from harness import Comparison, main, of_pair
from torch import Tensor

from congener import losses

Pair = tuple[Tensor, Tensor]


def features(*shape: int, noise: float = 0.5) -> Pair:
    """Activations after a ReLU, and the teacher's beside noise; a small one: nearly converged."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(*shape, generator=generator).relu()
    student = teacher + noise * torch.randn(*shape, generator=generator)
    return student.relu(), teacher


def sp(student: Tensor, teacher: Tensor) -> Tensor:
    student_gram = F.normalize(student @ student.T, dim=1)
    teacher_gram = F.normalize(teacher @ teacher.T, dim=1)
    return (teacher_gram - student_gram).square().sum() / len(student) ** 2


def compare_sp(rows: int, width: int, goal: float, **goals: float) -> Comparison:
    return Comparison(
        f"sp {rows} x {width}",
        partial(features, rows, width),
        partial(of_pair, sp),
        partial(of_pair, losses.sp_loss),
        goal=goal,
        rtol=2e-5,
        rounds=5 if rows > 4000 else 9,
        peer=partial(of_pair, peers.sp),
        peer_package=peers.PACKAGE,
        same_as_peer=False,
        **goals,
    )


def alone(rows: int, width: int, **goals: float) -> Comparison:
    """What the plain form cannot hold."""
    inputs = partial(features, rows, width)
    return Comparison(
        f"sp {rows} x {width}", inputs, None, partial(of_pair, losses.sp_loss), rounds=3, **goals
    )


BENCHES = [
    compare_sp(128, 64, 1.1),
    compare_sp(128, 2048, 1.1),
    compare_sp(1024, 64, 0.3, memory_goal=12),
    compare_sp(1024, 512, 1.1, memory_goal=30),
    compare_sp(2048, 512, 0.7, memory_goal=40),
    compare_sp(8192, 64, 0.02, memory_goal=25),
    compare_sp(8192, 512, 0.15, memory_goal=90),
    compare_sp(8192, 2048, 1.1, memory_goal=280),
    alone(65536, 64, memory_goal=20, seconds_goal=0.15),
    alone(65536, 512, memory_goal=160, seconds_goal=5),
    Comparison(
        "sp 8192 x 64, nearly converged",
        partial(features, 8192, 64, noise=1e-3),
        partial(of_pair, sp),
        partial(of_pair, losses.sp_loss),
        goal=0.035,
        memory_goal=40,
        rtol=1e-2,  # plain's own rounding
        rounds=5,
    ),
]

if __name__ == "__main__":
    main(BENCHES)
