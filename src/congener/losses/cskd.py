r"""Cosine similarity knowledge distillation, CSKD (Ham, Kim, Lee, Lee and Kim, arXiv 2023).

What a network says about one class over the samples of a batch is a vector. The student's vector
of each class shall point where the teacher's does; how long it is, is left to the student.

.. math::
    L_{CS} = \alpha \bar T^2 \big( 1 - \frac{1}{C} \sum_{j=1}^{C} \cos(p^s_{:,j}, p^t_{:,j}) \big)

==============  ======================================  ========================================
symbol          argument                                default
==============  ======================================  ========================================
:math:`z`       ``student_logits``, ``teacher_logits``
:math:`T`       ``temperature``                         4, authors' code; or one for each sample
:math:`\alpha`  ``alpha``                               2, authors' code
==============  ======================================  ========================================

Conventions
    p = σ(z / T); cosines over the batch axis, 1e-8 added to the product of the norms; T̄ is the mean
    temperature. :class:`CSKDLoss` adds the loss at CSWT's temperatures. The task loss is not
    included. With fewer samples than classes, 0 does not mean equal predictions.

Differences from the authors' code
    None in value (recovered copy: llieeai/lud, 2704bb2), but a lone sample gives exactly 0.
"""

from functools import partial
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.losses.cswt import cswt_temperatures
from congener.ops.checks import check_logits, check_temperature, check_temperature_range
from congener.ops.collectives import Scope, warn_if_alone
from congener.ops.divergence import mean_temperature, soften
from congener.ops.reduction import Reduction, check_reduction, needs_company, reduce_samples
from congener.ops.similarity import column_cosines
from congener.types import Paper

__all__ = ["CSKDLoss", "cskd_loss"]


def cskd_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    *,
    temperature: float | Float[Tensor, " batch"] = 4.0,
    alpha: float = 2.0,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Distance 1 − cosine of the class columns, times α and the squared mean temperature.

    Args:
        student_logits: (batch, classes).
        teacher_logits: (batch, classes); no gradient flows into it.
        temperature: one for all samples, or one for each, (batch,), a constant.
        alpha: α.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"``, ``"none"``: what each sample adds to it, or ``"sum"`` of those.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the logits differ in shape, or the mask or the temperatures do not fit.
        ValueError: integer logits, a temperature ≤ 0, an unknown reduction or scope.

    >>> student, teacher = torch.zeros(2, 2), torch.tensor([[4.0, 0.0], [0.0, 4.0]])
    >>> round(cskd_loss(student, teacher, temperature=1.0).item(), 4)
    0.5601
    """
    check_logits(student_logits, teacher_logits, mask)
    check_temperature(temperature, student_logits)
    check_reduction(reduction, scope)
    warn_if_alone(student_logits, "cskd", scope=scope)
    with torch.autocast(student_logits.device.type, enabled=False):
        student = soften(student_logits, temperature, mask)
        teacher = soften(teacher_logits.detach(), temperature, mask)
        distance = 1 - column_cosines(student, teacher, mask, scope=scope)
        distance = needs_company(distance, mask, scope=scope)
        per_sample = alpha * mean_temperature(temperature, mask, scope=scope) ** 2 * distance
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


@final
class CSKDLoss(Loss):
    """L_CS + L_CSWT: :func:`cskd_loss` at one temperature, and at those of CSWT."""

    name = "cskd"
    paper = Paper(
        title="Cosine Similarity Knowledge Distillation for Individual Class Information Transfer",
        authors="Gyeongdo Ham, Seonghak Kim, Suin Lee, Jae-Hyeok Lee, Daeshik Kim",
        venue="arXiv",
        year=2023,
        url="https://arxiv.org/abs/2311.14307",
    )
    equation = "L = L_CS(T) + L_CS(T₁…T_B), L_CS = α·T̄²·(1 − meanⱼ cos(pˢⱼ, pᵗⱼ))"
    family = "relation"
    batch_coupled = True
    sources: ClassVar = {
        **dict.fromkeys(("temperature", "alpha", "cswt", "reduction"), "authors' code, recovered"),
        **dict.fromkeys(("low_temperature", "high_temperature"), "authors' code, recovered"),
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        temperature: float = 4.0,
        alpha: float = 2.0,
        *,
        cswt: bool = True,
        low_temperature: float = 2.0,
        high_temperature: float = 6.0,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_temperature_range(low_temperature, high_temperature)
        check_reduction(reduction, scope)
        self.temperature, self.alpha, self.cswt = temperature, alpha, cswt
        self.low_temperature, self.high_temperature = low_temperature, high_temperature
        self.reduction, self.scope = reduction, scope

    def forward(
        self,
        student_logits: Float[Tensor, "batch classes"],
        teacher_logits: Float[Tensor, "batch classes"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`cskd_loss` once, or with ``cswt`` twice, and add."""
        both = (student_logits, teacher_logits)
        loss = partial(cskd_loss, *both, alpha=self.alpha, mask=mask, reduction=self.reduction)
        total = loss(temperature=self.temperature, scope=self.scope)
        if self.cswt:
            low, high = self.low_temperature, self.high_temperature
            temperatures = cswt_temperatures(
                *both, low_temperature=low, high_temperature=high, mask=mask, scope=self.scope
            )
            total = total + loss(temperature=temperatures, scope=self.scope)
        return total
