r"""Knowledge distillation (Hinton, Vinyals and Dean, NIPS 2014 deep learning workshop; arXiv 2015).

A network's softened class probabilities tell how alike the classes look to it. The student is asked
for the teacher's softened probabilities, sample by sample.

.. math::
    L = \tau^2 \, \frac{1}{B} \sum_{i=1}^{B}
        \mathrm{KL}\big(\sigma(z^t_i / \tau) \,\|\, \sigma(z^s_i / \tau)\big)

=============  ===================  ==========================================
symbol         argument             default
=============  ===================  ==========================================
:math:`z^s`    ``student_logits``
:math:`z^t`    ``teacher_logits``
:math:`\tau`   ``temperature``      4, the common CIFAR-100 setting
=============  ===================  ==========================================

Conventions
    Sum over classes, mean over samples, times τ², so that the gradient keeps its size when τ
    changes. The task loss is not included. Identical logits give 0.

Differences from the authors' code
    None was published with the paper; RepDistiller (b84f547) and mdistiller (a08d46f) agree with
    this to round-off. Classes that the teacher, or both, exclude by logits of -inf count nothing
    here; there they give NaN. One that the student alone excludes makes the loss infinite.
"""

from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.ops.checks import check_logits, check_temperature
from congener.ops.collectives import Scope
from congener.ops.divergence import kl_rows
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.types import Paper

__all__ = ["KDLoss", "kd_loss"]


def kd_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    *,
    temperature: float = 4.0,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Kullback-Leibler divergence of the softened class probabilities, times τ².

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

    >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[4.0, 0.0]])
    >>> round(kd_loss(student, teacher, temperature=4.0).item(), 4)
    1.7751
    """
    check_logits(student_logits, teacher_logits, mask)
    check_temperature(temperature)
    check_reduction(reduction, scope)
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher = upcast(student_logits, teacher_logits.detach())
        student, teacher = blank_rows(student, mask), blank_rows(teacher, mask)
        per_sample = temperature**2 * kl_rows(student, teacher, temperature)
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


@final
class KDLoss(Loss):
    """Softened class probabilities, sample by sample; see :func:`kd_loss`."""

    name = "kd"
    paper = Paper(
        title="Distilling the Knowledge in a Neural Network",
        authors="Geoffrey Hinton, Oriol Vinyals, Jeff Dean",
        venue="NIPS Deep Learning Workshop 2014, arXiv",
        year=2015,
        url="https://arxiv.org/abs/1503.02531",
    )
    equation = "L = τ² · meanᵢ KL( softmax(zᵗᵢ/τ) ‖ softmax(zˢᵢ/τ) )"
    family = "response"
    sources: ClassVar = {
        "temperature": "RepDistiller's and mdistiller's CIFAR-100 setting, 4",
        "reduction": "RepDistiller, mdistiller: sum over classes, mean over samples",
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
        """Call :func:`kd_loss` with the stored hyper-parameters."""
        return kd_loss(student_logits, teacher_logits, mask=mask, **self.options)
