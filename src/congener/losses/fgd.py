r"""Focal and global knowledge distillation, FGD (Yang et al., CVPR 2022).

Detectors differ most at objects and in few channels. The student is drawn to the teacher there,
apart from the background, and to the relations between all places.

.. math::
    L = \sum_{cij} (\alpha M_{ij} + \beta \bar M_{ij}) A^t_{ij} a^t_c (F^t_{cij} - F^s_{cij})^2
        + \gamma \|A^t - A^s\|_1 + \gamma \|a^t - a^s\|_1 + \lambda \|F^t + r^t - F^s - r^s\|_2^2

    A = HW \sigma_{ij}(\mathrm{mean}_c |F|/\tau), \quad a = C \sigma_c(\mathrm{mean}_{ij} |F|/\tau)

=====================  ====================================  ======================================
symbol                 argument                              default
=====================  ====================================  ======================================
:math:`F`              ``student_feature, teacher_feature``
:math:`M`              ``foreground``, of ``fgd_foreground``
:math:`r`              ``student_context, teacher_context``  0; :class:`FGDLoss` learns them
:math:`\alpha…λ`       ``weights``                           1e-3, 5e-4, 5e-4, 5e-6: one-stage
:math:`\tau`           ``temperature``                       0.5, authors' code; FCOS 0.8
=====================  ====================================  ======================================

Conventions
    Sums over channels and places, mean over images; M̄ is 1 / number of background places, 0 where M
    is not. Two-stage: 5e-5, 2.5e-5, 5e-5, 5e-7; RepPoints, FCOS: 1.6e-3, 8e-4, 8e-4, 8e-6.

Differences from the authors' code
    None (yzd-v/FGD, f1da292).
"""

from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.losses.fgd_context import Contexts
from congener.losses.fgd_parts import Weights, check_options, focal_terms, relation_term
from congener.ops.boxes import check_places
from congener.ops.checks import check_maps
from congener.ops.collectives import Scope
from congener.ops.precision import upcast
from congener.ops.projectors import align_channels, project
from congener.ops.reduction import Reduction, blank_rows, reduce_samples
from congener.types import Paper

__all__ = ["FGDLoss", "fgd_loss"]


def fgd_loss(
    student_feature: Float[Tensor, "batch channels height width"],
    teacher_feature: Float[Tensor, "batch channels height width"],
    foreground: Float[Tensor, "batch height width"],
    student_context: Float[Tensor, "batch channels"] | None = None,
    teacher_context: Float[Tensor, "batch channels"] | None = None,
    *,
    weights: Weights = "one_stage",
    temperature: float = 0.5,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Foreground, background, attention and global terms of one level of a pyramid.

    Args:
        student_feature: (batch, channels, height, width), aligned to the teacher's channels.
        teacher_feature: of the same shape; no gradient flows into it.
        foreground: M, (batch, height, width): 0 in the background; a constant.
        student_context: r of the student, (batch, channels).
        teacher_context: r of the teacher, (batch, channels); it is trained as well.
        weights: α, β, γ, λ, or ``"one_stage"``, ``"two_stage"``, ``"anchor_free"``.
        temperature: τ of both attentions.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the maps differ in shape, or foreground, contexts or mask do not fit.
        ValueError: integer maps, τ ≤ 0, unknown weights, reduction or scope.

    >>> maps = torch.zeros(1, 1, 1, 2), torch.full((1, 1, 1, 2), 3.0)
    >>> fgd_loss(*maps, torch.tensor([[[1.0, 0.0]]]), weights=(1.0, 0.5, 0.0, 0.0))
    tensor(13.5000)
    """
    check_maps(student_feature, teacher_feature, mask, same_shape=True)
    check_places("foreground", foreground, student_feature, kind="floating point")
    check_options(weights, temperature, reduction, scope)
    with torch.autocast(student_feature.device.type, enabled=False):
        student, teacher = upcast(student_feature, teacher_feature.detach())
        student, teacher = blank_rows(student, mask), blank_rows(teacher, mask)
        marks = blank_rows(foreground.detach(), mask).to(student.dtype)
        focal = focal_terms(student, teacher, marks, weights, temperature)
        relation = relation_term(student, teacher, student_context, teacher_context, weights, mask)
        return reduce_samples(focal + relation, mask, reduction=reduction, scope=scope)


@final
class FGDLoss(Loss):
    """Focal and global terms; owns alignment and context blocks; see :func:`fgd_loss`."""

    name = "fgd"
    paper = Paper(
        title="Focal and Global Knowledge Distillation for Detectors",
        authors="Zhendong Yang, Zhe Li, Xiaohu Jiang, Yuan Gong, Zehuan Yuan, et al.",
        venue="CVPR",
        year=2022,
        url="https://arxiv.org/abs/2111.11837",
    )
    equation = "L = Σ (α·M + β·M̄)·Aᵗ·aᵗ·(Fᵗ − Fˢ)² + γ·|ΔA, Δa|₁ + λ·‖R(Fᵗ) − R(Fˢ)‖²"
    family = "feature"
    sources: ClassVar = {
        **dict.fromkeys(("student_channels", "teacher_channels"), "yours: of the two maps"),
        **dict.fromkeys(("weights", "temperature"), "authors' code: RetinaNet, GFL and SOLO"),
        "reduction": "authors' code: sum over channels and places, mean over images",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        weights: Weights = "one_stage",
        temperature: float = 0.5,
        *,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_options(weights, temperature, reduction, scope)
        self.student_channels, self.teacher_channels = student_channels, teacher_channels
        self.weights, self.temperature = weights, temperature
        self.reduction, self.scope = reduction, scope
        self.align = align_channels(student_channels, teacher_channels)
        self.contexts = Contexts(teacher_channels)

    def forward(
        self,
        student_feature: Float[Tensor, "batch student_channels height width"],
        teacher_feature: Float[Tensor, "batch teacher_channels height width"],
        foreground: Float[Tensor, "batch height width"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Align the channels, learn the contexts, then call :func:`fgd_loss`."""
        aligned = project(self.align, student_feature, mask, channels=self.student_channels)
        contexts = self.contexts(aligned, teacher_feature.detach(), mask)
        return fgd_loss(aligned, teacher_feature, foreground, *contexts, mask=mask, **self.options)
