"""The columns of what a dense detector says, and how well its boxes and scores are told."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from congener.errors import ShapeError
from congener.ops.checks import check_choice, check_floating, check_mask
from congener.ops.reduction import check_reduction

__all__ = [
    "Activation",
    "check_mimicking",
    "check_rows",
    "class_distances",
    "columns",
    "quality_divergences",
]

Activation = Literal["sigmoid", "softmax"]

BESIDE_CLASSES = 9


def check_mimicking(
    weights: tuple[float, ...], activation: str, beta: float, reduction: str, scope: str
) -> None:
    """Weights must not be negative, β at least 1, the options known words.

    Raises:
        ValueError: one is not.
    """
    check_choice("activation", activation, ("sigmoid", "softmax"))
    check_reduction(reduction, scope)
    if not 1 <= beta < math.inf:
        raise ValueError(f"beta must be finite and at least 1, not {beta}; CrossKD takes 1.")
    if not all(0 <= weight < math.inf for weight in weights):
        raise ValueError(
            f"class_weight, box_weight and quality_weight must be finite and not negative, not "
            f"{weights}."
        )


def check_rows(
    student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None, activation: Activation
) -> None:
    """Rows must be floating point, (batch, locations, classes + 9) of one shape; the mask must fit.

    Raises:
        ShapeError: the shapes differ or are of another kind.
        ValueError: the rows are not floating point, or the mask is not boolean.
    """
    check_floating(student_logits=student_logits, teacher_logits=teacher_logits)
    student, teacher = tuple(student_logits.shape), tuple(teacher_logits.shape)
    least = BESIDE_CLASSES + (2 if activation == "softmax" else 1)
    if student != teacher or len(student) != 3 or student[2] < least:
        raise ShapeError(
            f"student_logits {student} and teacher_logits {teacher} must have one shape, (batch, "
            f"locations, columns) with at least {least} columns; give both detectors the same "
            "classes, image size, levels, strides and anchors, or compare their feature maps."
        )
    check_mask(mask, student_logits, "student_logits")


def columns(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The class logits, the quality logit and the box of each location; the reference is left."""
    classes = rows.shape[2] - BESIDE_CLASSES
    return rows[..., :classes], rows[..., classes], rows[..., classes + 1 : classes + 5]


def class_distances(
    student: Tensor, teacher: Tensor, activation: Activation, beta: float
) -> tuple[Tensor, Tensor]:
    """How far the classes' probabilities are apart, and the teacher's score, (batch, locations).

    Args:
        student: logits, (batch, locations, classes).
        teacher: likewise; with ``"softmax"`` the first class is the background.
        activation: what makes probabilities of logits.
        beta: power of the difference of the probabilities.
    """
    if activation == "sigmoid":
        wanted, told = teacher.sigmoid(), student.sigmoid()
        score = wanted.amax(dim=2)
        entropies = F.binary_cross_entropy_with_logits(student, wanted, reduction="none")
    else:
        wanted, told = teacher.softmax(dim=2), student.softmax(dim=2)
        score = wanted[..., 1:].amax(dim=2)
        entropies = -wanted * student.log_softmax(dim=2)
    return ((told - wanted).abs().pow(beta) * entropies).sum(dim=2), score


def quality_divergences(student: Tensor, teacher: Tensor) -> Tensor:
    """Divergence of the probabilities that two logits mean, element by element."""
    wanted = teacher.sigmoid()
    cross, own = (
        F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        for logits in (student, teacher)
    )
    return torch.clamp(cross - own, min=0)
