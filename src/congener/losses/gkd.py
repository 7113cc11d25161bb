r"""Generalised knowledge distillation of language models, GKD (Agarwal et al., ICLR 2024).

The next-token distributions of student and teacher are compared by a divergence that can be chosen
between the forward one, which covers all that the teacher finds possible, and the reverse one,
which keeps to what it finds likely. Whose text the tokens are is the training loop's affair.

.. math::
    L = \frac{1}{N} \sum_{n=1}^{N} \beta\, \mathrm{KL}(p_n \| m_n)
      + (1 - \beta)\, \mathrm{KL}(q_n \| m_n), \qquad m = \beta p + (1 - \beta) q

=============  ===================  ==========================================
symbol         argument             default
=============  ===================  ==========================================
:math:`q`      ``student_logits``   softmax over the vocabulary, at τ
:math:`p`      ``teacher_logits``   likewise
:math:`\beta`  ``beta``             0.5, TRL
:math:`\tau`   ``temperature``      1, TRL
=============  ===================  ==========================================

Conventions
    Sum over the vocabulary, mean over the tokens that count. No τ². β = 0 is the forward KL(p ‖ q)
    and β = 1 the reverse KL(q ‖ p), as published; there the definition is discontinuous: as β → 0
    the loss tends to 0, and it is loss / β that tends to KL(p ‖ q). The task loss is not included.

Differences from the authors' code
    TRL (f2cd577) gives the same value where labels are given; without them it divides by sequences
    instead of tokens. DistillKit multiplies by τ². DistiLLM's λ is 1 − β, and its forward KL lacks
    the teacher's entropy. Tokens that both exclude by logits of -inf count nothing; there NaN. In
    the forward or reverse KL one that only the other side excludes is infinite, here a huge number.
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
    check_share,
    check_token_logits,
    generalized_js,
    reduce_tokens,
    token_divergence,
)
from congener.types import Paper

__all__ = ["GKDLoss", "gkd_loss"]


def gkd_loss(
    student_logits: Float[Tensor, "*tokens vocab"],
    teacher_logits: Float[Tensor, "*tokens vocab"],
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    mask: Bool[Tensor, "*tokens"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, "*tokens"]:
    """Generalised Jensen-Shannon divergence of next-token distributions.

    Args:
        student_logits: (..., vocab), such as (batch, tokens, vocab).
        teacher_logits: of the same shape; no gradient flows into it.
        beta: β in [0, 1]; 0 is the forward, 1 the reverse Kullback-Leibler divergence.
        temperature: τ, softens both distributions.
        mask: (...), which tokens count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over tokens, or ``"none"``.
        scope: ``"global"``: the tokens of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (...) for ``"none"``; at least float32. Of many tokens it keeps the gradient
        alone for backward; it cannot be differentiated twice, nor transformed by ``torch.func``.

    Raises:
        ShapeError: the logits differ in shape, or the mask does not fit.
        ValueError: integer logits, β outside [0, 1], τ ≤ 0, an unknown reduction or scope.

    >>> student, teacher = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    >>> round(gkd_loss(student.log(), teacher.log()).item(), 4)
    0.1017
    """
    check_token_logits(student_logits, teacher_logits, mask)
    check_share("beta", beta)
    check_temperature(temperature)
    check_reduction(reduction, scope)
    divergence = generalized_js(beta)
    with torch.autocast(student_logits.device.type, enabled=False):
        per_token = token_divergence(
            student_logits, teacher_logits, divergence, temperature=temperature, mask=mask
        )
        return reduce_tokens(per_token, mask, reduction=reduction, scope=scope)


@final
class GKDLoss(Loss):
    """Next-token distributions by a chosen divergence; see :func:`gkd_loss`."""

    name = "gkd"
    paper = Paper(
        title="On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
        authors="Rishabh Agarwal, Nino Vieillard, Yongchao Zhou, Piotr Stanczyk, Sabela Ramos, "
        "Matthieu Geist, Olivier Bachem",
        venue="ICLR",
        year=2024,
        url="https://arxiv.org/abs/2306.13649",
    )
    equation = "L = meanₙ β·KL(pₙ ‖ mₙ) + (1 − β)·KL(qₙ ‖ mₙ),  m = β·p + (1 − β)·q"
    family = "response"
    sources: ClassVar = {
        **dict.fromkeys(("beta", "temperature"), "TRL's GKDTrainer"),
        "reduction": "TRL: mean over the tokens that have labels",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        beta: float = 0.5,
        temperature: float = 1.0,
        *,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_share("beta", beta)
        check_temperature(temperature)
        check_reduction(reduction, scope)
        self.beta, self.temperature = beta, temperature
        self.reduction, self.scope = reduction, scope

    def forward(
        self,
        student_logits: Float[Tensor, "*tokens vocab"],
        teacher_logits: Float[Tensor, "*tokens vocab"],
        mask: Bool[Tensor, "*tokens"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, "*tokens"]:
        """Call :func:`gkd_loss` with the stored hyper-parameters."""
        return gkd_loss(student_logits, teacher_logits, mask=mask, **self.options)
