r"""The parts of CSKD's published trainer (Ham, Kim, Lee, Lee and Kim, arXiv 2023), one by one.

Beside the class columns, the trainer compares which classes go together and which samples do:

.. math::
    L_{cc} = 1 - \frac{1}{C} \sum_{j=1}^{C} \cos\big((P_s^\top P_s)_j, (P_t^\top P_t)_j\big), \qquad
    L_{bc} = 1 - \frac{1}{B} \sum_{i=1}^{B} \cos\big((P_s P_s^\top)_i, (P_t P_t^\top)_i\big)

==========  ======================================  ========================================
symbol      argument                                default
==========  ======================================  ========================================
:math:`P`   ``student_logits``, ``teacher_logits``  softened by ``temperature``
:math:`T`   ``temperature``                         4, authors' code; or one for each sample
==========  ======================================  ========================================

Conventions
    1e-8 added to the products of norms; no α and no T². L_CSWT is L_CS at CSWT's temperatures.

Differences from the authors' code
    None in value, but a lone sample gives L_bc = 0 exactly. The trainer takes L_CS and L_CSWT of a
    weak and a strong view, L_cc and L_bc of the weak one, each at T and at the weak view's
    temperatures; its masks only scale terms of the weak view by the share of samples or classes
    below the median of the teacher's confidence. That is the caller's, as is the task loss.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.cskd import cskd_loss
from congener.losses.cswt import cswt_temperatures
from congener.ops.checks import check_logits, check_temperature
from congener.ops.collectives import Scope, all_sum, batch_size, warn_if_alone
from congener.ops.divergence import soften
from congener.ops.reduction import Reduction, check_reduction, needs_company, reduce_samples
from congener.ops.similarity import cosine_shares, gram, norm_product

__all__ = ["cskd_batch_loss", "cskd_class_loss", "cswt_loss"]


def cswt_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    *,
    alpha: float = 2.0,
    low_temperature: float = 2.0,
    high_temperature: float = 6.0,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """L_CSWT: :func:`congener.losses.cskd_loss` at the temperatures of CSWT.

    Arguments, results and errors are those of :func:`congener.losses.cskd_loss` and
    :func:`congener.losses.cswt_temperatures`.
    """
    temperature = cswt_temperatures(
        student_logits,
        teacher_logits,
        low_temperature=low_temperature,
        high_temperature=high_temperature,
        mask=mask,
        scope=scope,
    )
    return cskd_loss(
        student_logits,
        teacher_logits,
        temperature=temperature,
        alpha=alpha,
        mask=mask,
        reduction=reduction,
        scope=scope,
    )


def cskd_class_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    *,
    temperature: float | Float[Tensor, " batch"] = 4.0,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """L_cc: which classes are predicted together; arguments as of :func:`cskd_batch_loss`."""
    check_logits(student_logits, teacher_logits, mask)
    check_temperature(temperature, student_logits)
    check_reduction(reduction, scope)
    with torch.autocast(student_logits.device.type, enabled=False):
        student = soften(student_logits, temperature, mask)
        teacher = soften(teacher_logits.detach(), temperature, mask)
        student_classes = all_sum(student.T @ student, scope=scope)
        teacher_classes = all_sum(teacher.T @ teacher, scope=scope)
        # Row j of PᵀP is a sum over samples, and so is each cosine: what a sample adds to it.
        inner = student * (student @ teacher_classes)
        shares = inner / norm_product(student_classes, teacher_classes, dim=0)
        per_sample = 1 - batch_size(student, mask, scope=scope) * shares.mean(dim=1)
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


def cskd_batch_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    *,
    temperature: float | Float[Tensor, " batch"] = 4.0,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """L_bc: which samples are predicted alike.

    Args:
        student_logits: (batch, classes).
        teacher_logits: (batch, classes); no gradient flows into it.
        temperature: one for all samples, or one for each, (batch,), a constant.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"``, ``"none"``: what each sample adds to it, or ``"sum"`` of those.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the logits differ in shape, or the mask or the temperatures do not fit.
        ValueError: integer logits, a temperature ≤ 0, an unknown reduction or scope.

    >>> student, teacher = torch.zeros(2, 2), torch.tensor([[99.0, 0.0], [0.0, 99.0]])
    >>> round(cskd_batch_loss(student, teacher, temperature=1.0).item(), 4)  # 1 - cos 45°
    0.2929
    """
    check_logits(student_logits, teacher_logits, mask)
    check_temperature(temperature, student_logits)
    check_reduction(reduction, scope)
    warn_if_alone(student_logits, "cskd_batch", scope=scope)
    with torch.autocast(student_logits.device.type, enabled=False):
        student = soften(student_logits, temperature, mask)
        teacher = soften(teacher_logits.detach(), temperature, mask)
        shares = cosine_shares(gram(student, scope=scope), gram(teacher, scope=scope), dim=1)
        per_sample = needs_company(1 - shares.sum(dim=1), mask, scope=scope)
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)
