r"""Skew Kullback-Leibler distillation, DistiLLM (Ko et al., ICML 2024).

A Kullback-Leibler divergence between next-token distributions has unbounded gradients where one
gives a token almost nothing. Mixing a little of the first distribution into the second bounds it.

.. math::
    L_{\text{forward}} = \frac{1}{N} \sum_{n=1}^{N} \mathrm{KL}\big(p_n \,\|\,
        \alpha p_n + (1 - \alpha) q_n\big), \qquad
    L_{\text{reverse}} = \frac{1}{N} \sum_{n=1}^{N} \mathrm{KL}\big(q_n \,\|\,
        \alpha q_n + (1 - \alpha) p_n\big)

==============  ===================  ==========================================
symbol          argument             default
==============  ===================  ==========================================
:math:`q`       ``student_logits``   softmax over the vocabulary, at τ
:math:`p`       ``teacher_logits``   likewise
:math:`\alpha`  ``alpha``            0.1, authors' code
..              ``direction``        ``"forward"``
:math:`\tau`    ``temperature``      1, authors' code
==============  ===================  ==========================================

Conventions
    Sum over the vocabulary, mean over the tokens that count; no τ². At most −log α. α = 0 is the
    Kullback-Leibler divergence itself. The task loss is not included.

Differences from the authors' code
    The released forward form (jongwooko/distillm) is the cross-entropy −Σ p log m: it lacks the
    teacher's entropy, so it is not 0 at identical logits; the gradient is the same. The released
    reverse form is equal to this.
"""

from typing import ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.ops.checks import check_choice, check_temperature
from congener.ops.collectives import Scope
from congener.ops.reduction import Reduction, check_reduction
from congener.ops.vocabulary import (
    check_share,
    check_token_logits,
    reduce_tokens,
    skew_forward_kl,
    skew_reverse_kl,
    token_divergence,
)
from congener.types import Paper

__all__ = ["SkewKLLoss", "skew_kl_loss"]

Direction = Literal["forward", "reverse"]


def skew_kl_loss(
    student_logits: Float[Tensor, "*tokens vocab"],
    teacher_logits: Float[Tensor, "*tokens vocab"],
    *,
    alpha: float = 0.1,
    direction: Direction = "forward",
    temperature: float = 1.0,
    mask: Bool[Tensor, "*tokens"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, "*tokens"]:
    """Divergence of one next-token distribution from a mixture with the other.

    Args:
        student_logits: (..., vocab), such as (batch, tokens, vocab).
        teacher_logits: of the same shape; no gradient flows into it.
        alpha: α in [0, 1), the share of the first distribution in the mixture.
        direction: ``"forward"`` from the teacher's, ``"reverse"`` from the student's.
        temperature: τ, softens both distributions.
        mask: (...), which tokens count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over tokens, or ``"none"``.
        scope: ``"global"``: the tokens of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (...) for ``"none"``; at least float32. Of many tokens it keeps the gradient
        alone for backward; it cannot be differentiated twice, nor transformed by ``torch.func``.

    Raises:
        ShapeError: the logits differ in shape, or the mask does not fit.
        ValueError: integer logits, α outside [0, 1), τ ≤ 0, an unknown word.

    >>> student, teacher = torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]])
    >>> round(skew_kl_loss(student.log(), teacher.log()).item(), 4)  # -log(0.1 + 0.9 / 2)
    0.5978
    """
    check_token_logits(student_logits, teacher_logits, mask)
    check_share("alpha", alpha, below=1)
    check_choice("direction", direction, ("forward", "reverse"))
    check_temperature(temperature)
    check_reduction(reduction, scope)
    divergence = skew_forward_kl(alpha) if direction == "forward" else skew_reverse_kl(alpha)
    with torch.autocast(student_logits.device.type, enabled=False):
        per_token = token_divergence(
            student_logits, teacher_logits, divergence, temperature=temperature, mask=mask
        )
        return reduce_tokens(per_token, mask, reduction=reduction, scope=scope)


@final
class SkewKLLoss(Loss):
    """Next-token distributions, one mixed into the other; see :func:`skew_kl_loss`."""

    name = "skew_kl"
    paper = Paper(
        title="DistiLLM: Towards Streamlined Distillation for Large Language Models",
        authors="Jongwoo Ko, Sungnyun Kim, Tianyi Chen, Se-Young Yun",
        venue="ICML",
        year=2024,
        url="https://arxiv.org/abs/2402.03898",
    )
    equation = "L = meanₙ KL(pₙ ‖ α·pₙ + (1 − α)·qₙ), or with p and q exchanged"
    family = "response"
    sources: ClassVar = {
        **dict.fromkeys(("alpha", "temperature"), "authors' code"),
        "direction": "ours: the authors' code leaves the choice to its user",
        "reduction": "authors' code: mean over the tokens that have labels",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        alpha: float = 0.1,
        direction: Direction = "forward",
        temperature: float = 1.0,
        *,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_share("alpha", alpha, below=1)
        check_choice("direction", direction, ("forward", "reverse"))
        check_temperature(temperature)
        check_reduction(reduction, scope)
        self.alpha, self.direction, self.temperature = alpha, direction, temperature
        self.reduction, self.scope = reduction, scope

    def forward(
        self,
        student_logits: Float[Tensor, "*tokens vocab"],
        teacher_logits: Float[Tensor, "*tokens vocab"],
        mask: Bool[Tensor, "*tokens"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, "*tokens"]:
        """Call :func:`skew_kl_loss` with the stored hyper-parameters."""
        return skew_kl_loss(student_logits, teacher_logits, mask=mask, **self.options)
