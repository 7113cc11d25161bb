"""Answers of two tokenizers to one text, position by position."""

import torch
import torch.nn.functional as F
from torch import Tensor

from congener.errors import ShapeError
from congener.ops.checks import check_floating, check_mask

__all__ = ["align_answers", "check_texts", "one_vocabulary"]


def check_texts(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_mask: Tensor | None,
    teacher_mask: Tensor | None,
    mask: Tensor | None,
) -> None:
    """Logits must be floating point, (batch, tokens, vocab) of one batch; the masks must fit.

    Raises:
        ShapeError: the batch sizes differ, an axis is missing, or a mask does not fit.
        ValueError: one of the two is not floating point, or a mask is not boolean.
    """
    check_floating(student_logits=student_logits, teacher_logits=teacher_logits)
    student, teacher = tuple(student_logits.shape), tuple(teacher_logits.shape)
    if not (len(student) == len(teacher) == 3 and student[0] == teacher[0]):
        raise ShapeError(
            f"student_logits {student} and teacher_logits {teacher} must both be "
            "(batch, tokens, vocab) of the same texts; tokens and vocab may differ."
        )
    check_mask(mask, student_logits, "student_logits")
    for name, positions, shape in (
        ("student", student_mask, student),
        ("teacher", teacher_mask, teacher),
    ):
        if positions is not None and tuple(positions.shape) != shape[:2]:
            raise ShapeError(
                f"{name}_mask {tuple(positions.shape)} must be (batch, tokens) = {shape[:2]} for "
                f"{name}_logits {shape}; give one entry for each position."
            )
        if positions is not None and positions.dtype != torch.bool:
            raise ValueError(f"{name}_mask must be boolean, not {positions.dtype}; call .bool().")


def align_answers(
    student: Tensor, teacher: Tensor, student_mask: Tensor | None, teacher_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Bring the k-th positions of both answers to place k.

    Args:
        student: (batch, tokens, ...).
        teacher: (batch, other tokens, ...).
        student_mask: (batch, tokens), which positions are the answer; None for all.
        teacher_mask: likewise for the teacher.

    Returns:
        Both with as many places as the one with fewer tokens has, and which places hold a pair,
        (batch, places).
    """
    places = min(student.shape[1], teacher.shape[1])
    student, student_length = _to_the_front(student, student_mask, places)
    teacher, teacher_length = _to_the_front(teacher, teacher_mask, places)
    place = torch.arange(places, device=student.device)
    return student, teacher, place < torch.minimum(student_length, teacher_length).unsqueeze(1)


def one_vocabulary(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Extend the smaller vocabulary, the last axis, by tokens of probability 0."""
    size = max(student.shape[-1], teacher.shape[-1])
    first, second = (
        F.pad(x, (0, size - x.shape[-1]), value=-torch.inf) for x in (student, teacher)
    )
    return first, second


def _to_the_front(x: Tensor, mask: Tensor | None, places: int) -> tuple[Tensor, Tensor]:
    """The marked positions first, in their order, and how many there are in each text."""
    if mask is None:
        return x[:, :places], torch.full(x.shape[:1], x.shape[1], device=x.device)
    order = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :places]
    texts = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    return x[texts, order], mask.sum(dim=1)
