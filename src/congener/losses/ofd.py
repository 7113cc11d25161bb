r"""A comprehensive overhaul of feature distillation, OFD (Heo et al., ICCV 2019).

Features are compared before their ReLU. Of what the ReLU will drop only the sign counts: there the
student need only stay below, and the teacher's value is cut at a margin.

.. math::
    L = \frac{1}{N} \, \frac{1}{B} \sum_{i=0}^{n-1} \frac{1}{2^{n-1-i}} \,
        d_p\big(r_i(F^s_i), \max(F^t_i, m_i)\big), \qquad
    d_p(S, T) = \sum_{j:\, S_j > T_j \text{ or } T_j > 0} (S_j - T_j)^2

==============  ======================  ==========================================
symbol          argument                default
==============  ======================  ==========================================
:math:`r(F^s)`  ``student_features``    projected, shallow to deep
:math:`F^t`     ``teacher_features``    before their ReLU
:math:`m`       ``margins``             of :func:`ofd_margin`
:math:`N`       ``divisor``             1000, authors' CIFAR-100
==============  ======================  ==========================================

Conventions
    Sum over the elements of a level, the deepest counting 1, the one before ½, and so on; mean over
    samples. The task loss is not included. Samples are independent but for batch normalisation in
    the projector.

Differences from the authors' code
    None in value (clovaai/overhaul-distillation, 76344a8). It has the teacher in training mode.
"""

from collections.abc import Sequence
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.errors import ShapeError
from congener.losses.base import Loss
from congener.losses.ofd_parts import OFDProjector, partial_l2_loss
from congener.ops.checks import check_positive
from congener.ops.collectives import Scope
from congener.ops.levels import check_levels
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, check_reduction, reduce_samples
from congener.types import Paper

__all__ = ["OFDLoss", "ofd_loss"]


def ofd_loss(
    student_features: Sequence[Float[Tensor, "batch ..."]],
    teacher_features: Sequence[Float[Tensor, "batch ..."]],
    margins: Sequence[Float[Tensor, " _"]],
    *,
    divisor: float = 1000.0,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Squared error of features before their ReLU, where it would be seen behind it.

    Args:
        student_features: (batch, channels, ...) for each level, in the teacher's shape.
        teacher_features: likewise; no gradient flows into them.
        margins: (channels,) for each level, the least the teacher's feature is taken for.
        divisor: N, brings the sum over a feature's elements to the size of a task loss.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the levels differ in number or shape, or a margin or the mask does not fit.
        ValueError: integer features, a divisor that is not positive, an unknown reduction or scope.

    >>> student, teacher = torch.tensor([[1.0, -3.0]]), torch.tensor([[3.0, -5.0]])
    >>> ofd_loss([student] * 2, [teacher] * 2, [torch.tensor([-1.0, -1.0])] * 2, divisor=1.0)
    tensor(6.)
    """
    check_levels(student_features, teacher_features, mask)
    if len(margins) != len(student_features):
        raise ShapeError(
            f"margins of {len(margins)} levels must be {len(student_features)}; give ofd_margin."
        )
    check_positive("divisor", divisor)
    check_reduction(reduction, scope)
    levels = zip(student_features, teacher_features, margins, strict=True)
    parts = [partial_l2_loss(*level, mask=mask, reduction="none") for level in levels]
    weights = [2.0 ** (i + 1 - len(parts)) / divisor for i in range(len(parts))]
    stacked = torch.stack([w * part for w, part in zip(weights, upcast(*parts), strict=True)])
    return reduce_samples(stacked.sum(dim=0), mask, reduction=reduction, scope=scope)


@final
class OFDLoss(Loss):
    """Projected student levels against the teacher's; see :func:`ofd_loss`.

    It owns the ``projector``, which trains with the student and then is left behind.
    """

    name = "ofd"
    paper = Paper(
        title="A Comprehensive Overhaul of Feature Distillation",
        authors="Byeongho Heo, Jeesoo Kim, Sangdoo Yun, Hyojin Park, Nojun Kwak, Jin Young Choi",
        venue="ICCV",
        year=2019,
        url="https://arxiv.org/abs/1904.01866",
    )
    equation = (
        "L = meanₙ Σᵢ 2^(i+1−n)·dₚ(rᵢ(Fˢᵢ), max(Fᵗᵢ, mᵢ)) / 1000,  dₚ = Σ (S−T)² but at S≤T≤0"
    )
    family = "feature"
    sources: ClassVar = {
        "student_channels": "yours: channels of the student's levels, shallow to deep",
        "teacher_channels": "yours: channels of the teacher's levels, shallow to deep",
        "divisor": "authors' code, CIFAR-100: 1000",
        "reduction": "authors' code: sum over elements, mean over samples",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        divisor: float = 1000.0,
        *,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_positive("divisor", divisor)
        check_reduction(reduction, scope)
        self.projector = OFDProjector(student_channels, teacher_channels, scope=scope)
        self.student_channels, self.teacher_channels = student_channels, teacher_channels
        self.divisor, self.reduction, self.scope = divisor, reduction, scope

    def forward(
        self,
        student_features: Sequence[Float[Tensor, "batch ..."]],
        teacher_features: Sequence[Float[Tensor, "batch ..."]],
        margins: Sequence[Float[Tensor, " _"]],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Project the student's levels, then call :func:`ofd_loss`."""
        projected = self.projector(student_features, teacher_features, mask)
        return ofd_loss(projected, teacher_features, margins, mask=mask, **self.options)
