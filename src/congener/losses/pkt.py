r"""Probabilistic knowledge transfer, PKT (Passalis and Tefas, ECCV 2018).

How likely each sample would pick each other one as its neighbour describes a feature space of any
width. The student's distribution over neighbours follows the teacher's.

.. math::
    L = \frac{1}{B^2} \sum_{i,j} p^t_{j|i} \log \frac{p^t_{j|i} + \epsilon}{p^s_{j|i} + \epsilon},
    \qquad p_{j|i} = \frac{k_{ij}}{\sum_l k_{il}}, \quad k_{ij} = \tfrac12 (\cos(f_i, f_j) + 1)

================  ========================================  ==========================
symbol            argument                                  default
================  ========================================  ==========================
:math:`f`         ``student_feature``, ``teacher_feature``  flattened to (batch, rest)
:math:`\epsilon`  ``eps``                                   1e-7, authors' code
================  ========================================  ==========================

Conventions
    ``"authors"``: mean over all B² pairs, each sample its own neighbour too; ε is also added to the
    norms. ``"paper"``: no sample is its own neighbour, and divergences are summed, some B² times as
    much; ε only keeps 0 out of the logarithm. No task loss is included.

Differences from the authors' code
    Values as in probabilistic_kt (a58fd1b). A sample of zeros gets gradient 0; there it is NaN.
"""

from typing import ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.ops.checks import check_choice, check_features
from congener.ops.collectives import Scope, batch_size, warn_if_alone
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, check_reduction, reduce_samples
from congener.ops.relations import by_rows, gather_batch, unit_rows
from congener.types import Paper

__all__ = ["PKTLoss", "pkt_loss"]

Variant = Literal["authors", "paper"]


def pkt_loss(
    student_feature: Float[Tensor, "batch *student_axes"],
    teacher_feature: Float[Tensor, "batch *teacher_axes"],
    *,
    eps: float = 1e-7,
    variant: Variant = "authors",
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Divergence of the students' choice of neighbours from the teachers'.

    Args:
        student_feature: (batch, ...) with 2 to 5 axes.
        teacher_feature: (batch, ...), other axes free; no gradient flows into it.
        eps: ε, keeps norms and logarithms finite.
        variant: ``"authors"``: their code; ``"paper"``: no self-pairs, sum instead of mean.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"``, ``"none"``: each sample's row of it, whose mean it is, ``"sum"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the batch sizes differ, or a feature or the mask has the wrong axes.
        ValueError: integer features, ε ≤ 0, an unknown variant, reduction or scope.

    >>> student, teacher = torch.tensor([[1.0], [1.0]]), torch.eye(2)
    >>> round(pkt_loss(student, teacher).item(), 4)  # (2/3 log 4/3 + 1/3 log 2/3) / 2
    0.0283
    """
    check_features(student_feature, teacher_feature, mask)
    _check_options(eps, variant)
    check_reduction(reduction, scope)
    warn_if_alone(student_feature, "pkt", scope=scope)
    authors = variant == "authors"
    with torch.autocast(student_feature.device.type, enabled=False):
        student, teacher = upcast(student_feature.flatten(1), teacher_feature.detach().flatten(1))
        batch = gather_batch(student, teacher, mask, scope=scope)
        students, teachers = (unit_rows(x, add=eps if authors else 0.0) for x in batch[:2])

        def divergence(s: Tensor, t: Tensor, _: Tensor, place: Tensor, *everyone: Tensor) -> Tensor:
            all_s, all_t, kept, places = everyone
            pairs = kept if authors else kept & (places != place.unsqueeze(1))
            p_s, p_t = _choice(s @ all_s.T, pairs), _choice(t @ all_t.T, pairs)
            if authors:
                return (p_t * ((p_t + eps) / (p_s + eps)).log()).sum(dim=1)
            return (p_t * (p_t.clamp(min=eps) / p_s.clamp(min=eps)).log()).sum(dim=1)

        rows = by_rows(divergence, (students, teachers, batch.kept, batch.places), batch.own)
        count = batch_size(student, mask, scope=scope)
        per_sample = rows / count if authors else rows * count
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


def _choice(cosines: Tensor, pairs: Tensor) -> Tensor:
    likeness = (cosines + 1) / 2 * pairs
    return likeness / likeness.sum(dim=1, keepdim=True).clamp(min=1e-30)


def _check_options(eps: float, variant: str) -> None:
    check_choice("variant", variant, ("authors", "paper"))
    if not 0 < eps < 1:
        raise ValueError(f"eps must lie between 0 and 1, not {eps}.")


@final
class PKTLoss(Loss):
    """Whom each sample of a batch would pick as its neighbour; see :func:`pkt_loss`."""

    name = "pkt"
    paper = Paper(
        title="Learning Deep Representations with Probabilistic Knowledge Transfer",
        authors="Nikolaos Passalis, Anastasios Tefas",
        venue="ECCV",
        year=2018,
        url="https://arxiv.org/abs/1803.10837",
    )
    equation = "L = Σᵢⱼ pᵗ(j|i) · log( (pᵗ(j|i)+ε) / (pˢ(j|i)+ε) ) / B²,  p(j|i) ∝ (cos(fᵢ,fⱼ)+1)/2"
    family = "relation"
    batch_coupled = True
    sources: ClassVar = {
        "eps": "authors' code: 1e-7",
        "variant": "authors' code, which the published weights (RepDistiller: 30000) belong to",
        "reduction": "authors' code: mean over all pairs",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self, eps: float = 1e-7, *, variant: Variant = "authors", reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:  # fmt: skip
        super().__init__()
        _check_options(eps, variant)
        check_reduction(reduction, scope)
        self.eps, self.variant, self.reduction, self.scope = eps, variant, reduction, scope

    def forward(
        self,
        student_feature: Float[Tensor, "batch *student_axes"],
        teacher_feature: Float[Tensor, "batch *teacher_axes"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`pkt_loss` with the stored hyper-parameters."""
        return pkt_loss(student_feature, teacher_feature, mask=mask, **self.options)
