r"""A gift from knowledge distillation, FSP (Yim et al., CVPR 2017).

How one stage's channels go with the next stage's is the flow by which a network solves a problem.
The student is asked for the teacher's flow, not for its features.

.. math::
    L = \sum_{k=1}^{K-1} \frac{1}{B} \sum_{i=1}^{B} \frac{1}{C_k C_{k+1}}
        \big\| G^s_{ik} - G^t_{ik} \big\|_F^2, \qquad
    G_{ik} = \frac{1}{H W} \, F_{i,k+1} \, F_{ik}^\top

=============  ======================  =================================================
symbol         argument                default
=============  ======================  =================================================
:math:`F^s`    ``student_features``    K maps, shallow to deep, as (C, HW)
:math:`F^t`    ``teacher_features``    likewise, of the same channels, of any sizes
:math:`G`      ``variant``             ``"repdistiller"``: pooled by averages
=============  ======================  =================================================

Conventions
    Sum over neighbouring stages, mean over the matrix' entries and over samples. Within a pair the
    larger map is pooled to the smaller. Equal flows give 0. The task loss is not included.

Differences from the authors' code
    None was found. RepDistiller (b84f547) gives the same value, but for maps that are not square.
    ``"paper"``, from memory, pools by maxima and sums the matrix' squares: about C² times as much.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.errors import ShapeError
from congener.losses.base import Loss
from congener.ops.checks import check_choice, check_maps, check_same_channels
from congener.ops.collectives import Scope
from congener.ops.levels import check_levels
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.ops.spatial import match_sizes
from congener.types import Paper

__all__ = ["FSPLoss", "fsp_loss"]

Variant = Literal["repdistiller", "paper"]


def fsp_loss(
    student_features: Sequence[Float[Tensor, "batch _ _ _"]],
    teacher_features: Sequence[Float[Tensor, "batch _ _ _"]],
    *,
    variant: Variant = "repdistiller",
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Squared distance of the two networks' flows between neighbouring stages.

    Args:
        student_features: two or more maps (batch, channels, height, width), shallow to deep.
        teacher_features: as many, of the same channels each; no gradient flows into them.
        variant: ``"repdistiller"``: pooled averages, mean squares; ``"paper"``: maxima, their sum.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: too few stages, or stages or a mask that do not fit.
        ValueError: integer features, an unknown variant, reduction or scope.

    >>> one, two = torch.full((1, 1, 2, 2), 1.0), torch.full((1, 1, 1, 1), 2.0)
    >>> fsp_loss([one, two], [one, 2 * two])  # flows 2 and 4
    tensor(4.)
    """
    _check_stages(student_features, teacher_features, mask)
    check_choice("variant", variant, ("repdistiller", "paper"))
    check_reduction(reduction, scope)
    with torch.autocast(student_features[0].device.type, enabled=False):
        upcasted = upcast(*student_features, *(x.detach() for x in teacher_features))
        features, stages = [blank_rows(x, mask) for x in upcasted], len(student_features)
        mine, theirs = _flows(features[:stages], variant), _flows(features[stages:], variant)
        squares = [(a - b).square().flatten(1) for a, b in zip(mine, theirs, strict=True)]
        per_pair = [x.mean(dim=1) if variant == "repdistiller" else x.sum(dim=1) for x in squares]
        per_sample = torch.stack(per_pair).sum(dim=0)
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


def _flows(features: Sequence[Tensor], variant: Variant) -> list[Tensor]:
    pool: Literal["average", "max"] = "average" if variant == "repdistiller" else "max"
    pairs = [match_sizes(shallow, deep, pool=pool) for shallow, deep in pairwise(features)]
    return [b.flatten(2) @ a.flatten(2).mT / b.shape[2:].numel() for a, b in pairs]


def _check_stages(mine: Sequence[Tensor], theirs: Sequence[Tensor], mask: Tensor | None) -> None:
    check_levels(mine, theirs, mask, same_shape=False)
    if len(mine) < 2:
        raise ShapeError("student_features has one stage; a flow needs two neighbours, or more.")
    for student, teacher in zip(mine, theirs, strict=True):
        check_maps(student, teacher)
        check_same_channels(student, teacher)


@final
class FSPLoss(Loss):
    """How each stage's channels go with the next stage's; see :func:`fsp_loss`."""

    name = "fsp"
    paper = Paper(
        title="A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and "
        "Transfer Learning",
        authors="Junho Yim, Donggyu Joo, Jihoon Bae, Junmo Kim",
        venue="CVPR",
        year=2017,
        url="https://doi.org/10.1109/CVPR.2017.754",
    )
    equation = "L = Σₖ meanᵢ ‖ Gˢᵢₖ − Gᵗᵢₖ ‖²_F / CₖCₖ₊₁,  Gₖ = Fₖ₊₁·Fₖᵀ / HW"
    family = "feature"
    sources: ClassVar = {
        "variant": "RepDistiller's pooling and mean; the paper's are from memory",
        "reduction": "RepDistiller: mean over samples",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        variant: Variant = "repdistiller",
        *,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_choice("variant", variant, ("repdistiller", "paper"))
        check_reduction(reduction, scope)
        self.variant, self.reduction, self.scope = variant, reduction, scope

    def forward(
        self,
        student_features: Sequence[Float[Tensor, "batch _ _ _"]],
        teacher_features: Sequence[Float[Tensor, "batch _ _ _"]],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`fsp_loss` with the stored hyper-parameters."""
        return fsp_loss(student_features, teacher_features, mask=mask, **self.options)
