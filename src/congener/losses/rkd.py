r"""Relational knowledge distillation, RKD (Park, Kim, Lu and Cho, CVPR 2019).

What a teacher knows is the structure of its outputs rather than each output alone. The student
keeps the distances between pairs of samples, and the angles between triplets.

.. math::
    L_D = \frac{1}{B^2} \sum_{i,j} \ell \Big( \frac{d^s_{ij}}{\mu^s}, \frac{d^t_{ij}}{\mu^t} \Big),
    \quad L_A = \frac{1}{B^3} \sum_{i,j,k} \ell \big( \cos \angle^s_{jik}, \cos \angle^t_{jik} \big)

=====================  ========================================  =========================
symbol                 argument                                  default
=====================  ========================================  =========================
:math:`f`              ``student_feature``, ``teacher_feature``  flattened to (batch, rest)
:math:`\lambda_D`      ``distance_weight``                       25, RepDistiller
:math:`\lambda_A`      ``angle_weight``                          50, RepDistiller
=====================  ========================================  =========================

Conventions
    L = λ_D L_D + λ_A L_A. d is Euclidean, its square at least 1e-12, μ its mean over all pairs of
    two samples, ℓ the Huber loss with δ = 1. Means run over all B² and B³ index tuples, those with
    equal indices included, whose relations are 0. Angles take B³ time. No task loss is included.

Differences from the authors' code
    Values as in RKD (0a6c3c0), RepDistiller (b84f547) and mdistiller. Points may lie close to each
    other, which cancels there; two that coincide form angles with gradient 0, there of order 1e12;
    a lone sample gives 0, there NaN.
"""

from typing import ClassVar, final

from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.losses.rkd_parts import rkd_angle_loss, rkd_distance_loss
from congener.ops.collectives import Scope
from congener.ops.reduction import Reduction, check_reduction
from congener.types import Paper

__all__ = ["RKDLoss", "rkd_loss"]


def rkd_loss(
    student_feature: Float[Tensor, "batch *student_axes"],
    teacher_feature: Float[Tensor, "batch *teacher_axes"],
    *,
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Distances of pairs and angles of triplets, weighted.

    Args:
        student_feature: (batch, ...) with 2 to 5 axes.
        teacher_feature: (batch, ...), other axes free; no gradient flows into it.
        distance_weight: λ_D, weight of the distances.
        angle_weight: λ_A, weight of the angles; they take B³ time unless it is 0.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"``, ``"none"``: what each sample adds as first of a pair and as vertex,
            whose mean it is, ``"sum"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the batch sizes differ, or a feature or the mask has the wrong axes.
        ValueError: integer features, an unknown reduction or scope.

    >>> import torch
    >>> student = torch.tensor([[0.0], [1.0], [2.0]])
    >>> rkd_loss(student, 3 - 2 * student)  # neither shift, scale nor rotation counts
    tensor(0.)
    """
    features = (student_feature, teacher_feature)
    loss = distance_weight * rkd_distance_loss(
        *features, mask=mask, reduction=reduction, scope=scope
    )
    if angle_weight == 0:
        return loss
    return loss + angle_weight * rkd_angle_loss(
        *features, mask=mask, reduction=reduction, scope=scope
    )


@final
class RKDLoss(Loss):
    """Distances and angles between the samples of a batch; see :func:`rkd_loss`."""

    name = "rkd"
    paper = Paper(
        title="Relational Knowledge Distillation",
        authors="Wonpyo Park, Dongju Kim, Yan Lu, Minsu Cho",
        venue="CVPR",
        year=2019,
        url="https://arxiv.org/abs/1904.05068",
    )
    equation = "L = λ_D · meanᵢⱼ ℓ(dˢᵢⱼ/μˢ, dᵗᵢⱼ/μᵗ) + λ_A · meanᵢⱼₖ ℓ(cos∠ˢⱼᵢₖ, cos∠ᵗⱼᵢₖ)"
    family = "relation"
    batch_coupled = True
    sources: ClassVar = {
        "distance_weight": "RepDistiller, mdistiller: 25",
        "angle_weight": "RepDistiller, mdistiller: 50; twice λ_D also in the paper, from memory",
        "reduction": "authors' code: mean over all pairs and triplets",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        *,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_reduction(reduction, scope)
        self.distance_weight, self.angle_weight = distance_weight, angle_weight
        self.reduction, self.scope = reduction, scope

    def forward(
        self,
        student_feature: Float[Tensor, "batch *student_axes"],
        teacher_feature: Float[Tensor, "batch *teacher_axes"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`rkd_loss` with the stored hyper-parameters."""
        return rkd_loss(student_feature, teacher_feature, mask=mask, **self.options)
