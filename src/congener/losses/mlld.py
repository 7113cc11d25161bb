r"""Multi-level logit distillation, MLLD (Jin, Wang and Lin, CVPR 2023).

The student's predictions are aligned sample by sample, in which classes are predicted together, and
in which samples are predicted alike, each at several temperatures.

.. math::
    L = \sum_{T} \big( L_{KD}(T) + L_{class}(T) + L_{batch}(T) \big)

=============  =======================================  ========================================
symbol         argument                                 default
=============  =======================================  ========================================
:math:`z`      ``student_logits``, ``teacher_logits``
:math:`T`      ``temperatures``                         2, 3, 4, 5, 6, authors' code
=============  =======================================  ========================================

Conventions
    One view of the images. L_KD has T², the others have not; they are
    :func:`congener.losses.mlld_class_loss` and :func:`congener.losses.mlld_batch_loss`. The sum
    over temperatures is not divided. ``standardize=True`` is MLLD in LSKD's form: standardised
    logits for L_KD alone. The task loss is not included.

Differences from the authors' code
    Its terms are these (Multi-Level-Logit-Distillation, 5ee473f). Its trainer takes two views. Its
    masks only scale terms of the weak view by the share of samples or classes at or below the
    median of the teacher's confidence; the strong view's KD at T = 2 and 6 is the weak view's again
    and its class and batch terms are dropped. None of that is here: call this for each view.
"""

from collections.abc import Sequence
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.losses.kd import kd_loss
from congener.losses.lskd import lskd_loss
from congener.losses.mlld_parts import (
    Temperatures,
    check_temperatures,
    mlld_batch_loss,
    mlld_class_loss,
)
from congener.ops.collectives import Scope
from congener.ops.reduction import Reduction, check_reduction
from congener.types import Paper

__all__ = ["MLLDLoss", "mlld_loss"]


def mlld_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    *,
    temperatures: Temperatures = (2.0, 3.0, 4.0, 5.0, 6.0),
    standardize: bool = False,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """KL divergence, class and batch terms, summed over temperatures.

    Args:
        student_logits: (batch, classes).
        teacher_logits: (batch, classes); no gradient flows into it.
        temperatures: those to sum over, or one.
        standardize: standardise each sample's logits for the KL divergence, as LSKD does.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"``, ``"none"``: what each sample adds to it, or ``"sum"`` of those.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the logits differ in shape, or the mask does not fit.
        ValueError: integer logits, no temperature or one ≤ 0, an unknown reduction or scope.

    >>> student, teacher = torch.zeros(1, 2), torch.tensor([[99.0, 0.0]])
    >>> round(mlld_loss(student, teacher, temperatures=1.0).item(), 4)  # log 2 + 3/8 + 1/4
    1.3181
    """
    check_temperatures(temperatures)
    instance_loss = lskd_loss if standardize else kd_loss
    each = temperatures if isinstance(temperatures, Sequence) else (temperatures,)
    terms = [
        term(
            student_logits,
            teacher_logits,
            temperature=temperature,
            mask=mask,
            reduction=reduction,
            scope=scope,
        )
        for temperature in each
        for term in (instance_loss, mlld_class_loss, mlld_batch_loss)
    ]
    return torch.stack(terms).sum(dim=0)


@final
class MLLDLoss(Loss):
    """Samples, classes and batch at several temperatures; see :func:`mlld_loss`."""

    name = "mlld"
    paper = Paper(
        title="Multi-Level Logit Distillation",
        authors="Ying Jin, Jiaqi Wang, Dahua Lin",
        venue="CVPR",
        year=2023,
        url="https://openaccess.thecvf.com/content/CVPR2023/html/"
        "Jin_Multi-Level_Logit_Distillation_CVPR_2023_paper.html",
    )
    equation = "L = Σ_T ( T²·meanᵢ KL(pᵗᵢ ‖ pˢᵢ) + ‖PᵗᵀPᵗ − PˢᵀPˢ‖²/C + ‖PᵗPᵗᵀ − PˢPˢᵀ‖²/B )"
    family = "response"
    batch_coupled = True
    sources: ClassVar = {
        **dict.fromkeys(("temperatures", "reduction"), "authors' code"),
        "standardize": "authors' code: no; True in the code of LSKD's authors",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        temperatures: Temperatures = (2.0, 3.0, 4.0, 5.0, 6.0),
        *,
        standardize: bool = False,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_temperatures(temperatures)
        check_reduction(reduction, scope)
        self.temperatures, self.standardize = temperatures, standardize
        self.reduction, self.scope = reduction, scope

    def forward(
        self,
        student_logits: Float[Tensor, "batch classes"],
        teacher_logits: Float[Tensor, "batch classes"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`mlld_loss` with the stored hyper-parameters."""
        return mlld_loss(student_logits, teacher_logits, mask=mask, **self.options)
