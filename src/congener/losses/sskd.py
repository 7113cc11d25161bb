r"""Self-supervised knowledge distillation, SSKD (Xu, Liu, Li and Loy, ECCV 2020).

Transformed copies of images are matched with the untransformed ones of the batch, by cosines of a
small head's outputs. The student copies how the teacher matches, but for its worst mistakes.

.. math::
    L_{SS} = \frac{\tau^2}{|I|} \sum_{m \in I}
        \mathrm{KL}\big(\sigma(A^t_m / \tau) \,\|\, \sigma(A^s_m / \tau)\big), \qquad
    A_{mj} = \cos(r_{m}, r_{j})

==============  ======================================  ================================
symbol          argument                                default
==============  ======================================  ================================
:math:`r`       ``student_feature, teacher_feature``    outputs of the heads, of all views
:math:`\tau`    ``temperature``                         0.5, authors' code
:math:`I`       ``ratio``                               0.75, authors' code
==============  ======================================  ================================

Conventions
    m runs over the transformed copies, j over the untransformed samples. A sample's ``views`` are
    rows that follow each other, the untransformed one first. I holds each copy that the teacher
    matches rightly and, of the W others, the ⌊ratio · W⌋ whose own sample it ranks highest; of
    equal ranks, those whose own sample scores least below the best. Mean over I; an empty I gives
    0. The authors weigh this by 10, :func:`congener.losses.sskd_transformed_loss` by 2.7, and of
    the untransformed view :func:`congener.losses.kd_loss` by 0.9 and the task loss by 0.1.

Differences from the authors' code
    It leaves ties of ranks to an unstable sort; else none (xuguodong03/SSKD, 661b972).
"""

from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.losses.sskd_selection import (
    check_selection,
    check_views,
    kept_mean,
    match,
    transferred,
)
from congener.ops.checks import check_features, check_temperature
from congener.ops.collectives import Scope, warn_if_alone
from congener.ops.divergence import kl_rows
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, check_reduction
from congener.types import Paper

__all__ = ["SSKDLoss", "sskd_loss"]


def sskd_loss(
    student_feature: Float[Tensor, "rows student_channels"],
    teacher_feature: Float[Tensor, "rows teacher_channels"],
    *,
    views: int = 4,
    temperature: float = 0.5,
    ratio: float = 0.75,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """L_SS: how the teacher matches transformed copies with the samples of the batch.

    Args:
        student_feature: (batch · views, channels), a head's outputs, sample by sample.
        teacher_feature: (batch · views, channels), of any width; no gradient flows into it.
        views: how many rows each sample has, the untransformed one first.
        temperature: τ, softens both matches.
        ratio: which share of the copies that the teacher matches wrongly is kept.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` over I, ``"none"``: what each sample adds to it, ``"sum"`` of those.
        scope: ``"global"``: samples of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the numbers of rows differ or are no multiple of ``views``, or an axis is wrong.
        ValueError: integer features, τ ≤ 0, a ratio outside 0 to 1, an unknown word.

    >>> student, teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 2), torch.eye(2).repeat(1, 2)
    >>> teacher = teacher.repeat_interleave(2, dim=0)
    >>> round(sskd_loss(student, teacher, views=2, temperature=1.0).item(), 4)
    0.1109
    """
    check_features(student_feature, teacher_feature)
    check_selection(views, ratio)
    check_views(student_feature, "student_feature", views, mask)
    check_views(teacher_feature, "teacher_feature", views, mask)
    check_temperature(temperature)
    check_reduction(reduction, scope)
    warn_if_alone(student_feature[::views], "sskd", scope=scope)
    with torch.autocast(student_feature.device.type, enabled=False):
        student, teacher = upcast(student_feature, teacher_feature.detach())
        student_scores, _ = match(student, views, mask, scope)
        teacher_scores, targets = match(teacher, views, mask, scope)
        kept = transferred(teacher_scores, targets, ratio, mask, scope)
        per_copy = temperature**2 * kl_rows(student_scores, teacher_scores, temperature)
        return kept_mean(per_copy, kept, mask, views, reduction=reduction, scope=scope)


@final
class SSKDLoss(Loss):
    """How copies are matched with the samples of a batch; see :func:`sskd_loss`."""

    name = "sskd"
    paper = Paper(
        title="Knowledge Distillation Meets Self-Supervision",
        authors="Guodong Xu, Ziwei Liu, Xiaoxiao Li, Chen Change Loy",
        venue="ECCV",
        year=2020,
        url="https://arxiv.org/abs/2006.07114",
    )
    equation = "L_SS = τ² · mean over kept copies m of KL( softmax(Aᵗₘ/τ) ‖ softmax(Aˢₘ/τ) )"
    family = "relation"
    batch_coupled = True
    sources: ClassVar = {
        "views": "authors' code: rotations by 0, 90, 180 and 270 degrees",
        **dict.fromkeys(("temperature", "ratio", "reduction"), "authors' code"),
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        views: int = 4,
        temperature: float = 0.5,
        ratio: float = 0.75,
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
        student_feature: Float[Tensor, "rows student_channels"],
        teacher_feature: Float[Tensor, "rows teacher_channels"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`sskd_loss` with the stored hyper-parameters."""
        return sskd_loss(student_feature, teacher_feature, mask=mask, **self.options)
