"""IUSP without matrices of frames against the formula that holds them: value and gradient.

python benchmarks/bench_iusp.py [words]
"""

from functools import partial

import torch
import torch.nn.functional as F
from harness import Comparison, main, of_pair
from torch import Tensor

from congener import losses

Shape = tuple[int, int, int]


def features(shape: Shape, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    """Activations after a ReLU, and the teacher's beside noise; a small one: nearly converged."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(*shape, generator=generator).relu()
    student = teacher + noise * torch.randn(*shape, generator=generator)
    return student.relu(), teacher


def dense(student: Tensor, teacher: Tensor) -> Tensor:
    student_gram = F.normalize(student @ student.mT, dim=2)
    teacher_gram = F.normalize(teacher @ teacher.mT, dim=2)
    return (teacher_gram - student_gram).square().mean()


def compare(
    shape: Shape, goal: float, memory_ratio_goal: float | None = None, *, near: bool = False
) -> Comparison:
    return Comparison(
        name=f"iusp {' x '.join(map(str, shape))}" + ", nearly converged" * near,
        inputs=partial(features, shape, noise=1e-3 if near else 0.5),
        plain=partial(of_pair, dense),
        ours=partial(of_pair, losses.iusp_loss),
        goal=goal,
        memory_ratio_goal=memory_ratio_goal,
        rtol=1e-2 if near else 2e-5,  # near the teacher, plain's own rounding
    )


BENCHES = [  # (utterances, frames, dims)
    compare((8, 100, 256), 1.1),
    compare((8, 497, 256), 1.1, 0.5),
    compare((8, 1000, 64), 0.1, 0.1),
    compare((8, 1000, 64), 0.24, 0.2, near=True),
    compare((8, 1000, 256), 0.9, 0.3),
]

if __name__ == "__main__":
    main(BENCHES)
