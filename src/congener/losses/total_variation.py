r"""Total variation distillation of language models (Wen et al., ACL 2023).

Of the divergences between next-token distributions this one is bounded and symmetric: half the
probability that would have to be moved to turn one into the other, both ways.

.. math::
    L = \frac{1}{N} \sum_{n=1}^{N} \frac{1}{2} \sum_{v} | p_{nv} - q_{nv} |

=============  ===================  ==========================================
symbol         argument             default
=============  ===================  ==========================================
:math:`q`      ``student_logits``   softmax over the vocabulary, at τ
:math:`p`      ``teacher_logits``   likewise
:math:`\tau`   ``temperature``      1, as published
=============  ===================  ==========================================

Conventions
    Sum over the vocabulary, mean over the tokens that count; between 0 and 1. Where p = q the
    gradient is taken as 0. The task loss is not included.

Differences from the authors' code
    This is the step-wise form on full distributions, as DistiLLM's release computes it; the
    paper's own code was not consulted.
"""

from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.ops.checks import check_temperature
from congener.ops.collectives import Scope
from congener.ops.reduction import Reduction, check_reduction
from congener.ops.vocabulary import (
    check_token_logits,
    reduce_tokens,
    token_divergence,
    total_variation,
)
from congener.types import Paper

__all__ = ["TotalVariationLoss", "total_variation_loss"]


def total_variation_loss(
    student_logits: Float[Tensor, "*tokens vocab"],
    teacher_logits: Float[Tensor, "*tokens vocab"],
    *,
    temperature: float = 1.0,
    mask: Bool[Tensor, "*tokens"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, "*tokens"]:
    """Half the absolute difference of next-token distributions.

    Args:
        student_logits: (..., vocab), such as (batch, tokens, vocab).
        teacher_logits: of the same shape; no gradient flows into it.
        temperature: τ, softens both distributions.
        mask: (...), which tokens count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over tokens, or ``"none"``.
        scope: ``"global"``: the tokens of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (...) for ``"none"``; at least float32. Of many tokens it keeps the gradient
        alone for backward; it cannot be differentiated twice, nor transformed by ``torch.func``.

    Raises:
        ShapeError: the logits differ in shape, or the mask does not fit.
        ValueError: integer logits, τ ≤ 0, an unknown reduction or scope.

    >>> student, teacher = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.8, 0.2]])
    >>> round(total_variation_loss(student.log(), teacher.log()).item(), 4)
    0.3
    """
    check_token_logits(student_logits, teacher_logits, mask)
    check_temperature(temperature)
    check_reduction(reduction, scope)
    with torch.autocast(student_logits.device.type, enabled=False):
        per_token = token_divergence(
            student_logits, teacher_logits, total_variation, temperature=temperature, mask=mask
        )
        return reduce_tokens(per_token, mask, reduction=reduction, scope=scope)


@final
class TotalVariationLoss(Loss):
    """Next-token distributions by what would have to move; see :func:`total_variation_loss`."""

    name = "total_variation"
    paper = Paper(
        title="f-Divergence Minimization for Sequence-Level Knowledge Distillation",
        authors="Yuqiao Wen, Zichao Li, Wenyu Du, Lili Mou",
        venue="ACL",
        year=2023,
        url="https://arxiv.org/abs/2307.15190",
    )
    equation = "L = meanₙ ½·Σᵥ |pₙᵥ − qₙᵥ|"
    family = "response"
    sources: ClassVar = {
        "temperature": "DistiLLM's code: none, that is 1",
        "reduction": "DistiLLM's code: mean over the tokens that have labels",
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
        student_logits: Float[Tensor, "*tokens vocab"],
        teacher_logits: Float[Tensor, "*tokens vocab"],
        mask: Bool[Tensor, "*tokens"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, "*tokens"]:
        """Call :func:`total_variation_loss` with the stored hyper-parameters."""
        return total_variation_loss(student_logits, teacher_logits, mask=mask, **self.options)
