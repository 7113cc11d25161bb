r"""Hard-label distillation (Touvron et al., ICML 2021): the teacher's decision as the label.

The student learns the class that the teacher finds likeliest, as if it were the truth. It is the
control of every soft loss: what a teacher gives beyond it is what its other probabilities carry.

.. math::
    L = -\frac{1}{B} \sum_{i=1}^{B} \log \sigma(z^s_i)_{y_i}, \qquad y_i = \arg\max_j z^t_{ij}

=============  ===================  ==========================================
symbol         argument             default
=============  ===================  ==========================================
:math:`z^s`    ``student_logits``
:math:`z^t`    ``teacher_logits``
=============  ===================  ==========================================

Conventions
    Mean over samples; no temperature. Of classes that tie for the teacher, the first is taken. Not
    0 at identical logits. The task loss is not included.

Differences from the authors' code
    DeiT averages this with the task loss, half and half, and gives it a head of its own; here the
    weight is the caller's and the head the student's.
"""

from typing import ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.ops.checks import check_logits
from congener.ops.collectives import Scope
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.types import Paper

__all__ = ["HardLabelLoss", "hard_label_loss"]


def hard_label_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    *,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Cross-entropy of the student against the teacher's likeliest class.

    Args:
        student_logits: (batch, classes).
        teacher_logits: (batch, classes); no gradient flows into it.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the logits differ in shape, or the mask does not fit.
        ValueError: integer logits, an unknown reduction or scope.

    >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[4.0, 0.0]])
    >>> round(hard_label_loss(student, teacher).item(), 4)  # log 2
    0.6931
    """
    check_logits(student_logits, teacher_logits, mask)
    check_reduction(reduction, scope)
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher = upcast(student_logits, teacher_logits.detach())
        student, teacher = blank_rows(student, mask), blank_rows(teacher, mask)
        per_sample = F.cross_entropy(student, teacher.argmax(dim=1), reduction="none")
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


@final
class HardLabelLoss(Loss):
    """The teacher's decisions as labels; see :func:`hard_label_loss`."""

    name = "hard_label"
    paper = Paper(
        title="Training data-efficient image transformers & distillation through attention",
        authors="Hugo Touvron, Matthieu Cord, Matthijs Douze, Francisco Massa, "
        "Alexandre Sablayrolles, Hervé Jégou",
        venue="ICML",
        year=2021,
        url="https://arxiv.org/abs/2012.12877",
    )
    equation = "L = −meanᵢ log softmax(zˢᵢ) at yᵢ,  yᵢ = argmaxⱼ zᵗᵢⱼ"
    family = "response"
    zero_at_match = False
    sources: ClassVar = {
        "reduction": "cross-entropy as usual: mean over samples",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        *,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_reduction(reduction, scope)
        self.reduction, self.scope = reduction, scope

    def forward(
        self,
        student_logits: Float[Tensor, "batch classes"],
        teacher_logits: Float[Tensor, "batch classes"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`hard_label_loss` with the stored hyper-parameters."""
        return hard_label_loss(student_logits, teacher_logits, mask=mask, **self.options)
