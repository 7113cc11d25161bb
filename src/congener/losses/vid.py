r"""Variational information distillation, VID (Ahn et al., CVPR 2019).

A Gaussian whose mean a projector predicts from the student's map, and whose variance is learnt for
each channel, bounds what the map tells of the teacher's; the loss is its negative log-likelihood.

.. math::
    L = \frac{1}{B \, C H W} \sum_{i,c,h,w} \frac12 \Big[
        \frac{(\mu(f^s_i) - f^t_i)_{chw}^2}{\sigma_c^2} + \log \sigma_c^2 \Big], \qquad
    \sigma_c^2 = \log(1 + e^{\alpha_c}) + \epsilon

=================  ====================  ==========================
symbol             argument              default
=================  ====================  ==========================
:math:`\mu(f^s)`   ``student_feature``   the predicted mean
:math:`f^t`        ``teacher_feature``   of the same shape
:math:`\alpha`     ``log_scale``         starts at a variance of 5
:math:`\epsilon`   ``eps``               1e-5
=================  ====================  ==========================

Conventions
    Mean over all elements and samples, without log(2π)/2. It can be negative; at the match its
    gradient is 0, not its value. The projector is three 1×1 convolutions, after the larger map is
    average-pooled to the smaller. The task loss is not included.

Differences from the authors' code
    RepDistiller (b84f547) gives the same value; it overflows at α > 88. mdistiller never trains α.
"""

from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.losses.vid_parts import check_scale, mean_projector, starting_scale
from congener.ops.checks import check_channels, check_maps, check_same_shape
from congener.ops.collectives import Scope
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.ops.spatial import match_sizes, positions
from congener.types import Paper

__all__ = ["VIDLoss", "vid_loss"]


def vid_loss(
    student_feature: Float[Tensor, "batch channels *places"],
    teacher_feature: Float[Tensor, "batch channels *places"],
    log_scale: Float[Tensor, " channels"],
    *,
    eps: float = 1e-5,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Negative log-likelihood of the teacher's feature under the student's Gaussian.

    Args:
        student_feature: the predicted mean, (batch, channels, ...).
        teacher_feature: of the same shape; no gradient flows into it.
        log_scale: α, (channels,), trained with the student.
        eps: the least variance.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the features differ in shape, or the scales or the mask do not fit.
        ValueError: integer inputs, a negative eps, an unknown reduction or scope.

    >>> student, teacher = torch.tensor([[3.0]]), torch.tensor([[1.0]])
    >>> log_scale = torch.tensor([1.0]).expm1().log()  # a variance of 1
    >>> round(vid_loss(student, teacher, log_scale, eps=0.0).item(), 4)
    2.0
    """
    way_out = "a projector predicts the mean: VIDLoss(student_channels, teacher_channels)"
    check_same_shape(student_feature, teacher_feature, mask, way_out=way_out)
    check_scale(log_scale, student_feature, eps)
    check_reduction(reduction, scope)
    with torch.autocast(student_feature.device.type, enabled=False):
        mean, target, scale = upcast(student_feature, teacher_feature.detach(), log_scale)
        mean, target = (positions(blank_rows(x, mask)) for x in (mean, target))
        variance = (torch.logaddexp(scale, torch.zeros_like(scale)) + eps).unsqueeze(1)
        errors = (mean - target).square() / variance + variance.log()
        per_sample = 0.5 * errors.flatten(1).mean(dim=1)
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


@final
class VIDLoss(Loss):
    """A Gaussian around what a projector predicts of the teacher's map; see :func:`vid_loss`."""

    name = "vid"
    paper = Paper(
        title="Variational Information Distillation for Knowledge Transfer",
        authors="Sungsoo Ahn, Shell Xu Hu, Andreas Damianou, Neil D. Lawrence, Zhenwen Dai",
        venue="CVPR",
        year=2019,
        url="https://arxiv.org/abs/1904.05835",
    )
    equation = "L = mean ½·( (μ(fˢ) − fᵗ)²/σ² + log σ² ),  σ² = softplus(α) + ε for each channel"
    family = "feature"
    zero_at_match = False
    sources: ClassVar = {
        **dict.fromkeys(("student_channels", "teacher_channels"), "yours: the maps' channels"),
        "hidden_channels": "RepDistiller: as many as the teacher's",
        **dict.fromkeys(("init_variance", "eps", "reduction"), "RepDistiller, from the author"),
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        hidden_channels: int | None = None,
        *,
        init_variance: float = 5.0,
        eps: float = 1e-5,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_reduction(reduction, scope)
        self.student_channels, self.teacher_channels = student_channels, teacher_channels
        self.hidden_channels, self.init_variance, self.eps = hidden_channels, init_variance, eps
        self.reduction, self.scope = reduction, scope
        self.projector = mean_projector(student_channels, hidden_channels, teacher_channels)
        self.log_scale = starting_scale(teacher_channels, init_variance, eps)

    def forward(
        self,
        student_feature: Float[Tensor, "batch student_channels student_height student_width"],
        teacher_feature: Float[Tensor, "batch teacher_channels teacher_height teacher_width"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Bring the maps to one size, predict the mean, then call :func:`vid_loss`."""
        check_maps(student_feature, teacher_feature, mask)
        check_channels("student_feature", student_feature, self.student_channels)
        check_channels("teacher_feature", teacher_feature, self.teacher_channels)
        student, teacher = match_sizes(*upcast(blank_rows(student_feature, mask), teacher_feature))
        mean = self.projector(student.to(self.log_scale.dtype))
        return vid_loss(
            mean, teacher, self.log_scale,
            eps=self.eps, mask=mask, reduction=self.reduction, scope=self.scope,
        )  # fmt: skip
