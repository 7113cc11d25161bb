r"""Knowledge review, ReviewKD (Chen, Liu, Zhao and Jia, CVPR 2021).

A deep level of the student learns from the teacher's shallower levels too: student features are
fused from deep to shallow, and each is compared with the teacher's at several scales.

.. math::
    L = \sum_{i=1}^{n} \frac{1}{\sum_k w_k} \sum_k w_k \,
        \mathrm{MSE}\big(\pi_k(\hat F^s_i), \pi_k(F^t_i)\big), \qquad
    \pi = (\text{id}, \text{pool}_4, \text{pool}_2, \text{pool}_1), \; w = (1, ½, ¼, ⅛)

=================  =====================  ==============================================
symbol             argument               default
=================  =====================  ==============================================
:math:`\hat F^s`   ``student_features``   fused by :class:`ReviewKDProjector`
:math:`F^t`        ``teacher_features``   shallow to deep, before their ReLU
(channels)         ``mid_channels``       min(512, the student's deepest)
=================  =====================  ==============================================

Conventions
    Mean over all elements of a level, sum over levels. Pools not smaller than the map's height are
    left out, the others take ½, ¼, ⅛ in order. The deepest level is usually the pooled feature,
    (batch, channels). The warm-up min(epoch / 20, 1) is the caller's schedule. Samples are
    independent but for batch normalisation in the projector.

Differences from the authors' code
    None in value (dvlab-research/ReviewKD, cede6ea); maps need not be square.
"""

from collections.abc import Sequence
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.losses.reviewkd_parts import ReviewKDProjector
from congener.ops.checks import check_maps
from congener.ops.collectives import Scope
from congener.ops.levels import check_levels
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.ops.spatial import as_map
from congener.types import Paper

__all__ = ["ReviewKDLoss", "hcl_loss"]


def hcl_loss(
    student_features: Sequence[Float[Tensor, "batch ..."]],
    teacher_features: Sequence[Float[Tensor, "batch ..."]],
    *,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Hierarchical context loss: squared error of maps and of their coarse summaries.

    Args:
        student_features: for each level (batch, channels, height, width) or (batch, channels).
        teacher_features: likewise; no gradient flows into them.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the levels differ in number or shape, or the mask does not fit.
        ValueError: integer features, an unknown reduction or scope.

    >>> student, teacher = torch.tensor([[[[3.0, 1.0], [1.0, 1.0]]]]), torch.ones(1, 1, 2, 2)
    >>> round(hcl_loss([student], [teacher]).item(), 4)  # (4/4 + (2/4)² / 2) / (1 + 1/2)
    0.75
    """
    check_levels(student_features, teacher_features, mask)
    check_reduction(reduction, scope)
    levels = []
    with torch.autocast(student_features[0].device.type, enabled=False):
        for mine, theirs in zip(student_features, teacher_features, strict=True):
            student, teacher = upcast(as_map(mine), as_map(theirs.detach()))
            check_maps(student, teacher, mask)
            levels.append(_hierarchy(blank_rows(student, mask) - blank_rows(teacher, mask)))
        per_sample = torch.stack(upcast(*levels)).sum(dim=0)
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


def _hierarchy(error: Tensor) -> Tensor:
    """Mean squares of the error and of its averages over ever coarser grids, sample by sample."""
    sizes = [size for size in (4, 2, 1) if size < error.shape[2]]
    scales = [error, *(F.adaptive_avg_pool2d(error, size) for size in sizes)]
    shares = [2.0**-k / (2 - 2.0 ** -len(sizes)) for k in range(len(scales))]
    squares = [scale.square().mean(dim=(1, 2, 3)) for scale in scales]
    return torch.stack([w * square for w, square in zip(shares, squares, strict=True)]).sum(dim=0)


@final
class ReviewKDLoss(Loss):
    """Fused student levels against the teacher's; see :func:`hcl_loss`.

    It owns the ``projector``, which trains with the student and then is left behind.
    """

    name = "reviewkd"
    paper = Paper(
        title="Distilling Knowledge via Knowledge Review",
        authors="Pengguang Chen, Shu Liu, Hengshuang Zhao, Jiaya Jia",
        venue="CVPR",
        year=2021,
        url="https://arxiv.org/abs/2104.09044",
    )
    equation = "L = Σᵢ Σₖ wₖ·MSE( poolₖ(F̂ˢᵢ), poolₖ(Fᵗᵢ) ) / Σₖ wₖ,  w = 1, ½, ¼, ⅛"
    family = "feature"
    sources: ClassVar = {
        "student_channels": "yours: channels of the student's levels, shallow to deep",
        "teacher_channels": "yours: channels of the teacher's levels, shallow to deep",
        "mid_channels": "authors' code: None is min(512, the student's deepest)",
        "reduction": "authors' code: mean over all elements",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        mid_channels: int | None = None,
        *,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_reduction(reduction, scope)
        channels = (student_channels, teacher_channels, mid_channels)
        self.projector = ReviewKDProjector(*channels, scope=scope)
        self.student_channels, self.teacher_channels = student_channels, teacher_channels
        self.mid_channels, self.reduction, self.scope = mid_channels, reduction, scope

    def forward(
        self,
        student_features: Sequence[Float[Tensor, "batch ..."]],
        teacher_features: Sequence[Float[Tensor, "batch ..."]],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Fuse the student's levels, then call :func:`hcl_loss`."""
        fused = self.projector(student_features, teacher_features, mask)
        return hcl_loss(
            fused, teacher_features, mask=mask, reduction=self.reduction, scope=self.scope
        )
