r"""Margin-MSE for ranking (Hofstätter et al., arXiv 2020).

Two retrieval models may score on different scales; what the student copies is by how much the
teacher scores a query's passage above others, not the scores.

.. math::
    L = \frac{1}{B} \sum_{i=1}^{B} \frac{1}{n} \sum_{j=1}^{n}
        \big( (s_{i0} - s_{ij}) - (t_{i0} - t_{ij}) \big)^2

=============  ====================  ===========================================
symbol         argument              default
=============  ====================  ===========================================
:math:`s`      ``student_logits``    scores (batch, 1 + n), the positive first
:math:`t`      ``teacher_logits``    likewise, or its n margins
=============  ====================  ===========================================

Conventions
    Mean over the n negatives and over queries. Shifting all scores of a query changes nothing. The
    scores are dot products in the paper; any will do. The task loss is not included.

Differences from the authors' code
    The paper has one negative; several, and margins as labels, are sentence-transformers'.
"""

from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.errors import ShapeError
from congener.losses.base import Loss
from congener.ops.checks import check_floating, check_mask
from congener.ops.collectives import Scope
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.types import Paper

__all__ = ["MarginMSELoss", "margin_mse_loss"]


def margin_mse_loss(
    student_logits: Float[Tensor, "batch scores"],
    teacher_logits: Float[Tensor, "batch teacher_scores"],
    *,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Mean squared difference of the margins of a query's positive over its negatives.

    Args:
        student_logits: (batch, 1 + negatives), scores; the first column is the positive's.
        teacher_logits: of the same shape, or the margins themselves, (batch, negatives); no
            gradient flows into it.
        mask: (batch,), which queries count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over queries, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the scores do not fit each other, there is no negative, or the mask does not
            fit.
        ValueError: integer scores, an unknown reduction or scope.

    >>> student, teacher = torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[9.0, 4.0, 8.0]])
    >>> margin_mse_loss(student, teacher).item()  # margins 2, 1 against 5, 1
    4.5
    """
    check_floating(student_logits=student_logits, teacher_logits=teacher_logits)
    _check_scores(tuple(student_logits.shape), tuple(teacher_logits.shape))
    check_mask(mask, student_logits, "student_logits")
    check_reduction(reduction, scope)
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher = upcast(student_logits, teacher_logits.detach())
        student, teacher = blank_rows(student, mask), blank_rows(teacher, mask)
        target = _margins(teacher) if teacher.shape == student.shape else teacher
        per_query = (_margins(student) - target).square().mean(dim=1)
        return reduce_samples(per_query, mask, reduction=reduction, scope=scope)


def _margins(scores: Tensor) -> Tensor:
    return scores[:, :1] - scores[:, 1:]


def _check_scores(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    fits = len(student) == 2 and student[1] > 1
    if not fits or teacher not in (student, (student[0], student[1] - 1)):
        raise ShapeError(
            f"student_logits {student} must be scores (batch, 1 + negatives) with a negative at "
            f"least, and teacher_logits {teacher} scores of that shape or margins (batch, "
            "negatives); score the same passages with both models."
        )


@final
class MarginMSELoss(Loss):
    """The teacher's margins as targets; see :func:`margin_mse_loss`."""

    name = "margin_mse"
    paper = Paper(
        title="Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge "
        "Distillation",
        authors="Sebastian Hofstätter, Sophia Althammer, Michael Schröder, Mete Sertkan, "
        "Allan Hanbury",
        venue="arXiv",
        year=2020,
        url="https://arxiv.org/abs/2010.02666",
    )
    equation = "L = meanᵢⱼ ((sᵢ₀ − sᵢⱼ) − (tᵢ₀ − tᵢⱼ))²"
    family = "response"
    sources: ClassVar = {
        "reduction": "sentence-transformers: mean over queries and negatives",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(self, *, reduction: Reduction = "mean", scope: Scope = "global") -> None:
        super().__init__()
        check_reduction(reduction, scope)
        self.reduction, self.scope = reduction, scope

    def forward(
        self,
        student_logits: Float[Tensor, "batch scores"],
        teacher_logits: Float[Tensor, "batch teacher_scores"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`margin_mse_loss` with the stored hyper-parameters."""
        return margin_mse_loss(student_logits, teacher_logits, mask=mask, **self.options)
