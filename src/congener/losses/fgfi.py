r"""Fine-grained feature imitation, FGFI (Wang et al., CVPR 2019).

What a detector knows lies around the objects: near them the teacher's map shows how it tells object
from background. The student imitates the map there, and is left alone elsewhere.

.. math::
    L = \frac{\lambda}{2 N_p} \sum_{i,j} I_{ij} \sum_c
        \big( f_a(s)_{ijc} - t_{ijc} \big)^2, \qquad N_p = \sum_{i,j} I_{ij}

===============  =====================  ================================================
symbol           argument               default
===============  =====================  ================================================
:math:`f_a(s)`   ``student_feature``    projected by :class:`FGFILoss`: 3×3 conv, ReLU
:math:`t`        ``teacher_feature``
:math:`I`        ``near_object``        from :func:`~congener.losses.fgfi_near_object`
:math:`\lambda`  ``weight``             0.01, authors' code
===============  =====================  ================================================

Conventions
    N_p counts the places near objects in the whole batch, so that images with more of them count
    more: the loss couples the batch. Without any it is 0. The task loss is not included.

Differences from the authors' code
    None in the loss (twangnh/Distilling-Object-Detectors), which is NaN where there is no place
    near an object, trains with one image a step, and imitates nothing in the first 400 steps.
"""

from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from congener.losses.base import Loss
from congener.ops.boxes import check_places
from congener.ops.checks import check_maps
from congener.ops.collectives import Scope, all_sum, batch_size
from congener.ops.precision import upcast
from congener.ops.projectors import project
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.types import Paper

__all__ = ["FGFILoss", "fgfi_loss"]


def fgfi_loss(
    student_feature: Float[Tensor, "batch channels height width"],
    teacher_feature: Float[Tensor, "batch channels height width"],
    near_object: Bool[Tensor, "batch height width"],
    *,
    weight: float = 0.01,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Squared difference of the maps near objects, over twice the number of places.

    Args:
        student_feature: (batch, channels, height, width), projected to the teacher's channels.
        teacher_feature: of the same shape; no gradient flows into it.
        near_object: (batch, height, width), where the student imitates.
        weight: λ, the factor of the whole.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"``, ``"none"``: what each sample adds to it, or ``"sum"`` of those.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the maps differ in shape, or ``near_object`` or the mask does not fit.
        ValueError: integer maps, ``near_object`` not boolean, an unknown reduction or scope.

    >>> near = torch.tensor([[[True, False]]])
    >>> fgfi_loss(torch.zeros(1, 3, 1, 2), torch.full((1, 3, 1, 2), 2.0), near, weight=1.0)
    tensor(6.)
    """
    check_maps(student_feature, teacher_feature, mask, same_shape=True)
    check_places("near_object", near_object, student_feature, kind="boolean")
    check_reduction(reduction, scope)
    with torch.autocast(student_feature.device.type, enabled=False):
        student, teacher = upcast(student_feature, teacher_feature.detach())
        near = blank_rows(near_object, mask).to(student.dtype)
        squares = (blank_rows(student, mask) - blank_rows(teacher, mask)).square().sum(dim=1)
        places = all_sum(near.sum(), scope=scope).clamp(min=1)
        share = batch_size(student, mask, scope=scope) / (2 * places)
        per_sample = weight * share * (near * squares).sum(dim=(1, 2))
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


@final
class FGFILoss(Loss):
    """The teacher's map near objects; owns the projector; see :func:`fgfi_loss`."""

    name = "fgfi"
    paper = Paper(
        title="Distilling Object Detectors with Fine-grained Feature Imitation",
        authors="Tao Wang, Li Yuan, Xiaopeng Zhang, Jiashi Feng",
        venue="CVPR",
        year=2019,
        url="https://arxiv.org/abs/1906.03609",
    )
    equation = "L = λ · Σ I·(f(s) − t)² / (2·Σ I),  I near objects, f = ReLU ∘ conv3×3"
    family = "feature"
    batch_coupled = True
    sources: ClassVar = {
        **dict.fromkeys(("student_channels", "teacher_channels"), "yours: of the two maps"),
        "weight": "authors' code: 0.01",
        "reduction": "authors' code: over the places near objects of the batch",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        weight: float = 0.01,
        *,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_reduction(reduction, scope)
        self.student_channels, self.teacher_channels = student_channels, teacher_channels
        self.weight, self.reduction, self.scope = weight, reduction, scope
        conv = nn.Conv2d(student_channels, teacher_channels, kernel_size=3, padding=1)
        assert conv.bias is not None
        nn.init.trunc_normal_(conv.weight, std=1e-4, a=-2e-4, b=2e-4)  # as published: near zero
        nn.init.zeros_(conv.bias)
        self.projector = nn.Sequential(conv, nn.ReLU())

    def forward(
        self,
        student_feature: Float[Tensor, "batch student_channels height width"],
        teacher_feature: Float[Tensor, "batch teacher_channels height width"],
        near_object: Bool[Tensor, "batch height width"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Project the student's map, then call :func:`fgfi_loss`."""
        projected = project(self.projector, student_feature, mask, channels=self.student_channels)
        return fgfi_loss(projected, teacher_feature, near_object, mask=mask, **self.options)
