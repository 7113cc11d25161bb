r"""Multi-head knowledge distillation, MHKD (Wang, Lohit, Jones and Fu, arXiv 2020): its head terms.

Features of two networks differ in shape, class probabilities do not. Small classifiers, the heads,
sit on intermediate maps of both networks, and each pair of heads is distilled.

.. math::
    L = \sum_{l=1}^{L} \frac{1}{B} \sum_{i=1}^{B} \Big( w_{KL} \, \tau^2 \, \mathrm{KL}\big(
        \sigma(g^t_{li} / \tau) \,\|\, \sigma(g^s_{li} / \tau) \big)
        + w_{CE} \, \mathrm{CE}(g^s_{li}, y_i) \Big)

=================  ==========================  ====================
symbol             argument                    default
=================  ==========================  ====================
:math:`g^s_l`      ``student_head_logits``
:math:`g^t_l`      ``teacher_head_logits``
:math:`y`          ``labels``
:math:`w_{KL}`     ``kl_weight``               0.9, authors' code
:math:`w_{CE}`     ``ce_weight``               0.1, authors' code
:math:`\tau`       ``temperature``             4, authors' code
=================  ==========================  ====================

Conventions
    Sum over heads, mean over samples. The loss of the last layer, KD and task loss, is not
    included, nor is the weight of the heads beside it, β = 0.5 in the code of others. The heads of
    the teacher learn by :func:`congener.losses.head_cross_entropy_loss`, beforehand or jointly.

Differences from the authors' code
    None known; it was not at hand to run. Code of others lets the teacher's heads learn from the
    KL divergence too, and weighs 0.1 KL and 0.9 CE; here they are detached.
"""

from collections.abc import Sequence
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from congener.losses.base import Loss
from congener.losses.mhkd_parts import check_heads
from congener.losses.mixed_labels import label_cross_entropy_rows
from congener.ops.checks import check_logits, check_temperature
from congener.ops.collectives import Scope
from congener.ops.divergence import kl_rows
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.types import Paper

__all__ = ["MHKDLoss", "mhkd_loss"]


def mhkd_loss(
    student_head_logits: Sequence[Float[Tensor, "batch classes"]],
    teacher_head_logits: Sequence[Float[Tensor, "batch classes"]],
    labels: Int[Tensor, " batch"],
    *,
    kl_weight: float = 0.9,
    ce_weight: float = 0.1,
    temperature: float = 4.0,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """KL divergence, times τ², and cross-entropy of every pair of heads, summed over pairs.

    Args:
        student_head_logits: (batch, classes) of each head, shallow to deep.
        teacher_head_logits: of as many heads, each like its pair; no gradient flows into them.
        labels: (batch,), the true classes; a negative one leaves its sample the KL divergence.
        kl_weight: weight of each KL divergence.
        ce_weight: weight of each cross-entropy with the labels.
        temperature: τ of the KL divergence.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: heads without a pair, or shapes that do not fit.
        ValueError: integer logits, labels that are no class, τ ≤ 0, an unknown word.

    >>> student, teacher = [torch.zeros(1, 2)] * 2, [torch.tensor([[4.0, 0.0]])] * 2
    >>> round(mhkd_loss(student, teacher, torch.tensor([0])).item(), 4)  # 1.8 · 1.7751 + log 2 / 5
    3.3338
    """
    check_heads(student_head_logits, teacher_head_logits)
    check_temperature(temperature)
    check_reduction(reduction, scope)
    per_head = []
    with torch.autocast(student_head_logits[0].device.type, enabled=False):
        for pair in zip(student_head_logits, teacher_head_logits, strict=True):
            check_logits(*pair, mask)
            student, teacher = upcast(pair[0], pair[1].detach())
            student, teacher = blank_rows(student, mask), blank_rows(teacher, mask)
            kd = temperature**2 * kl_rows(student, teacher, temperature)
            task = label_cross_entropy_rows(student, labels, mask, scope=scope)
            per_head.append(kl_weight * kd + ce_weight * task)
        per_sample = torch.stack(per_head).sum(dim=0)
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


@final
class MHKDLoss(Loss):
    """Heads on intermediate maps, distilled in pairs; see :func:`mhkd_loss`."""

    name = "mhkd"
    paper = Paper(
        title="Multi-head Knowledge Distillation for Model Compression",
        authors="Huan Wang, Suhas Lohit, Michael Jones, Yun Fu",
        venue="arXiv",
        year=2020,
        url="https://arxiv.org/abs/2012.02911",
    )
    equation = "L = Σ_l meanᵢ ( w_KL·τ²·KL( pᵗ_lᵢ ‖ pˢ_lᵢ ) + w_CE·CE( gˢ_lᵢ, yᵢ ) )"
    family = "response"
    zero_at_match = False
    needs_labels = True
    sources: ClassVar = {
        **dict.fromkeys(("kl_weight", "ce_weight", "temperature", "reduction"), "authors' code"),
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        kl_weight: float = 0.9,
        ce_weight: float = 0.1,
        temperature: float = 4.0,
        *,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_reduction(reduction, scope)
        self.kl_weight, self.ce_weight, self.temperature = kl_weight, ce_weight, temperature
        self.reduction, self.scope = reduction, scope

    def forward(
        self,
        student_head_logits: Sequence[Float[Tensor, "batch classes"]],
        teacher_head_logits: Sequence[Float[Tensor, "batch classes"]],
        labels: Int[Tensor, " batch"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`mhkd_loss` with the stored hyper-parameters."""
        both = (student_head_logits, teacher_head_logits)
        return mhkd_loss(*both, labels, mask=mask, **self.options)
