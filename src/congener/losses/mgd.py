r"""Masked generative distillation, MGD (Yang et al., ECCV 2022).

Places of the student's map are hidden at random, and from what is left a small projector must
generate the teacher's whole map: each place of the student has to know its surroundings.

.. math::
    L = \frac{\alpha}{N} \sum_{n=1}^{N} \| G_n - T_n \|_2^2, \qquad
    G_n = \mathcal{G}\big(M_n \odot \varphi(S_n)\big), \quad
    \mathcal{G} = \mathrm{conv}_3 \circ \mathrm{ReLU} \circ \mathrm{conv}_3

==============  =====================  ==================================================
symbol          argument               default
==============  =====================  ==================================================
:math:`G`       ``student_feature``    the generated map, which :class:`MGDLoss` makes
:math:`T`       ``teacher_feature``
:math:`M`       ``visible``            of :func:`~congener.losses.mgd_visible`
:math:`\alpha`  ``alpha``              2e-5, authors' one-stage detectors; two-stage 5e-7
:math:`\lambda` ``mask_ratio``         0.65, likewise; two-stage 0.45
==============  =====================  ==================================================

Conventions
    Sum over channels and places, mean over images. φ is a 1×1 convolution where the channels
    differ. A place is hidden in all channels or in none. The task loss is not included.

Differences from the authors' code
    It (yzd-v/MGD, 046aba2) draws M from the global generator; here M is a function of seed, step
    and sample id, so that it is the same on any number of processes and after a resume.
"""

from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from congener.losses.base import Loss
from congener.ops.boxes import check_places
from congener.ops.checks import check_maps
from congener.ops.collectives import Scope
from congener.ops.precision import upcast
from congener.ops.projectors import align_channels, project
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.ops.vocabulary import check_share
from congener.types import Paper

__all__ = ["MGDLoss", "mgd_loss"]


def mgd_loss(
    student_feature: Float[Tensor, "batch channels height width"],
    teacher_feature: Float[Tensor, "batch channels height width"],
    *,
    alpha: float = 2e-5,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Summed squared difference of the generated and the teacher's map, times α.

    Args:
        student_feature: (batch, channels, height, width), generated from the student's map.
        teacher_feature: of the same shape; no gradient flows into it.
        alpha: α, the factor of the sum.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the maps differ in shape, or the mask does not fit.
        ValueError: integer maps, an unknown reduction or scope.

    >>> mgd_loss(torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), 3.0), alpha=0.5)
    tensor(18.)
    """
    check_maps(student_feature, teacher_feature, mask, same_shape=True)
    check_reduction(reduction, scope)
    with torch.autocast(student_feature.device.type, enabled=False):
        student, teacher = upcast(student_feature, teacher_feature.detach())
        gap = blank_rows(student, mask) - blank_rows(teacher, mask)
        per_sample = alpha * gap.square().sum(dim=(1, 2, 3))
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


@final
class MGDLoss(Loss):
    """The teacher's map from a part of the student's; owns the generator; see :func:`mgd_loss`."""

    name = "mgd"
    paper = Paper(
        title="Masked Generative Distillation",
        authors="Zhendong Yang, Zhe Li, Mingqi Shao, Dachuan Shi, Zehuan Yuan, Chun Yuan",
        venue="ECCV",
        year=2022,
        url="https://arxiv.org/abs/2205.01529",
    )
    equation = "L = α · meanᵢ ‖G(Mᵢ ⊙ φ(Sᵢ)) − Tᵢ‖²"
    family = "feature"
    sources: ClassVar = {
        **dict.fromkeys(("student_channels", "teacher_channels"), "yours: of the two maps"),
        "alpha": "authors' code: its one-stage detectors, 2e-5",
        "mask_ratio": "authors' code: its one-stage detectors, 0.65",
        "reduction": "authors' code: sum over channels and places, mean over images",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        alpha: float = 2e-5,
        mask_ratio: float = 0.65,
        *,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_share("mask_ratio", mask_ratio)
        check_reduction(reduction, scope)
        self.student_channels, self.teacher_channels = student_channels, teacher_channels
        self.alpha, self.mask_ratio = alpha, mask_ratio
        self.reduction, self.scope = reduction, scope
        self.align = align_channels(student_channels, teacher_channels)
        self.projector = nn.Sequential(
            nn.Conv2d(teacher_channels, teacher_channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, kernel_size=3, padding=1),
        )

    def forward(
        self,
        student_feature: Float[Tensor, "batch student_channels height width"],
        teacher_feature: Float[Tensor, "batch teacher_channels height width"],
        visible: Bool[Tensor, "batch height width"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Generate from the visible places, then call :func:`mgd_loss`."""
        aligned = project(self.align, student_feature, mask, channels=self.student_channels)
        check_places("visible", visible, student_feature, kind="boolean")
        seen = aligned * visible.unsqueeze(1)
        generated = project(self.projector, seen, channels=self.teacher_channels)
        return mgd_loss(
            generated, teacher_feature,
            alpha=self.alpha, mask=mask, reduction=self.reduction, scope=self.scope,
        )  # fmt: skip
