r"""Knowledge distillation of tags (the form for many labels of Hinton, Vinyals and Dean, 2015).

Tags do not exclude each other: each is a question of its own, answered by yes or no. The student is
asked for the teacher's softened probability of every tag.

.. math::
    L = \frac{1}{B C} \sum_{i=1}^{B} \sum_{j=1}^{C} H\big(\sigma(z^t_{ij} / \tau),
        \sigma(z^s_{ij} / \tau)\big), \ \
    H(p, q) = -p \log q - (1 - p) \log (1 - q), \ \ \sigma(z) = \frac{1}{1 + e^{-z}}

=============  ===================  ==========================================
symbol         argument             default
=============  ===================  ==========================================
:math:`z^s`    ``student_logits``
:math:`z^t`    ``teacher_logits``
:math:`\tau`   ``temperature``      2, knowledge-distillation-ust
=============  ===================  ==========================================

Conventions
    Mean over tags and samples, no factor τ²: the gradient of a logit is the difference of the two
    probabilities, over τ·C. Not 0 at identical logits: that is the teacher's entropy. Every tag
    counts, whether its label is known or not. The task loss is not included.

Differences from the authors' code
    None is published for tags. knowledge-distillation-ust (hardhat5), for audio tags, takes the
    cross-entropy of sigmoids, which loses all that float32 rounds to 0 or 1; this one of logits.
"""

from typing import ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.ops.checks import check_logits, check_temperature
from congener.ops.collectives import Scope
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.types import Paper

__all__ = ["MultiLabelKDLoss", "multilabel_kd_loss"]


def multilabel_kd_loss(
    student_logits: Float[Tensor, "batch tags"],
    teacher_logits: Float[Tensor, "batch tags"],
    *,
    temperature: float = 2.0,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Binary cross-entropy of the softened probabilities of every tag, without τ².

    Args:
        student_logits: (batch, tags).
        teacher_logits: (batch, tags); no gradient flows into it.
        temperature: τ, softens both probabilities.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the logits differ in shape, or the mask does not fit.
        ValueError: integer logits, τ ≤ 0, an unknown reduction or scope.

    >>> student, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 9.0]])
    >>> round(multilabel_kd_loss(student, teacher).item(), 4)  # (log(1 + e) - 1/2 + log 2) / 2
    0.7532
    """
    check_logits(student_logits, teacher_logits, mask)
    check_temperature(temperature)
    check_reduction(reduction, scope)
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher = upcast(student_logits, teacher_logits.detach())
        student, teacher = blank_rows(student, mask), blank_rows(teacher, mask)
        wanted = torch.sigmoid(teacher / temperature)
        per_tag = F.binary_cross_entropy_with_logits(
            student / temperature, wanted, reduction="none"
        )
        return reduce_samples(per_tag.mean(dim=1), mask, reduction=reduction, scope=scope)


@final
class MultiLabelKDLoss(Loss):
    """Softened probabilities of tags; see :func:`multilabel_kd_loss`."""

    name = "multilabel_kd"
    paper = Paper(
        title="Distilling the Knowledge in a Neural Network",
        authors="Geoffrey Hinton, Oriol Vinyals, Jeff Dean",
        venue="NIPS Deep Learning Workshop 2014, arXiv",
        year=2015,
        url="https://arxiv.org/abs/1503.02531",
    )
    equation = "L = meanᵢⱼ H( σ(zᵗᵢⱼ/τ), σ(zˢᵢⱼ/τ) ),  H(p, q) = −p·log q − (1−p)·log(1−q)"
    family = "response"
    zero_at_match = False
    sources: ClassVar = {
        "temperature": "knowledge-distillation-ust (hardhat5), 2",
        "reduction": "knowledge-distillation-ust (hardhat5): mean over samples and tags",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        temperature: float = 2.0,
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
        student_logits: Float[Tensor, "batch tags"],
        teacher_logits: Float[Tensor, "batch tags"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`multilabel_kd_loss` with the stored hyper-parameters."""
        return multilabel_kd_loss(student_logits, teacher_logits, mask=mask, **self.options)
