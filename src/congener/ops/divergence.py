"""Distances between class distributions, from logits, one number for each row."""

import torch
from torch import Tensor

from congener.ops.collectives import Scope, global_mean
from congener.ops.precision import upcast
from congener.ops.reduction import blank_rows

__all__ = ["cross_entropy_rows", "kl_rows", "mean_temperature", "soften"]


def soften(logits: Tensor, temperature: float | Tensor = 1.0, mask: Tensor | None = None) -> Tensor:
    """Class probabilities at a temperature.

    Args:
        logits: (batch, classes).
        temperature: one number, or one for each row (batch,); a constant.
        mask: which rows count, (batch,); the others become zero, whatever they hold.

    Returns:
        Probabilities, (batch, classes), at least float32.
    """
    (logits,) = upcast(blank_rows(logits, mask))
    if isinstance(temperature, Tensor):
        kept = temperature if mask is None else temperature.masked_fill(~mask, 1)
        temperature = kept.detach().to(logits.dtype).unsqueeze(1)
    return blank_rows(torch.softmax(logits / temperature, dim=1), mask)


def mean_temperature(
    temperature: float | Tensor, mask: Tensor | None = None, *, scope: Scope = "global"
) -> float | Tensor:
    """The temperature, or the mean of the unmasked samples' temperatures, a constant."""
    if not isinstance(temperature, Tensor):
        return temperature
    return global_mean(temperature.detach(), mask, scope=scope).detach()


def kl_rows(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KL(teacher ‖ student) of each row at a temperature.

    Classes to which the teacher gives nothing count nothing, so logits of -inf that exclude a class
    are safe on the teacher's side, and on both.
    """
    student = torch.log_softmax(student_logits / temperature, dim=1)
    teacher = torch.log_softmax(teacher_logits / temperature, dim=1)
    weight = teacher.exp()
    return (weight * torch.where(weight > 0, teacher - student, 0)).sum(dim=1)


def cross_entropy_rows(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float
) -> Tensor:
    """Cross-entropy −Σ p_t log p_s of each row at a temperature."""
    student = torch.log_softmax(student_logits / temperature, dim=1)
    weight = soften(teacher_logits, temperature)
    return -(weight * torch.where(weight > 0, student, 0)).sum(dim=1)
