r"""Universal logit distillation, ULD (Boizard et al., arXiv 2024).

Networks with different tokenizers share neither the vocabulary nor the tokens of a text. What can
still be compared is the shape of each next-token distribution: its probabilities in falling order.

.. math::
    L = \frac{1}{B} \sum_{i=1}^{B} \frac{1}{n_i} \sum_{k=1}^{n_i} \sum_{r}
        \big| p^{\downarrow}_{ikr} - q^{\downarrow}_{ikr} \big|

===================  ====================================  =======================
symbol               argument                              default
===================  ====================================  =======================
:math:`q`            ``student_logits``                    softmax, at τ
:math:`p`            ``teacher_logits``                    likewise
:math:`k \le n_i`    ``student_mask``, ``teacher_mask``    every position
:math:`\tau`         ``temperature``                       1, authors' code
===================  ====================================  =======================

Conventions
    The smaller vocabulary is filled up with zeros. The k-th position of the student's answer is
    compared with the k-th of the teacher's, up to the shorter answer's end n; mean over positions,
    then over texts. Between 0 and 2. A text without a pair of positions does not count. A mask
    marks the positions that *predict* the answer's tokens, one before each. The task loss, which
    the authors add, is not included.

Differences from the authors' code
    None known (llm-recipes, Nicolas-BZRD); the published code itself was not run against this.
"""

from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.ops.alignment import align_answers, check_texts, one_vocabulary
from congener.ops.checks import check_temperature
from congener.ops.collectives import Scope
from congener.ops.reduction import Reduction, check_reduction, reduce_samples
from congener.ops.vocabulary import ranked_l1, token_divergence
from congener.types import Paper

__all__ = ["ULDLoss", "uld_loss"]


def uld_loss(
    student_logits: Float[Tensor, "batch tokens vocab"],
    teacher_logits: Float[Tensor, "batch teacher_tokens teacher_vocab"],
    *,
    student_mask: Bool[Tensor, "batch tokens"] | None = None,
    teacher_mask: Bool[Tensor, "batch teacher_tokens"] | None = None,
    temperature: float = 1.0,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Absolute difference of sorted next-token probabilities.

    Args:
        student_logits: (batch, tokens, vocab), each text in the student's tokens.
        teacher_logits: (batch, tokens, vocab), the same texts in the teacher's tokens; no gradient
            flows into it.
        student_mask: (batch, tokens), the positions of the student's answer.
        teacher_mask: (batch, tokens), the positions of the teacher's answer.
        temperature: τ, softens both distributions.
        mask: (batch,), which texts count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over texts, or ``"none"``.
        scope: ``"global"``: the texts of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32. Of many tokens it keeps the
        gradient alone for backward; it cannot be differentiated twice, nor transformed by
        ``torch.func``.

    Raises:
        ShapeError: the batch sizes differ, or a mask does not fit.
        ValueError: integer logits, τ ≤ 0, an unknown reduction or scope.

    >>> student = torch.tensor([[[0.3, 0.3, 0.3, 0.1]]]).log()
    >>> teacher = torch.tensor([[[0.25, 0.6, 0.15]]]).log()
    >>> round(uld_loss(student, teacher).item(), 4)
    0.6
    """
    check_texts(student_logits, teacher_logits, student_mask, teacher_mask, mask)
    check_temperature(temperature)
    check_reduction(reduction, scope)
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher, paired = align_answers(
            student_logits, teacher_logits.detach(), student_mask, teacher_mask
        )
        paired = paired if mask is None else paired & mask.unsqueeze(1)
        per_position = token_divergence(
            *one_vocabulary(student, teacher), ranked_l1, temperature=temperature, mask=paired
        )
        pairs = paired.sum(dim=1)
        per_text = per_position.sum(dim=1) / pairs.clamp(min=1)
        return reduce_samples(per_text, pairs > 0, reduction=reduction, scope=scope)


@final
class ULDLoss(Loss):
    """Sorted next-token probabilities, for any two tokenizers; see :func:`uld_loss`."""

    name = "uld"
    paper = Paper(
        title="Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for "
        "LLMs",
        authors="Nicolas Boizard, Kevin El Haddad, Céline Hudelot, Pierre Colombo",
        venue="arXiv",
        year=2024,
        url="https://arxiv.org/abs/2402.12030",
    )
    equation = "L = meanᵢ meanₖ Σᵣ |p↓ᵢₖᵣ − q↓ᵢₖᵣ|,  ↓ sorted, the smaller vocabulary zero-padded"
    family = "response"
    sources: ClassVar = {
        "temperature": "authors' code",
        "reduction": "authors' code: mean over positions, then over texts",
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
        student_logits: Float[Tensor, "batch tokens vocab"],
        teacher_logits: Float[Tensor, "batch teacher_tokens teacher_vocab"],
        mask: Bool[Tensor, " batch"] | None = None,
        student_mask: Bool[Tensor, "batch tokens"] | None = None,
        teacher_mask: Bool[Tensor, "batch teacher_tokens"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`uld_loss` with the stored hyper-parameters."""
        answers: dict[str, Any] = {"student_mask": student_mask, "teacher_mask": teacher_mask}
        return uld_loss(student_logits, teacher_logits, mask=mask, **answers, **self.options)
