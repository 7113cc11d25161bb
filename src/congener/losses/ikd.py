r"""Inconsistent knowledge distillation, IKD: its adversarial term (Liang et al., ACM MM 2023).

A teacher sees patterns that people do not, and adversarial images are made of them. The student
mimics the teacher's features of adversarial copies.

.. math::
    L = \frac{\alpha}{N} \sum_{n=1}^{N}
        \big\| \varphi(F^s(x^{adv}_n)) - F^t(x^{adv}_n) \big\|_2^2

================  =====================  ====================================================
symbol            argument               default
================  =====================  ====================================================
:math:`F^s`       ``student_feature``    its map of the adversarial images
:math:`F^t`       ``teacher_feature``    likewise
:math:`\varphi`   in :class:`IKDLoss`    1×1 convolution, only where the channels differ
:math:`\alpha`    ``alpha``              1e-5, authors' one-stage detectors; two-stage 2.5e-7
:math:`\tau`      ``temperature``        4, of ``distance="cwd"`` alone
================  =====================  ====================================================

Conventions
    Sum over channels and locations, mean over images. ``"l1"`` sums absolute differences; ``"cwd"``
    is α · CWD. Published is the sum over a pyramid's levels; this is one. No attack is included.

Differences from the authors' code
    None (JWLiang007/IKD, 2c7d605).
"""

from typing import ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.losses.cwd import cwd_loss
from congener.ops.checks import check_choice, check_maps, check_temperature
from congener.ops.collectives import Scope
from congener.ops.precision import upcast
from congener.ops.projectors import align_channels, project
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.types import Paper

__all__ = ["IKDLoss", "ikd_loss"]

Distance = Literal["mse", "l1", "cwd"]


def ikd_loss(
    student_feature: Float[Tensor, "batch channels height width"],
    teacher_feature: Float[Tensor, "batch channels height width"],
    *,
    distance: Distance = "mse",
    alpha: float = 1e-5,
    temperature: float = 4.0,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Distance of the feature maps of adversarial images.

    Args:
        student_feature: (batch, channels, height, width), aligned to the teacher's channels.
        teacher_feature: of the same shape; no gradient flows into it.
        distance: ``"mse"``: squared, ``"l1"``: absolute differences, summed; or ``"cwd"``.
        alpha: α, the factor of the distance.
        temperature: τ of ``"cwd"``.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the maps differ in shape, or the mask does not fit.
        ValueError: integer maps, τ ≤ 0, an unknown distance, reduction or scope.

    >>> ikd_loss(torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), 3.0), alpha=0.5)
    tensor(18.)
    """
    check_maps(student_feature, teacher_feature, mask, same_shape=True)
    check_choice("distance", distance, ("mse", "l1", "cwd"))
    check_temperature(temperature)
    check_reduction(reduction, scope)
    with torch.autocast(student_feature.device.type, enabled=False):
        student, teacher = upcast(student_feature, teacher_feature.detach())
        student, teacher = blank_rows(student, mask), blank_rows(teacher, mask)
        if distance == "cwd":
            per_sample = cwd_loss(student, teacher, temperature=temperature, reduction="none")
        else:
            gap = student - teacher
            per_sample = (gap.square() if distance == "mse" else gap.abs()).sum(dim=(1, 2, 3))
        return reduce_samples(alpha * per_sample, mask, reduction=reduction, scope=scope)


@final
class IKDLoss(Loss):
    """Features of adversarial images; owns the alignment of channels; see :func:`ikd_loss`."""

    name = "ikd"
    paper = Paper(
        title="Exploring Inconsistent Knowledge Distillation for Object Detection with Data "
        "Augmentation",
        authors="Jiawei Liang, Siyuan Liang, Aishan Liu, Ke Ma, Jingzhi Li, Xiaochun Cao",
        venue="ACM MM",
        year=2023,
        url="https://arxiv.org/abs/2209.09841",
    )
    equation = "L = α · meanᵢ ‖φ(Fˢ(xᵢ)) − Fᵗ(xᵢ)‖²,  x adversarial"
    family = "feature"
    sources: ClassVar = {
        **dict.fromkeys(("student_channels", "teacher_channels"), "yours: of the two maps"),
        "distance": "authors' code: mse",
        "alpha": "authors' code: its RetinaNet and RepPoints settings, 1e-5",
        "temperature": "ours: 4, as for CWD; the authors' code leaves it to the user",
        "reduction": "authors' code: sum over channels and locations, mean over images",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        distance: Distance = "mse",
        alpha: float = 1e-5,
        temperature: float = 4.0,
        *,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_choice("distance", distance, ("mse", "l1", "cwd"))
        check_temperature(temperature)
        check_reduction(reduction, scope)
        self.student_channels, self.teacher_channels = student_channels, teacher_channels
        self.distance, self.alpha, self.temperature = distance, alpha, temperature
        self.reduction, self.scope = reduction, scope
        self.align = align_channels(student_channels, teacher_channels)

    def forward(
        self,
        student_feature: Float[Tensor, "batch student_channels height width"],
        teacher_feature: Float[Tensor, "batch teacher_channels height width"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Align the channels, then call :func:`ikd_loss` with the stored hyper-parameters."""
        projected = project(self.align, student_feature, mask, channels=self.student_channels)
        return ikd_loss(projected, teacher_feature, mask=mask, **self.options)
