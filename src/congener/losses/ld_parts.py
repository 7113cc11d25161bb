"""The class term beside localisation distillation, and what LD asks of its arguments."""

from jaxtyping import Bool, Float
from torch import Tensor

from congener.errors import ShapeError
from congener.losses.kd import kd_loss
from congener.ops.checks import check_floating, check_logits, check_mask
from congener.ops.collectives import Scope
from congener.ops.reduction import Reduction

__all__ = ["check_edges", "ld_class_loss"]


def ld_class_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    *,
    temperature: float = 2.0,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Divergence of the class probabilities at positive locations, times τ², mean over classes.

    Arguments, results and refusals are those of :func:`~congener.losses.kd_loss`, with locations
    for samples: it is that loss divided by the number of classes. Authors weigh it by 10, and sum
    it over the levels of a pyramid.

    >>> import torch
    >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[4.0, 0.0]])
    >>> round(ld_class_loss(student, teacher, temperature=4.0).item(), 4)
    0.8876
    """
    check_logits(student_logits, teacher_logits, mask)
    loss = kd_loss(
        student_logits, teacher_logits, temperature=temperature, mask=mask,
        reduction=reduction, scope=scope,
    )  # fmt: skip
    return loss / student_logits.shape[1]


def check_edges(
    student_logits: Tensor,
    teacher_logits: Tensor,
    location_weights: Tensor | None = None,
    mask: Tensor | None = None,
) -> None:
    """Logits must be floating point, (locations, edges, bins) of one shape, weights and mask fit.

    Raises:
        ShapeError: the shapes differ or are of another kind.
        ValueError: logits or weights are not floating point, or the mask is not boolean.
    """
    check_floating(student_logits=student_logits, teacher_logits=teacher_logits)
    student, teacher = tuple(student_logits.shape), tuple(teacher_logits.shape)
    if student != teacher or len(student) != 3:
        raise ShapeError(
            f"student_logits {student} and teacher_logits {teacher} must have one shape, "
            "(locations, edges, bins); give both networks the same locations and bins, and "
            "reshape (locations, 4 · bins)."
        )
    if location_weights is not None:
        check_floating(location_weights=location_weights)
        if tuple(location_weights.shape) != student[:1]:
            raise ShapeError(
                f"location_weights {tuple(location_weights.shape)} must be (locations,) = "
                f"{student[:1]} for student_logits {student}; give one for each location."
            )
    check_mask(mask, student_logits, "student_logits")
