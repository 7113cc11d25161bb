"""Inputs of the golden values (rules for batch losses, 6.9; golden values, appendix B)."""

import math

import torch
from torch import Tensor


def logits() -> tuple[Tensor, Tensor]:
    student = [[2 * math.sin(i + 2 * j + 1) for j in range(5)] for i in range(4)]
    teacher = [[3 * math.cos(2 * i + j) for j in range(5)] for i in range(4)]
    return torch.tensor(student, dtype=torch.float64), torch.tensor(teacher, dtype=torch.float64)


def features() -> tuple[Tensor, Tensor]:
    student = [[max(0, math.sin(1 + 3 * i + 1.7 * j)) for j in range(6)] for i in range(4)]
    teacher = [[max(0, math.cos(0.5 + 2 * i + 0.9 * j)) for j in range(8)] for i in range(4)]
    return torch.tensor(student, dtype=torch.float64), torch.tensor(teacher, dtype=torch.float64)


def wave(shape: tuple[int, int], phase: float) -> Tensor:
    """sin(1.7 n + phase) over the flat index n."""
    values = [math.sin(1.7 * n + phase) for n in range(shape[0] * shape[1])]
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


def close(actual: Tensor, expected: float, tolerance: float = 1e-12) -> bool:
    return math.isclose(actual.item(), expected, rel_tol=tolerance, abs_tol=tolerance)
