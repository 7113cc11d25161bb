r"""Soft cross-entropy (TextBrewer's form of knowledge distillation; Yang et al., ACL 2020).

The cross-entropy of the student's softened class probabilities under the teacher's. Its gradient is
that of :func:`congener.losses.kd_loss` divided by τ²; its value keeps the teacher's entropy.

.. math::
    L = -\frac{1}{B} \sum_{i=1}^{B} \sum_{j=1}^{C}
        \sigma(z^t_i / \tau)_j \, \log \sigma(z^s_i / \tau)_j

=============  ===================  ==========================================
symbol         argument             default
=============  ===================  ==========================================
:math:`z^s`    ``student_logits``
:math:`z^t`    ``teacher_logits``
:math:`\tau`   ``temperature``      4, TextBrewer's
=============  ===================  ==========================================

Conventions
    Sum over classes, mean over samples, no factor τ². Not 0 at identical logits: that is the
    teacher's entropy. The task loss is not included.

Differences from the authors' code
    TextBrewer (1806876) gives the same value. Classes that the teacher excludes by logits of -inf
    count nothing here; there they give NaN.
"""

from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.ops.checks import check_logits, check_temperature
from congener.ops.collectives import Scope
from congener.ops.divergence import cross_entropy_rows
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.types import Paper

__all__ = ["SoftCrossEntropyLoss", "soft_cross_entropy_loss"]


def soft_cross_entropy_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    *,
    temperature: float = 4.0,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Cross-entropy of the softened class probabilities, without τ².

    Args:
        student_logits: (batch, classes).
        teacher_logits: (batch, classes); no gradient flows into it.
        temperature: τ, softens both distributions.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the logits differ in shape, or the mask does not fit.
        ValueError: integer logits, τ ≤ 0, an unknown reduction or scope.

    >>> student, teacher = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    >>> round(soft_cross_entropy_loss(student, teacher, temperature=4.0).item(), 4)
    0.8133
    """
    check_logits(student_logits, teacher_logits, mask)
    check_temperature(temperature)
    check_reduction(reduction, scope)
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher = upcast(student_logits, teacher_logits.detach())
        student, teacher = blank_rows(student, mask), blank_rows(teacher, mask)
        per_sample = cross_entropy_rows(student, teacher, temperature)
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


@final
class SoftCrossEntropyLoss(Loss):
    """The student scored by the softened teacher; see :func:`soft_cross_entropy_loss`."""

    name = "soft_cross_entropy"
    paper = Paper(
        title="TextBrewer: An Open-Source Knowledge Distillation Toolkit for Natural Language "
        "Processing",
        authors="Ziqing Yang, Yiming Cui, Zhipeng Chen, Wanxiang Che, Ting Liu, Shijin Wang, "
        "Guoping Hu",
        venue="ACL System Demonstrations",
        year=2020,
        url="https://arxiv.org/abs/2002.12620",
    )
    equation = "L = −meanᵢ Σⱼ softmax(zᵗᵢ/τ)ⱼ · log softmax(zˢᵢ/τ)ⱼ"
    family = "response"
    zero_at_match = False
    sources: ClassVar = {
        "temperature": "TextBrewer's DistillationConfig, 4",
        "reduction": "TextBrewer: sum over classes, mean over samples",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        temperature: float = 4.0,
        *,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_reduction(reduction, scope)
        self.temperature = temperature
        self.reduction, self.scope = reduction, scope

    def forward(
        self,
        student_logits: Float[Tensor, "batch classes"],
        teacher_logits: Float[Tensor, "batch classes"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`soft_cross_entropy_loss` with the stored hyper-parameters."""
        return soft_cross_entropy_loss(student_logits, teacher_logits, mask=mask, **self.options)
