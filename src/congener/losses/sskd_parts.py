r"""The transformed copies in SSKD (Xu, Liu, Li and Loy, ECCV 2020).

Beside :func:`congener.losses.sskd_loss` the student copies the teacher's class probabilities on the
transformed copies too.

.. math::
    L_T = \frac{\tau^2}{|I|} \sum_{m \in I}
        \mathrm{KL}\big(\sigma(z^t_m / \tau) \,\|\, \sigma(z^s_m / \tau)\big)

============  ====================================  ==========================================
symbol        argument                              default
============  ====================================  ==========================================
:math:`z`     ``student_logits, teacher_logits``    logits of all views
:math:`\tau`  ``temperature``                       4, authors' code
:math:`I`     ``ratio``                             1, authors' code: every copy
============  ====================================  ==========================================

Conventions
    Rows, I and ties as in :func:`congener.losses.sskd_loss`; a copy is right where the teacher's
    likeliest class is the label. Samples with a negative label, the mark of unlabelled ones, are as
    if masked.

Differences from the authors' code
    It breaks ties of ranks by an unstable sort; else none (xuguodong03/SSKD, 661b972).
"""

from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from congener.losses.base import Loss
from congener.losses.sskd import SSKDLoss
from congener.losses.sskd_selection import (
    check_selection,
    check_views,
    copies_of,
    kept_mean,
    transferred,
)
from congener.ops.checks import check_classes, check_logits, check_temperature
from congener.ops.collectives import Scope
from congener.ops.divergence import kl_rows
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, labelled

__all__ = ["SSKDTransformedLoss", "sskd_transformed_loss"]


def sskd_transformed_loss(
    student_logits: Float[Tensor, "rows classes"],
    teacher_logits: Float[Tensor, "rows classes"],
    labels: Int[Tensor, " batch"],
    *,
    views: int = 4,
    temperature: float = 4.0,
    ratio: float = 1.0,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """L_T: class probabilities of the transformed copies, the worst left out.

    Logits are (batch · views, classes), labels (batch,); the other arguments, results and errors
    are those of :func:`congener.losses.sskd_loss`.
    """
    check_logits(student_logits, teacher_logits)
    check_selection(views, ratio)
    check_views(student_logits, "student_logits", views, mask)
    check_classes(labels, student_logits[::views], mask)
    check_temperature(temperature)
    check_reduction(reduction, scope)
    mask = labelled(labels, mask)
    copies = mask.repeat_interleave(views - 1)
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher = upcast(student_logits, teacher_logits.detach())
        student = blank_rows(copies_of(student, views), copies)
        teacher = blank_rows(copies_of(teacher, views), copies)
        targets = labels.masked_fill(~mask, 0).long().repeat_interleave(views - 1)
        kept = transferred(teacher, targets, ratio, mask, scope)
        per_copy = temperature**2 * kl_rows(student, teacher, temperature)
        return kept_mean(per_copy, kept, mask, views, reduction=reduction, scope=scope)


@final
class SSKDTransformedLoss(Loss):
    """Class probabilities of transformed copies; see :func:`sskd_transformed_loss`."""

    name = "sskd_transformed"
    paper = SSKDLoss.paper
    equation = "L_T = τ² · mean over kept copies m of KL( softmax(zᵗₘ/τ) ‖ softmax(zˢₘ/τ) )"
    family = "response"
    needs_labels = True
    batch_coupled = True
    sources: ClassVar = {
        "views": "authors' code: rotations by 0, 90, 180 and 270 degrees",
        **dict.fromkeys(("temperature", "ratio", "reduction"), "authors' code"),
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        views: int = 4,
        temperature: float = 4.0,
        ratio: float = 1.0,
        *,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_selection(views, ratio)
        check_reduction(reduction, scope)
        self.views, self.temperature, self.ratio = views, temperature, ratio
        self.reduction, self.scope = reduction, scope

    def forward(
        self,
        student_logits: Float[Tensor, "rows classes"],
        teacher_logits: Float[Tensor, "rows classes"],
        labels: Int[Tensor, " batch"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`sskd_transformed_loss` with the stored hyper-parameters."""
        return sskd_transformed_loss(
            student_logits, teacher_logits, labels, mask=mask, **self.options
        )
