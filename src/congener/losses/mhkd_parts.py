r"""How the heads of MHKD (Wang, Lohit, Jones and Fu, arXiv 2020) learn the labels.

.. math::
    L = \sum_{l=1}^{L} \frac{1}{B} \sum_{i=1}^{B} \mathrm{CE}(g_{li}, y_i)

It trains the teacher's heads: jointly with the student, as the authors' code does by default, or
beforehand, with the heads then fixed. The features under them are the caller's to detach.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from congener.errors import ShapeError
from congener.losses.mixed_labels import label_cross_entropy_rows
from congener.ops.checks import check_classes, check_floating, check_mask
from congener.ops.collectives import Scope
from congener.ops.reduction import Reduction, check_reduction, labelled, reduce_samples

__all__ = ["check_heads", "head_cross_entropy_loss"]


def head_cross_entropy_loss(
    head_logits: Sequence[Float[Tensor, "batch classes"]],
    labels: Int[Tensor, " batch"],
    *,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Cross-entropy of every head with the labels, summed over heads; the gradient flows to all.

    Args:
        head_logits: (batch, classes) of each head.
        labels: (batch,), the true classes; samples with a negative one are as if absent.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: no head, or shapes that do not fit.
        ValueError: integer logits, labels that are no class, an unknown reduction or scope.

    >>> round(head_cross_entropy_loss([torch.zeros(1, 2)] * 3, torch.tensor([0])).item(), 4)
    2.0794
    """
    check_heads(head_logits, head_logits)
    check_reduction(reduction, scope)
    with torch.autocast(head_logits[0].device.type, enabled=False):
        per_head = []
        for logits in head_logits:
            check_floating(head_logits=logits)
            if logits.dim() != 2:
                raise ShapeError(f"head_logits {tuple(logits.shape)} must be (batch, classes).")
            check_mask(mask, logits, "head_logits")
            check_classes(labels, logits, mask)
            known = labelled(labels, mask)
            per_head.append(label_cross_entropy_rows(logits, labels, known, scope=scope))
        per_sample = torch.stack(per_head).sum(dim=0)
        return reduce_samples(per_sample, known, reduction=reduction, scope=scope)


def check_heads(
    student_head_logits: Sequence[Tensor] | Tensor, teacher_head_logits: Sequence[Tensor] | Tensor
) -> None:
    """There must be as many heads on both sides, one at least.

    Raises:
        ShapeError: there are not, or they come as one tensor.
    """
    if isinstance(student_head_logits, Tensor) or isinstance(teacher_head_logits, Tensor):
        raise ShapeError("heads must come as lists of logits; put those of one head in a list.")
    student, teacher = len(student_head_logits), len(teacher_head_logits)
    if student != teacher or not student:
        raise ShapeError(
            f"student_head_logits of {student} heads and teacher_head_logits of {teacher} must be "
            "pairs, one at least; give one head of each network for each pair."
        )
