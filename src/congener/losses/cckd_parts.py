"""The kernels of CCKD (Peng et al., ICCV 2019): :func:`congener.losses.cckd_loss`."""

import math
import warnings
from typing import Literal

import torch
from torch import Tensor

from congener.ops.checks import check_choice

__all__ = ["Kernel", "check_kernel", "kernel_values", "warn_if_not_monotone"]

Kernel = Literal["rbf", "bilinear", "mmd"]


def kernel_values(x: Tensor, y: Tensor, *, kernel: Kernel, gamma: float, order: int) -> Tensor:
    """φ of each row of ``x`` with each of ``y``.

    >>> x = torch.tensor([[1.0, 0.0]])
    >>> kernel_values(x, x, kernel="rbf", gamma=0.5, order=1)  # 2/e
    tensor([[0.7358]])
    """
    if kernel == "mmd":
        return (x.mean(dim=1, keepdim=True) - y.mean(dim=1)).abs()
    product = x @ y.T
    if kernel == "bilinear":
        return product
    series = torch.ones_like(product)
    for p in range(order, 0, -1):  # Horner's scheme
        series = 1 + (2 * gamma / p) * product * series
    return math.exp(-2 * gamma) * series


def check_kernel(kernel: str, gamma: float, order: int) -> None:
    """A kernel must be a known word, γ positive, P not negative.

    Raises:
        ValueError: one is not.
    """
    check_choice("kernel", kernel, ("rbf", "bilinear", "mmd"))
    if not (gamma > 0 and math.isfinite(gamma) and isinstance(order, int) and order >= 0):
        raise ValueError(f"gamma must be positive and order 0, 1, 2, …, not {gamma} and {order}.")


def warn_if_not_monotone(gamma: float, order: int) -> None:
    """Warn where φ falls with the cosine, so that less alike samples count as more alike.

    That happens from cosine -1 on if at all; of order 2 for γ > 0.5.
    """
    slope = sum((-2 * gamma) ** p / math.factorial(p) for p in range(order))
    if slope < 0:
        warnings.warn(
            f"CCKD's kernel of order {order} is not monotone for gamma {gamma}: raise the order "
            "or lower gamma.",
            stacklevel=3,
        )
