r"""Logit standardization in knowledge distillation, LSKD (Sun, Ren, Li, Wang and Cao, CVPR 2024).

With each sample's logits standardised first, the student need not copy the teacher's range of
logits, only how the classes stand to each other.

.. math::
    L = \frac{\tau^2}{B} \sum_{i=1}^{B} \mathrm{KL}\Big( \sigma(\mathcal Z(z^t_i) / \tau) \,\Big\|\,
        \sigma(\mathcal Z(z^s_i) / \tau) \Big), \ \
    \mathcal Z(z) = \frac{z - \bar z}{\mathrm{std}(z) + \epsilon}

=================  ======================================  ===================================
symbol             argument                                default
=================  ======================================  ===================================
:math:`z`          ``student_logits``, ``teacher_logits``
:math:`\tau`       ``temperature``                         2, authors' code
std, ε             ``variant``                             ``"authors"``: over C − 1, ε = 1e-7
=================  ======================================  ===================================

Conventions
    Sum over classes, mean over samples, times τ²; the authors' weight is 9. The task loss is not
    included; it takes raw logits. Equal logits become 0, but with the authors' ε their gradient
    grows 1e7-fold: do not start from a classifier of zeros.

Differences from the authors' code
    None (logit-standardization-KD, f6e5aa5). ``"paper"``, from memory: over C, and no ε.
"""

from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.losses.lskd_parts import Variant, standardize_logits
from congener.ops.checks import check_choice, check_logits, check_temperature
from congener.ops.collectives import Scope
from congener.ops.divergence import kl_rows
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, check_reduction, reduce_samples
from congener.types import Paper

__all__ = ["LSKDLoss", "lskd_loss"]


def lskd_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    *,
    temperature: float = 2.0,
    variant: Variant = "authors",
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """KL divergence of the softened class probabilities of standardised logits, times τ².

    Args:
        student_logits: (batch, classes).
        teacher_logits: (batch, classes); no gradient flows into it.
        temperature: τ, softens both distributions.
        variant: ``"authors"``: unbiased deviation + 1e-7; ``"paper"``: of the population.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the logits differ in shape, or the mask does not fit.
        ValueError: integer logits, τ ≤ 0, an unknown variant, reduction or scope.

    >>> student, teacher = torch.tensor([[0.0, 1.0]]), torch.tensor([[9.0, -9.0]])
    >>> round(lskd_loss(student, teacher, variant="paper").item(), 4)  # 4 · tanh(1/2)
    1.8485
    """
    check_logits(student_logits, teacher_logits, mask)
    check_temperature(temperature)
    check_choice("variant", variant, ("authors", "paper"))
    check_reduction(reduction, scope)
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher = upcast(student_logits, teacher_logits.detach())
        student, teacher = (
            standardize_logits(logits, variant=variant, mask=mask) for logits in (student, teacher)
        )
        per_sample = temperature**2 * kl_rows(student, teacher, temperature)
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


@final
class LSKDLoss(Loss):
    """Softened probabilities of standardised logits; see :func:`lskd_loss`."""

    name = "lskd"
    paper = Paper(
        title="Logit Standardization in Knowledge Distillation",
        authors="Shangquan Sun, Wenqi Ren, Jingzhi Li, Rui Wang, Xiaochun Cao",
        venue="CVPR",
        year=2024,
        url="https://arxiv.org/abs/2403.01427",
    )
    equation = "L = τ² · meanᵢ KL( softmax(Z(zᵗᵢ)/τ) ‖ softmax(Z(zˢᵢ)/τ) ),  Z = z-score of a row"
    family = "response"
    sources: ClassVar = {
        **dict.fromkeys(("temperature", "variant", "reduction"), "authors' code"),
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        temperature: float = 2.0,
        *,
        variant: Variant = "authors",
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_choice("variant", variant, ("authors", "paper"))
        check_reduction(reduction, scope)
        self.temperature, self.variant = temperature, variant
        self.reduction, self.scope = reduction, scope

    def forward(
        self,
        student_logits: Float[Tensor, "batch classes"],
        teacher_logits: Float[Tensor, "batch classes"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`lskd_loss` with the stored hyper-parameters."""
        return lskd_loss(student_logits, teacher_logits, mask=mask, **self.options)
