r"""Products of neighbours' differences: what the authors of CCKD (Peng et al., ICCV 2019) shared.

The code that benchmarks call CC (correlation congruence) is this, not the loss of the paper, which
is :func:`congener.losses.cckd_loss`. Samples that follow each other in the batch are neighbours.

.. math::
    L = \frac{1}{B - 1} \sum_{i=1}^{B-1} \sum_k \delta_{i,k} \, \delta_{i+1,k}, \qquad
    \delta = | e^s - e^t |, \quad e = W f + b

=============  ========================================  ====================================
symbol         argument                                  default
=============  ========================================  ====================================
:math:`e`      ``student_feature``, ``teacher_feature``  of the function
:math:`f`      likewise, of the module                   flattened to (batch, channels)
(width of e)   ``embedding_channels``                    128, RepDistiller
=============  ========================================  ====================================

Conventions
    Depends on the order of the batch, over processes in rank order, without the masked samples. It
    is 0 where every second difference is, and shrinking both embeddings lowers it: it needs another
    loss beside it (RepDistiller: 0.02 of it, 1 of the task loss).

Differences from the authors' code
    Values as in RepDistiller (b84f547). A lone sample has no neighbour and gives 0, there NaN.
"""

from typing import ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from congener.losses.base import Loss
from congener.ops.checks import check_channels, check_features, check_same_shape
from congener.ops.collectives import Scope, batch_size, warn_if_alone
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.ops.relations import gather_batch
from congener.types import Paper

__all__ = ["NeighbourCorrelationLoss", "neighbour_correlation_loss"]


def neighbour_correlation_loss(
    student_feature: Float[Tensor, "batch *axes"],
    teacher_feature: Float[Tensor, "batch *axes"],
    *,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Products of the absolute differences of samples that follow each other.

    Args:
        student_feature: (batch, ...) with 2 to 5 axes, in a space shared with the teacher's.
        teacher_feature: of the same shape; no gradient flows into it.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` over pairs, ``"none"``: what each sample adds to it with the next one,
            or ``"sum"`` of those.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the features differ in shape, or a feature or the mask has the wrong axes.
        ValueError: integer features, an unknown reduction or scope.

    >>> student, teacher = torch.tensor([[1.0], [-2.0], [3.0]]), torch.zeros(3, 1)
    >>> neighbour_correlation_loss(student, teacher)  # (2 + 6) / 2
    tensor(4.)
    """
    way_out = "NeighbourCorrelationLoss(student_channels, teacher_channels) embeds both"
    check_same_shape(student_feature, teacher_feature, mask, way_out=way_out)
    check_reduction(reduction, scope)
    warn_if_alone(student_feature, "neighbour_correlation", scope=scope)
    with torch.autocast(student_feature.device.type, enabled=False):
        student, teacher = upcast(student_feature.flatten(1), teacher_feature.detach().flatten(1))
        batch = gather_batch(student, teacher, mask, scope=scope)
        delta = (batch.student - batch.teacher).abs()
        in_order = torch.argsort(~batch.kept, stable=True)  # those that count come first
        products = (delta[in_order] * delta[in_order.roll(-1)]).sum(dim=1)
        place = torch.arange(len(products), device=delta.device)
        products = torch.where(place < batch.kept.sum() - 1, products, 0)
        count = batch_size(student, mask, scope=scope)
        own = products[in_order.argsort()][batch.own]
        per_sample = own * count / (count - 1).clamp(min=1)
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


def _embed(name: str, embedding: nn.Linear, feature: Tensor, mask: Tensor | None) -> Tensor:
    rows = blank_rows(feature, mask).flatten(1)
    check_channels(name, rows, embedding.in_features)
    with torch.autocast(feature.device.type, enabled=False):
        return F.linear(*upcast(rows, embedding.weight, embedding.bias))


@final
class NeighbourCorrelationLoss(Loss):
    """Products of neighbours' differences, embedded; see :func:`neighbour_correlation_loss`."""

    name = "neighbour_correlation"
    paper = Paper(
        title="Correlation Congruence for Knowledge Distillation",
        authors="Baoyun Peng, Xiao Jin, Jiaheng Liu, Shunfeng Zhou, Yichao Wu, et al.",
        venue="ICCV (code shared by the authors, in RepDistiller)",
        year=2019,
        url="https://github.com/HobbitLong/RepDistiller",
    )
    equation = "L = meanᵢ ⟨δᵢ, δᵢ₊₁⟩,  δ = |eˢ − eᵗ|"
    family = "relation"
    batch_coupled = True
    sources: ClassVar = {
        "student_channels": "yours: the numbers in one sample of the student's feature",
        "teacher_channels": "yours: likewise of the teacher's",
        "embedding_channels": "RepDistiller: 128",
        "reduction": "RepDistiller: mean over pairs of neighbours",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self, student_channels: int, teacher_channels: int, embedding_channels: int = 128, *,
        reduction: Reduction = "mean", scope: Scope = "global",
    ) -> None:  # fmt: skip
        super().__init__()
        check_reduction(reduction, scope)
        self.student_channels, self.teacher_channels = student_channels, teacher_channels
        self.embedding_channels, self.reduction, self.scope = embedding_channels, reduction, scope
        self.student_embedding = nn.Linear(student_channels, embedding_channels)
        self.teacher_embedding = nn.Linear(teacher_channels, embedding_channels)

    def forward(
        self,
        student_feature: Float[Tensor, "batch *student_axes"],
        teacher_feature: Float[Tensor, "batch *teacher_axes"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Embed both features and call :func:`neighbour_correlation_loss`."""
        check_features(student_feature, teacher_feature, mask)
        student = _embed("student_feature", self.student_embedding, student_feature, mask)
        teacher = teacher_feature.detach()
        # Only the difference counts, and both embeddings are trained by it.
        difference = student - _embed("teacher_feature", self.teacher_embedding, teacher, mask)
        return neighbour_correlation_loss(
            difference, torch.zeros_like(difference), mask=mask, reduction=self.reduction,
            scope=self.scope,
        )  # fmt: skip
