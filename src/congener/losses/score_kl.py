r"""Divergence of ranking scores (Lin, Yang and Lin, arXiv 2020).

The scores of a query's passages, the positive and its negatives, make a distribution over them; the
student's is to be the teacher's.

.. math::
    L = \tau^2 \, \frac{1}{B} \sum_{i=1}^{B}
        \mathrm{KL}\big(\sigma(t_i / \tau) \,\|\, \sigma(s_i / \tau)\big)

=============  ====================  ===========================================
symbol         argument              default
=============  ====================  ===========================================
:math:`s`      ``student_logits``    scores (batch, passages)
:math:`t`      ``teacher_logits``    likewise
:math:`\tau`   ``temperature``       1, sentence-transformers 5.0.1
=============  ====================  ===========================================

Conventions
    Sum over passages, mean over queries, times τ². Shifting all scores of a query changes nothing,
    nor does the order of its passages. This is ``kd_loss`` with passages for classes and τ = 1. The
    task loss is not included.

Differences from the authors' code
    None from sentence-transformers' DistillKLDivLoss, whose τ was 2 before 5.0.1.
"""

from typing import ClassVar, final

from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.losses.kd import kd_loss
from congener.ops.checks import check_temperature
from congener.ops.collectives import Scope
from congener.ops.reduction import Reduction, check_reduction
from congener.types import Paper

__all__ = ["ScoreKLLoss", "score_kl_loss"]


def score_kl_loss(
    student_logits: Float[Tensor, "batch passages"],
    teacher_logits: Float[Tensor, "batch passages"],
    *,
    temperature: float = 1.0,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Kullback-Leibler divergence of score distributions, times τ².

    Args:
        student_logits: (batch, passages), scores.
        teacher_logits: (batch, passages), scores; no gradient flows into it.
        temperature: τ, softens both distributions.
        mask: (batch,), which queries count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over queries, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the scores differ in shape, or the mask does not fit.
        ValueError: integer scores, τ ≤ 0, an unknown reduction or scope.

    >>> import torch
    >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    >>> round(score_kl_loss(student, teacher).item(), 4)
    0.1109
    """
    return kd_loss(
        student_logits,
        teacher_logits,
        temperature=temperature,
        mask=mask,
        reduction=reduction,
        scope=scope,
    )


@final
class ScoreKLLoss(Loss):
    """The teacher's distribution over a query's passages; see :func:`score_kl_loss`."""

    name = "score_kl"
    paper = Paper(
        title="Distilling Dense Representations for Ranking using Tightly-Coupled Teachers",
        authors="Sheng-Chieh Lin, Jheng-Hong Yang, Jimmy Lin",
        venue="arXiv",
        year=2020,
        url="https://arxiv.org/abs/2010.11386",
    )
    equation = "L = τ² · meanᵢ KL( softmax(tᵢ/τ) ‖ softmax(sᵢ/τ) )"
    family = "response"
    sources: ClassVar = {
        "temperature": "sentence-transformers' default since 5.0.1",
        "reduction": "sentence-transformers: sum over passages, mean over queries",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_reduction(reduction, scope)
        self.temperature = temperature
        self.reduction, self.scope = reduction, scope

    def forward(
        self,
        student_logits: Float[Tensor, "batch passages"],
        teacher_logits: Float[Tensor, "batch passages"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`score_kl_loss` with the stored hyper-parameters."""
        return score_kl_loss(student_logits, teacher_logits, mask=mask, **self.options)
