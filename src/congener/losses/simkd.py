r"""Knowledge distillation with the reused teacher classifier, SimKD (Chen et al., CVPR 2022).

The student keeps the teacher's classifier as it is and only learns to feed it: its last map is
projected to the teacher's and matched. Projector and classifier stay with the student.

.. math::
    L = \frac{1}{B} \sum_{i=1}^{B} \frac{1}{D} \, \| P(F^s_i) - F^t_i \|_2^2

===============  ====================  ==============================================
symbol           argument              default
===============  ====================  ==============================================
:math:`P(F^s)`   ``student_feature``   behind the :class:`SimKDProjector`
:math:`F^t`      ``teacher_feature``   the map that the teacher pools and classifies
(bottleneck)     ``factor``            2: the projector has half the teacher's channels
===============  ====================  ==============================================

Conventions
    Mean over all D elements of a map, and over samples. The larger of two maps is average-pooled
    to the smaller before it is projected. It is the only loss: no task loss, and the prediction is
    the teacher's classifier on the projected map, averaged over its positions. Samples are
    independent but for batch normalisation in the projector.

Differences from the authors' code
    None in value (DefangChen/SimKD, 2b389c3); maps need not be square. The paper writes the squared
    norm, without 1/D.
"""

from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.losses.simkd_parts import SimKDProjector
from congener.ops.checks import check_maps, check_same_channels
from congener.ops.collectives import Scope
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.ops.spatial import as_map, match_sizes
from congener.types import Paper

__all__ = ["SimKDLoss", "simkd_loss"]


def simkd_loss(
    student_feature: Float[Tensor, "batch channels *student_size"],
    teacher_feature: Float[Tensor, "batch channels *teacher_size"],
    *,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Mean squared error of the projected map.

    Args:
        student_feature: the projected map, (batch, channels, height, width), or (batch, channels).
        teacher_feature: likewise; the larger of the two is average-pooled to the smaller. No
            gradient flows into it.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the batches or channels differ, or the mask does not fit.
        ValueError: integer features, an unknown reduction or scope.

    >>> simkd_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]]))
    tensor(2.)
    """
    check_same_channels(student_feature, teacher_feature, mask)
    check_maps(as_map(student_feature), as_map(teacher_feature), mask)
    check_reduction(reduction, scope)
    with torch.autocast(student_feature.device.type, enabled=False):
        student, teacher = upcast(as_map(student_feature), as_map(teacher_feature.detach()))
        student, teacher = match_sizes(blank_rows(student, mask), blank_rows(teacher, mask))
        per_sample = (student - teacher).square().mean(dim=(1, 2, 3))
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


@final
class SimKDLoss(Loss):
    """The projected last map against the teacher's; see :func:`simkd_loss`.

    It owns the :class:`SimKDProjector`, ``projector``, which the exported student needs too.
    """

    name = "simkd"
    paper = Paper(
        title="Knowledge Distillation with the Reused Teacher Classifier",
        authors="Defang Chen, Jian-Ping Mei, Hailin Zhang, Can Wang, Yan Feng, Chun Chen",
        venue="CVPR",
        year=2022,
        url="https://arxiv.org/abs/2203.14001",
    )
    equation = "L = meanᵢ ‖ P(Fˢᵢ) − Fᵗᵢ ‖² / D,  P a bottleneck of convolutions"
    family = "feature"
    sources: ClassVar = {
        "student_channels": "yours: channels of the student's last map",
        "teacher_channels": "yours: channels of the teacher's last map",
        "factor": "authors' code: 2",
        "reduction": "authors' code: mean over all elements",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        factor: int = 2,
        *,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_reduction(reduction, scope)
        self.projector = SimKDProjector(student_channels, teacher_channels, factor, scope=scope)
        self.student_channels, self.teacher_channels = student_channels, teacher_channels
        self.factor, self.reduction, self.scope = factor, reduction, scope

    def forward(
        self,
        student_feature: Float[Tensor, "batch student_channels *student_size"],
        teacher_feature: Float[Tensor, "batch teacher_channels *teacher_size"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Pool the larger map, project the student's, then call :func:`simkd_loss`."""
        student, teacher = as_map(student_feature), as_map(teacher_feature)
        check_maps(student, teacher, mask)
        student, teacher = match_sizes(student, teacher)
        projected = self.projector(student, mask)
        return simkd_loss(projected, teacher, mask=mask, reduction=self.reduction, scope=self.scope)
