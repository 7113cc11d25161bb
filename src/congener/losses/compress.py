r"""CompRess: compressing representations (Koohpayegani, Tejankar and Pirsiavash, NeurIPS 2020).

To which other samples a sample is similar, softened to a distribution over them, describes a
feature space of any width. The student's distribution follows the teacher's; no labels are needed.

.. math::
    L = \frac{1}{B} \sum_i \mathrm{KL}\big(p^t(\cdot|i) \,\|\, p^s(\cdot|i)\big), \qquad
    p(j|i) = \frac{\exp(\cos(f_i, f_j) / \tau)}{\sum_{k \ne i} \exp(\cos(f_i, f_k) / \tau)}

==============  ========================================  ==========================
symbol          argument                                  default
==============  ========================================  ==========================
:math:`f`       ``student_feature``, ``teacher_feature``  flattened to (batch, rest)
:math:`\tau`    ``temperature``                           0.04, authors' code
==============  ========================================  ==========================

Conventions
    Sum over the anchors j, mean over the samples i; no τ². No sample is its own anchor: it would be
    the likeliest for both networks at any τ. No task loss is included.

Differences from the authors' code
    The anchors are the other samples of the batch, with gradient; theirs (UMBCvision/CompRess,
    b9ec6ea) are queues of 128,000 earlier embeddings, without gradient, the student's by a momentum
    encoder. A sample without direction is equally similar to all, and gets gradient 0; there NaN.
"""

from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.ops.checks import check_features, check_temperature
from congener.ops.collectives import Scope, warn_if_alone
from congener.ops.divergence import kl_rows
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, check_reduction, reduce_samples
from congener.ops.relations import by_rows, gather_batch, unit_rows
from congener.types import Paper

__all__ = ["CompRessLoss", "compress_loss"]

ABSENT = -1e9
"""The cosine of what is no anchor: far below -1, so that its probability is 0, and finite."""


def compress_loss(
    student_feature: Float[Tensor, "batch *student_axes"],
    teacher_feature: Float[Tensor, "batch *teacher_axes"],
    *,
    temperature: float = 0.04,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Divergence of the student's softened similarities within the batch from the teacher's.

    Args:
        student_feature: (batch, ...) with 2 to 5 axes.
        teacher_feature: (batch, ...), other axes free; no gradient flows into it.
        temperature: τ, softens both distributions.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32. 0 in a batch of one or two, where
        there is nothing to choose.

    Raises:
        ShapeError: the batch sizes differ, or a feature or the mask has the wrong axes.
        ValueError: integer features, τ ≤ 0, an unknown reduction or scope.

    >>> student, teacher = torch.tensor([[1.0], [1.0], [1.0]]), torch.tensor([[1.0], [1.0], [-1.0]])
    >>> round(compress_loss(student, teacher, temperature=2).item(), 4)  # 2/3 (log 2 - H(p(2|1)))
    0.074
    """
    check_features(student_feature, teacher_feature, mask)
    check_temperature(temperature)
    check_reduction(reduction, scope)
    warn_if_alone(student_feature, "compress", scope=scope)
    with torch.autocast(student_feature.device.type, enabled=False):
        student, teacher = upcast(student_feature.flatten(1), teacher_feature.detach().flatten(1))
        batch = gather_batch(student, teacher, mask, scope=scope)
        students, teachers = (unit_rows(x) for x in batch[:2])

        def divergence(s: Tensor, t: Tensor, _: Tensor, place: Tensor, *everyone: Tensor) -> Tensor:
            all_s, all_t, kept, places = everyone
            absent = ~kept | (places == place.unsqueeze(1))
            student = (s @ all_s.T).masked_fill(absent, ABSENT)
            return kl_rows(student, (t @ all_t.T).masked_fill(absent, ABSENT), temperature)

        rows = by_rows(divergence, (students, teachers, batch.kept, batch.places), batch.own)
        return reduce_samples(rows, mask, reduction=reduction, scope=scope)


@final
class CompRessLoss(Loss):
    """To which others of a batch each sample is similar, softened; see :func:`compress_loss`."""

    name = "compress"
    paper = Paper(
        title="CompRess: Self-Supervised Learning by Compressing Representations",
        authors="Soroush Abbasi Koohpayegani, Ajinkya Tejankar, Hamed Pirsiavash",
        venue="NeurIPS",
        year=2020,
        url="https://arxiv.org/abs/2010.14713",
    )
    equation = "L = meanᵢ KL(pᵗ(·|i) ‖ pˢ(·|i)),  p(j|i) = softmax over j ≠ i of cos(fᵢ,fⱼ)/τ"
    family = "relation"
    batch_coupled = True
    sources: ClassVar = {
        "temperature": "authors' code: 0.04",
        "reduction": "authors' code: sum over anchors, mean over samples",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self, temperature: float = 0.04, *, reduction: Reduction = "mean", scope: Scope = "global"
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_reduction(reduction, scope)
        self.temperature, self.reduction, self.scope = temperature, reduction, scope

    def forward(
        self,
        student_feature: Float[Tensor, "batch *student_axes"],
        teacher_feature: Float[Tensor, "batch *teacher_axes"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`compress_loss` with the stored hyper-parameters."""
        return compress_loss(student_feature, teacher_feature, mask=mask, **self.options)
