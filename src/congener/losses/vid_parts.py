"""What variational information distillation trains beside the student, as it starts."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from congener.errors import ShapeError
from congener.ops.checks import check_floating

__all__ = ["check_scale", "mean_projector", "starting_scale"]


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


def check_scale(log_scale: Tensor, feature: Tensor, eps: float) -> None:
    """There must be one α for each channel, and variances that cannot be negative.

    Raises:
        ShapeError: the scales are not (channels,).
        ValueError: they are not floating point, or eps is negative.
    """
    check_floating(log_scale=log_scale)
    if tuple(log_scale.shape) != tuple(feature.shape[1:2]):
        raise ShapeError(
            f"log_scale {tuple(log_scale.shape)} must be (channels,) for student_feature "
            f"{tuple(feature.shape)}; give one for each channel."
        )
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be finite and not negative, not {eps}.")
