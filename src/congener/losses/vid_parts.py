"""What variational information distillation trains beside the student, as it starts."""

import math
from itertools import pairwise

import torch
from torch import nn

__all__ = ["mean_projector", "starting_scale"]


def mean_projector(
    student_channels: int, hidden_channels: int | None, teacher_channels: int
) -> nn.Sequential:
    """Three 1×1 convolutions without bias, with ReLU between them; hidden None: the teacher's."""
    hidden = hidden_channels or teacher_channels
    widths = (student_channels, hidden, hidden, teacher_channels)
    first, *others = (nn.Conv2d(a, b, kernel_size=1, bias=False) for a, b in pairwise(widths))
    return nn.Sequential(first, *(layer for conv in others for layer in (nn.ReLU(), conv)))


def starting_scale(teacher_channels: int, init_variance: float, eps: float) -> nn.Parameter:
    """The α, (channels,), at which softplus(α) + ε is ``init_variance``.

    Raises:
        ValueError: there is none.
    """
    learnt = init_variance - eps
    if not learnt > 0:
        raise ValueError(f"init_variance {init_variance} must be larger than eps {eps}.")
    start = learnt + math.log(-math.expm1(-learnt))
    return nn.Parameter(torch.full((teacher_channels,), start))
