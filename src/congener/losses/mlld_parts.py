r"""The class and batch terms of MLLD (Jin, Wang and Lin, CVPR 2023), one by one.

.. math::
    L_{class} = \frac{1}{C} \| P_t^\top P_t - P_s^\top P_s \|_F^2, \qquad
    L_{batch} = \frac{1}{B} \| P_t P_t^\top - P_s P_s^\top \|_F^2

==========  ======================================  ========================================
symbol      argument                                default
==========  ======================================  ========================================
:math:`P`   ``student_logits``, ``teacher_logits``  (B, C), softened by ``temperature``
:math:`T`   ``temperature``                         4, authors' code
==========  ======================================  ========================================

Conventions
    No T². L_class sums over the batch before it squares, so it grows with B²; L_batch grows with B.

Differences from the authors' code
    None (Multi-Level-Logit-Distillation, 5ee473f).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.ops.checks import check_logits, check_temperature
from congener.ops.collectives import Scope, all_sum, batch_size, gather_rows
from congener.ops.divergence import soften
from congener.ops.reduction import Reduction, check_reduction, reduce_samples

__all__ = ["Temperatures", "check_temperatures", "mlld_batch_loss", "mlld_class_loss"]

Temperatures = float | Sequence[float]


def mlld_class_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    *,
    temperature: float = 4.0,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """L_class: which classes are predicted together; arguments as of :func:`mlld_batch_loss`.

    >>> student, teacher = torch.zeros(1, 2), torch.tensor([[99.0, 0.0]])
    >>> mlld_class_loss(student, teacher, temperature=1.0)  # (3/4)² + 3 · (1/4)², halved
    tensor(0.3750)
    """
    check_logits(student_logits, teacher_logits, mask)
    check_temperature(temperature)
    check_reduction(reduction, scope)
    with torch.autocast(student_logits.device.type, enabled=False):
        student = soften(student_logits, temperature, mask)
        teacher = soften(teacher_logits.detach(), temperature, mask)
        # P_tᵀP_t − P_sᵀP_s from (P_t − P_s) and (P_t + P_s): nothing cancels near a match.
        apart, together = teacher - student, teacher + student
        half = apart.T @ together / 2
        classes = all_sum(half + half.T, scope=scope)
        # Σᵢ apartᵢᵀ M togetherᵢ = ‖M‖²: what each sample adds.
        shares = (apart * (together @ classes)).sum(dim=1) / student.shape[1]
        per_sample = batch_size(student, mask, scope=scope) * shares
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


def mlld_batch_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    *,
    temperature: float = 4.0,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """L_batch: which samples are predicted alike.

    Args:
        student_logits: (batch, classes).
        teacher_logits: (batch, classes); no gradient flows into it.
        temperature: T, softens both distributions.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"``, ``"none"``: each sample's row of it, whose mean it is, ``"sum"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the logits differ in shape, or the mask does not fit.
        ValueError: integer logits, a temperature ≤ 0, an unknown reduction or scope.

    >>> student, teacher = torch.zeros(2, 2), torch.tensor([[99.0, 0.0], [0.0, 99.0]])
    >>> mlld_batch_loss(student, teacher, temperature=1.0)  # 4 · (1/2)², halved
    tensor(0.5000)
    """
    check_logits(student_logits, teacher_logits, mask)
    check_temperature(temperature)
    check_reduction(reduction, scope)
    with torch.autocast(student_logits.device.type, enabled=False):
        student = soften(student_logits, temperature, mask)
        teacher = soften(teacher_logits.detach(), temperature, mask)
        apart, together = teacher - student, teacher + student
        everyone, _ = gather_rows(torch.cat((apart, together), dim=1), scope=scope)
        all_apart, all_together = everyone.chunk(2, dim=1)
        samples = (apart @ all_together.T + together @ all_apart.T) / 2
        per_sample = samples.square().sum(dim=1)
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


def check_temperatures(temperatures: Temperatures) -> None:
    """Temperatures must be positive numbers, one at least.

    Raises:
        ValueError: they are not.
    """
    each = temperatures if isinstance(temperatures, Sequence) else (temperatures,)
    if not each:
        raise ValueError("temperatures must hold one at least.")
    for temperature in each:
        check_temperature(temperature, name="temperatures")
