r"""Feature norm and direction, ND (Wang et al., ECCV 2024): what makes KD++, DKD++ and others.

A student's penultimate feature should point to where the teacher has its class on average, and be
at least as long as the teacher's.

.. math::
    L = \frac{1}{B} \sum_{i=1}^{B} \Big( 1 - \frac{\langle s_i, e_{y_i} \rangle}
        {\max(\| s_i \|_2, \| t_i \|_2)} \Big), \qquad e_k = c_k / \| c_k \|_2

============  ====================  ==========================================
symbol        argument              default
============  ====================  ==========================================
:math:`s`     ``student_feature``   before the classifier, of the teacher's width
:math:`t`     ``teacher_feature``   likewise
:math:`y`     ``labels``
:math:`c`     ``class_means``       of the teacher's features over the training set
============  ====================  ==========================================

Conventions
    Mean over samples; at most 2, and 0 only along the class mean at the teacher's length or beyond.
    Where both lengths are equal the student's counts. Two zero features give 1 without gradient, as
    does a zero class mean. Samples with a negative label, the mark of unlabelled ones, are as if
    masked. KD++ is the task loss + weight · KD + weight · ND, the KD term warmed up from 0.

Differences from the authors' code
    None (WangYZ1608/Knowledge-Distillation-via-ND, fc6f3f9) but for zeros, which give NaN there.
    Where widths differ it has a projector, BatchNorm, Dropout(0.5), Linear: that is the caller's.
"""

from typing import ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from congener.errors import ShapeError
from congener.losses.base import Loss
from congener.ops.checks import (
    UNLABELLED,
    check_below,
    check_floating,
    check_labels,
    check_mask,
)
from congener.ops.collectives import Scope
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, labelled, reduce_samples
from congener.types import Paper

__all__ = ["NDLoss", "nd_loss"]


def nd_loss(
    student_feature: Float[Tensor, "batch channels"],
    teacher_feature: Float[Tensor, "batch channels"],
    labels: Int[Tensor, " batch"],
    class_means: Float[Tensor, "classes channels"],
    *,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """One minus the student's length along its class, over the longer of the two features.

    Args:
        student_feature: (batch, channels).
        teacher_feature: (batch, channels); no gradient flows into it.
        labels: (batch,), class numbers.
        class_means: (classes, channels), constants: :func:`congener.losses.class_means`.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the features differ in shape, or the labels, means or mask do not fit.
        ValueError: integer features, a label that is no class, an unknown word.

    >>> student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    >>> nd_loss(student, teacher, torch.tensor([0]), torch.tensor([[5.0, 0.0]]))
    tensor(0.5000)
    """
    check_floating(student_feature=student_feature, teacher_feature=teacher_feature)
    check_floating(class_means=class_means)
    shapes = [tuple(x.shape) for x in (student_feature, teacher_feature, class_means)]
    if shapes[0] != shapes[1] or len(shapes[0]) != 2 or shapes[2][1:] != shapes[0][1:]:
        raise ShapeError(
            f"student_feature {shapes[0]} and teacher_feature {shapes[1]} must have one shape, "
            f"(batch, channels), and class_means {shapes[2]} be (classes, channels); pool maps, "
            "and give the student a projector where the widths differ."
        )
    check_mask(mask, student_feature, "student_feature")
    check_labels(labels, student_feature, "student_feature")
    check_below("labels", labels, len(class_means), mask, way_out=UNLABELLED)
    check_reduction(reduction, scope)
    mask = labelled(labels, mask)
    with torch.autocast(student_feature.device.type, enabled=False):
        student, teacher, means = upcast(student_feature, teacher_feature, class_means)
        student, teacher = blank_rows(student, mask), blank_rows(teacher.detach(), mask)
        directions = F.normalize(means.detach(), dim=1)[labels.masked_fill(~mask, 0)]
        along = (student * directions).sum(dim=1)
        student_norm, teacher_norm = student.norm(dim=1), teacher.norm(dim=1)
        longest = torch.where(student_norm >= teacher_norm, student_norm, teacher_norm)
        cosine = torch.where(longest > 1e-12, along / longest.clamp(min=1e-12), 0)
        return reduce_samples(1 - cosine, mask, reduction=reduction, scope=scope)


@final
class NDLoss(Loss):
    """Direction and length of features; see :func:`nd_loss`."""

    name = "nd"
    paper = Paper(
        title="Improving Knowledge Distillation via Regularizing Feature Direction and Norm",
        authors="Yuzhu Wang, Lechao Cheng, Manni Duan, Yongheng Wang, Zunlei Feng, Shu Kong",
        venue="ECCV",
        year=2024,
        url="https://arxiv.org/abs/2305.17007",
    )
    equation = "L = meanᵢ( 1 − ⟨sᵢ, e at yᵢ⟩ / max(‖sᵢ‖, ‖tᵢ‖) ),  e = class means / their norms"
    family = "feature"
    zero_at_match = False
    needs_labels = True
    sources: ClassVar = {
        "reduction": "authors' code: mean over samples",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(self, *, reduction: Reduction = "mean", scope: Scope = "global") -> None:
        super().__init__()
        check_reduction(reduction, scope)
        self.reduction, self.scope = reduction, scope

    def forward(
        self,
        student_feature: Float[Tensor, "batch channels"],
        teacher_feature: Float[Tensor, "batch channels"],
        labels: Int[Tensor, " batch"],
        class_means: Float[Tensor, "classes channels"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`nd_loss` with the stored hyper-parameters."""
        return nd_loss(
            student_feature, teacher_feature, labels, class_means, mask=mask, **self.options
        )
