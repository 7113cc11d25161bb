r"""Prediction mimicking of dense detectors (Wang et al., CrossKD, CVPR 2024; here head to head).

At every location the student is to give the teacher's class scores and, where the teacher sees an
object, its box and how sure it is of it. It needs neither labels nor matching.

.. math::
    L = \frac{1}{\max(1, \sum_{il} w_{il})} \sum_{il} \Big( \lambda_c \sum_k
        |p^s_{ilk} - p^t_{ilk}|^\beta \, H(p^t_{ilk}, p^s_{ilk})
        + w_{il} \big( \lambda_b (1 - \mathrm{GIoU}(b^s_{il}, b^t_{il}))
        + \lambda_q D(q^t_{il} \| q^s_{il}) \big) \Big), \quad w_{il} = \max_k p^t_{ilk}

=================  ====================  =======================================================
symbol             argument              default
=================  ====================  =======================================================
:math:`p, b, q`    the logits' columns   probabilities, box and quality at image i, location l
:math:`\lambda_c`  ``class_weight``      1, authors' RetinaNet
:math:`\lambda_b`  ``box_weight``        1, likewise
:math:`\lambda_q`  ``quality_weight``    1, ours: they leave the quality (centre-ness) out
:math:`\beta`      ``beta``              2, Generalized Focal Loss; CrossKD takes 1
=================  ====================  =======================================================

Conventions
    A row is [class logits | quality logit | box in pixels | reference box]; the last is not read.
    H is the cross-entropy of yes and no, and its factor has a gradient; w has none.

Differences from the authors' code
    CrossKD (jbwang1997) also feeds the student's features through the teacher's head; this is its
    baseline, prediction mimicking. Theirs divides by a count of matches, which needs labels.
"""

from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses import detection_kd_parts as parts
from congener.losses.base import Loss
from congener.ops.boxes import generalized_overlaps
from congener.ops.collectives import Scope, all_sum, batch_size
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, reduce_samples
from congener.types import Paper

__all__ = ["DetectionKDLoss", "detection_kd_loss"]


def detection_kd_loss(
    student_logits: Float[Tensor, "batch locations columns"],
    teacher_logits: Float[Tensor, "batch locations columns"],
    *,
    class_weight: float = 1.0,
    box_weight: float = 1.0,
    quality_weight: float = 1.0,
    activation: parts.Activation = "sigmoid",
    beta: float = 2.0,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Distance of two detectors' scores, boxes and qualities, over the sum of the teacher's scores.

    Args:
        student_logits: (batch, locations, classes + 9), see above; images are the samples.
        teacher_logits: of the same shape, at the same locations; no gradient flows into it.
        class_weight: λ_c.
        box_weight: λ_b.
        quality_weight: λ_q; without effect where both qualities are constants.
        activation: ``"sigmoid"``, or ``"softmax"``: class 0 is the background, H is -p_t log p_s.
        beta: β, at least 1.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"``, ``"none"``: what each image adds to it, or ``"sum"`` of those.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the rows differ in shape, or the mask does not fit.
        ValueError: integer rows, β < 1, a negative weight, an unknown option.

    >>> rows = torch.tensor([[[0.0, 0, 0, 0, 2, 2, 0, 0, 2, 2]]])
    >>> detection_kd_loss(rows, rows + torch.tensor([0.0, 0, 1, 0, 1, 0, 0, 0, 0, 0]))
    tensor(0.3333)
    """
    weights = class_weight, box_weight, quality_weight
    parts.check_mimicking(weights, activation, beta, reduction, scope)
    parts.check_rows(student_logits, teacher_logits, mask, activation)
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher = upcast(student_logits, teacher_logits.detach())
        student, teacher = blank_rows(student, mask), blank_rows(teacher, mask)
        classes, quality, boxes = zip(parts.columns(student), parts.columns(teacher), strict=True)
        distances, scores = parts.class_distances(*classes, activation, beta)
        objects = box_weight * (1 - generalized_overlaps(*boxes))
        objects += quality_weight * parts.quality_divergences(*quality)
        per_sample = (class_weight * distances + scores * objects).sum(dim=1)
        total = all_sum(blank_rows(scores.sum(dim=1), mask).sum(), scope=scope).clamp(min=1)
        count = batch_size(scores, mask, scope=scope)
        return reduce_samples(per_sample * (count / total), mask, reduction=reduction, scope=scope)


@final
class DetectionKDLoss(Loss):
    """Predictions of dense detectors; see :func:`detection_kd_loss`."""

    name = "detection_kd"
    paper = Paper(
        title="CrossKD: Cross-Head Knowledge Distillation for Object Detection",
        authors="Jiabao Wang, Yuming Chen, Zhaohui Zheng, Xiang Li, Ming-Ming Cheng, Qibin Hou",
        venue="CVPR",
        year=2024,
        url="https://arxiv.org/abs/2306.11369",
    )
    equation = "L = Σ ( |pˢ−pᵗ|^β·H(pᵗ, pˢ) + w·(1 − GIoU(bˢ, bᵗ) + D(qᵗ‖qˢ)) ) / Σw,  w = max pᵗ"
    family = "response"
    batch_coupled = True
    sources: ClassVar = {
        **dict.fromkeys(("class_weight", "box_weight"), "authors' code: RetinaNet, 1"),
        "quality_weight": "ours: 1; the authors leave the quality out",
        "activation": "authors' code: sigmoid",
        "beta": "Generalized Focal Loss: 2; CrossKD's code: 1",
        "reduction": "ours: over the sum of the teacher's scores, at least 1",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        class_weight: float = 1.0,
        box_weight: float = 1.0,
        quality_weight: float = 1.0,
        activation: parts.Activation = "sigmoid",
        beta: float = 2.0,
        *,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        weights = class_weight, box_weight, quality_weight
        parts.check_mimicking(weights, activation, beta, reduction, scope)
        self.class_weight, self.box_weight, self.quality_weight = weights
        self.activation, self.beta, self.reduction, self.scope = activation, beta, reduction, scope

    def forward(
        self,
        student_logits: Float[Tensor, "batch locations columns"],
        teacher_logits: Float[Tensor, "batch locations columns"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`detection_kd_loss` with the stored hyper-parameters."""
        return detection_kd_loss(student_logits, teacher_logits, mask=mask, **self.options)
