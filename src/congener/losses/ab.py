r"""Distillation of activation boundaries, AB (Heo et al., AAAI 2019).

What a neuron decides is on which side of zero it lies; how far matters less. Before the activation,
the student's neurons are pushed past a margin to the side on which the teacher's lie.

.. math::
    L = \frac{1}{B} \sum_{i=1}^{B} \sum_{d} \begin{cases}
        \max(0, \mu - f^s_{id})^2 & f^t_{id} > 0 \\
        \max(0, \mu + f^s_{id})^2 & f^t_{id} \le 0 \end{cases}

=============  ===================================  =======================================
symbol         argument                             default
=============  ===================================  =======================================
:math:`f^s`    ``student_feature``                  before the activation, projected
:math:`f^t`    ``teacher_feature``                  before the activation, of the same shape
:math:`\mu`    ``margin``                           1, authors' code
:math:`r`      ``student_shape``, ``teacher_shape`` no projector
=============  ===================================  =======================================

Conventions
    Sum over a sample's elements, mean over samples. One pair of stages; the authors weigh the
    deepest by 3/1000, each shallower one by half the next. A teacher's neuron at 0 is off. Equal
    features within the margin are not at 0. The task loss, of a later stage, is not included.

Differences from the authors' code
    AB_distillation (a7701d3) gives the same value, and sums over the batch: ``reduction="sum"``.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.losses.fitnets_parts import projector_between
from congener.ops.checks import check_same_shape
from congener.ops.collectives import Scope
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.types import Paper

__all__ = ["ABLoss", "ab_loss"]


def ab_loss(
    student_feature: Float[Tensor, "batch *axes"],
    teacher_feature: Float[Tensor, "batch *axes"],
    *,
    margin: float = 1.0,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """How far neurons are from the margin on the teacher's side of zero, squared.

    Args:
        student_feature: (batch, ...), before the activation.
        teacher_feature: of the same shape; no gradient flows into it.
        margin: μ, how far from zero a neuron should be.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the features differ in shape, or the mask does not fit.
        ValueError: integer features, a negative margin, an unknown reduction or scope.

    >>> student, teacher = torch.tensor([[0.5, 0.5, 3.0]]), torch.tensor([[2.0, -2.0, 0.1]])
    >>> ab_loss(student, teacher)  # 0.5² on the right side, 1.5² on the wrong one
    tensor(2.5000)
    """
    way_out = "a projector gives them one: ABLoss(student_shape, teacher_shape)"
    check_same_shape(student_feature, teacher_feature, mask, way_out=way_out)
    _check_margin(margin)
    check_reduction(reduction, scope)
    with torch.autocast(student_feature.device.type, enabled=False):
        student, teacher = upcast(student_feature.flatten(1), teacher_feature.detach().flatten(1))
        student, teacher = blank_rows(student, mask), blank_rows(teacher, mask)
        missing = torch.where(teacher > 0, margin - student, margin + student).relu()
        per_sample = missing.square().sum(dim=1)
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


def _check_margin(margin: float) -> None:
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin must be finite and not negative, not {margin}.")


@final
class ABLoss(Loss):
    """On which side of zero neurons lie, after a projector without ReLU; see :func:`ab_loss`."""

    name = "ab"
    paper = Paper(
        title="Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden "
        "Neurons",
        authors="Byeongho Heo, Minsik Lee, Sangdoo Yun, Jin Young Choi",
        venue="AAAI",
        year=2019,
        url="https://arxiv.org/abs/1811.03233",
    )
    equation = "L = meanᵢ Σ max(0, μ − fˢ)² where fᵗ > 0, max(0, μ + fˢ)² elsewhere"
    family = "feature"
    zero_at_match = False
    sources: ClassVar = {
        "student_shape": "ours: none, for features of one shape",
        "teacher_shape": "ours: none, for features of one shape",
        "margin": "authors' code",
        "reduction": "authors' code, which divides its sum by the batch size",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        student_shape: Sequence[int] | None = None,
        teacher_shape: Sequence[int] | None = None,
        *,
        margin: float = 1.0,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        _check_margin(margin)
        check_reduction(reduction, scope)
        self.student_shape, self.teacher_shape, self.margin = student_shape, teacher_shape, margin
        self.reduction, self.scope = reduction, scope
        self.projector = projector_between(student_shape, teacher_shape, relu=False, scope=scope)

    def forward(
        self,
        student_feature: Float[Tensor, "batch *student_axes"],
        teacher_feature: Float[Tensor, "batch *teacher_axes"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Project the student's feature, then call :func:`ab_loss`."""
        if self.projector is not None:
            student_feature = self.projector(student_feature, mask)
        return ab_loss(
            student_feature, teacher_feature, mask=mask,
            margin=self.margin, reduction=self.reduction, scope=self.scope,
        )  # fmt: skip
