r"""Where two networks disagree: backward-pass distillation (Jafari et al., arXiv 2023).

Distillation matches networks at the training samples; between them they may differ. New samples are
found by climbing D, the difference of their outputs, along its gradient with respect to the input,
for which the teacher is differentiated too.

.. math::
    D(x) = \| S(x) - T(x) \|_2^2, \qquad
    \nabla_x D = 2 \, (J_S - J_T)^\top \big( S(x) - T(x) \big)

=========  ======================================  =================================
symbol     argument                                default
=========  ======================================  =================================
:math:`D`  ``divergence``                          ``"l2_logits"``, ours
:math:`S`  ``student_logits``
:math:`T`  ``teacher_logits``                      not detached
=========  ======================================  =================================

Conventions
    This is not a loss to train by: the gradient flows into **both** networks, and on to their
    input. Sum over outputs; sum over samples, so that a sample's gradient is its own whatever the
    batch: a mean would make it shrink with the batch. Ranks do not meet. Climbing x + η ∇D,
    detaching what comes of it and training on it is the caller's.

Differences from the authors' code
    None is known to be published; the abstract says "difference", the squared norm is our reading.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.ops.checks import check_choice, check_logits
from congener.ops.divergence import kl_rows
from congener.ops.precision import upcast
from congener.ops.reduction import blank_rows

__all__ = ["backward_divergence"]


def backward_divergence(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    *,
    divergence: Literal["l2_logits", "l2_prob", "kl"] = "l2_logits",
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Literal["sum", "none"] = "sum",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Difference of two networks' outputs, differentiable through both.

    Args:
        student_logits: (batch, classes).
        teacher_logits: (batch, classes); the gradient flows into it too.
        divergence: squared distance of the logits, or of the class probabilities, ``"l2_prob"``;
            or ``"kl"``: KL(teacher ‖ student).
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"sum"`` over the samples of this process, or ``"none"``.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the logits differ in shape, or the mask does not fit.
        ValueError: integer logits, an unknown divergence or reduction.

    >>> backward_divergence(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]]))
    tensor(5.)
    """
    check_logits(student_logits, teacher_logits, mask)
    check_choice("divergence", divergence, ("l2_logits", "l2_prob", "kl"))
    check_choice("reduction", reduction, ("sum", "none"))
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher = upcast(student_logits, teacher_logits)
        student, teacher = blank_rows(student, mask), blank_rows(teacher, mask)
        if divergence == "kl":
            per_sample = kl_rows(student, teacher, 1.0)
        else:
            if divergence == "l2_prob":
                student, teacher = torch.softmax(student, dim=1), torch.softmax(teacher, dim=1)
            per_sample = (student - teacher).square().sum(dim=1)
        return per_sample if reduction == "none" else per_sample.sum()
