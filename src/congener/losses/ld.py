r"""Localisation distillation, LD (Zheng et al., CVPR 2022).

Some detectors predict each edge of a box as a distribution over distances, which also tells how
sure they are of the edge. The student's distributions are drawn to the teacher's, edge by edge.

.. math::
    L = \frac{1}{\sum_i w_i} \sum_i w_i \, \frac{1}{4} \sum_{e=1}^{4} \frac{\tau^2}{n}
        \sum_{k=1}^{n} p^t_{iek} \log \frac{p^t_{iek}}{p^s_{iek}}, \qquad p = \sigma(z / \tau)

=============  ======================================  =======================================
symbol         argument                                default
=============  ======================================  =======================================
:math:`z`      ``student_logits``, ``teacher_logits``  (locations, 4 edges, n bins)
:math:`w`      ``location_weights``                    1; the student's best class score there
:math:`\tau`   ``temperature``                         10, authors' code
=============  ======================================  =======================================

Conventions
    The batch axis is that of the positive locations of all images and levels. Mean over the bins,
    not their sum: with 17 bins 17 times smaller than the divergence. Authors weigh the term by
    0.25. For the valuable region give its locations, w = their overlaps, and a quarter of that.

Differences from the authors' code
    The release (HikariTJU/LD, 258b2a1) divides its other box losses by the sum of the weights of
    all processes, but not this one, which so depends on how a batch is split over processes. It is
    ``normalize="locations", reduction="sum", scope="local"``; ours is the same for every split.
"""

from typing import ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.losses.ld_parts import check_edges
from congener.ops.checks import check_choice, check_temperature
from congener.ops.collectives import Scope, all_sum, batch_size
from congener.ops.divergence import kl_rows
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.types import Paper

__all__ = ["LDLoss", "ld_loss"]

Normalize = Literal["weights", "locations"]


def ld_loss(
    student_logits: Float[Tensor, "batch edges bins"],
    teacher_logits: Float[Tensor, "batch edges bins"],
    location_weights: Float[Tensor, " batch"] | None = None,
    *,
    temperature: float = 10.0,
    normalize: Normalize = "weights",
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Weighted divergence of the edges' distributions over the bins, times τ².

    Args:
        student_logits: (locations, edges, bins); locations are the samples.
        teacher_logits: of the same shape; no gradient flows into it.
        location_weights: w, (locations,), not negative; a constant; all 1 if not given.
        temperature: τ, softens both distributions.
        normalize: divide by the sum of the ``"weights"``, or by the number of ``"locations"``.
        mask: (locations,), which locations count; the others are as if absent.
        reduction: ``"mean"``, ``"none"``: what each location adds to it, or ``"sum"`` of those.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (locations,) for ``"none"``; at least float32; 0 where no weight is left.

    Raises:
        ShapeError: the logits differ in shape, or the weights or the mask do not fit.
        ValueError: integer logits or weights, τ ≤ 0, an unknown normalisation, reduction or scope.

    >>> student, teacher = torch.zeros(1, 1, 2), torch.tensor([[[4.0, 0.0]]])
    >>> round(ld_loss(student, teacher, temperature=4.0).item(), 4)  # half of the divergence
    0.8876
    """
    check_edges(student_logits, teacher_logits, location_weights, mask)
    check_temperature(temperature)
    check_choice("normalize", normalize, ("weights", "locations"))
    check_reduction(reduction, scope)
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher = upcast(student_logits, teacher_logits.detach())
        student, teacher = blank_rows(student, mask), blank_rows(teacher, mask)
        rows = kl_rows(student.flatten(0, 1), teacher.flatten(0, 1), temperature)
        divergences = rows.reshape(student.shape[:2]).mean(dim=1)
        weights = torch.ones_like(divergences) if location_weights is None else location_weights
        weights = blank_rows(weights.detach().to(divergences.dtype), mask)
        per_sample = weights * (temperature**2 / student.shape[2] * divergences)
        if normalize == "weights":
            total = all_sum(weights.sum(), scope=scope)
            count = batch_size(weights, mask, scope=scope)
            per_sample = per_sample * (count / torch.where(total > 0, total, 1))
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


@final
class LDLoss(Loss):
    """Where the edges of boxes may be; see :func:`ld_loss`."""

    name = "ld"
    paper = Paper(
        title="Localization Distillation for Dense Object Detection",
        authors="Zhaohui Zheng, Rongguang Ye, Ping Wang, Dongwei Ren, Wangmeng Zuo, Qibin Hou, "
        "Ming-Ming Cheng",
        venue="CVPR",
        year=2022,
        url="https://arxiv.org/abs/2102.12252",
    )
    equation = "L = τ² · Σᵢ wᵢ · mean over edges and bins of pᵗ·log(pᵗ/pˢ) / Σᵢ wᵢ"
    family = "response"
    batch_coupled = True
    sources: ClassVar = {
        "temperature": "authors' code: 10",
        "normalize": "ours: by the weights, as the authors' other box losses; theirs is a sum",
        "reduction": "authors' code: mean over bins and edges",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        temperature: float = 10.0,
        normalize: Normalize = "weights",
        *,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_choice("normalize", normalize, ("weights", "locations"))
        check_reduction(reduction, scope)
        self.temperature, self.normalize = temperature, normalize
        self.reduction, self.scope = reduction, scope

    def forward(
        self,
        student_logits: Float[Tensor, "batch edges bins"],
        teacher_logits: Float[Tensor, "batch edges bins"],
        location_weights: Float[Tensor, " batch"] | None = None,
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`ld_loss` with the stored hyper-parameters."""
        tensors = (student_logits, teacher_logits, location_weights)
        return ld_loss(*tensors, mask=mask, **self.options)
