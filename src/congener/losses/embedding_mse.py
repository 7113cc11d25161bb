r"""Embedding regression (Reimers and Gurevych, EMNLP 2020).

The student's sentence embeddings are to be the teacher's. Where the student's sentence is a
translation and the teacher's the original, this teaches an embedding space a further language.

.. math::
    L = \frac{1}{B} \sum_{i=1}^{B} \frac{1}{d} \| f^s_i - f^t_i \|^2

=============  =====================  ==========================================
symbol         argument               default
=============  =====================  ==========================================
:math:`f^s`    ``student_feature``    (batch, width)
:math:`f^t`    ``teacher_feature``    of the same width d
=============  =====================  ==========================================

Conventions
    Mean over the width and over samples, so a loss on unit embeddings is of order 1/d. For several
    languages, lay their batches under each other and repeat the teacher's. The task loss is not
    included.

Differences from the authors' code
    None (sentence-transformers, MSELoss).
"""

from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.errors import ShapeError
from congener.losses.base import Loss
from congener.ops.checks import check_features
from congener.ops.collectives import Scope
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.types import Paper

__all__ = ["EmbeddingMSELoss", "embedding_mse_loss"]


def embedding_mse_loss(
    student_feature: Float[Tensor, "batch width"],
    teacher_feature: Float[Tensor, "batch width"],
    *,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Mean squared difference of embeddings.

    Args:
        student_feature: (batch, width).
        teacher_feature: (batch, width); no gradient flows into it.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the embeddings differ in shape, or the mask does not fit.
        ValueError: integer embeddings, an unknown reduction or scope.

    >>> student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    >>> embedding_mse_loss(student, teacher).item()
    2.5
    """
    check_features(student_feature, teacher_feature, mask)
    check_reduction(reduction, scope)
    _check_widths(tuple(student_feature.shape), tuple(teacher_feature.shape))
    with torch.autocast(student_feature.device.type, enabled=False):
        student, teacher = upcast(student_feature, teacher_feature.detach())
        difference = blank_rows(student, mask) - blank_rows(teacher, mask)
        per_sample = difference.square().mean(dim=1)
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


def _check_widths(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    if student != teacher or len(student) != 2:
        raise ShapeError(
            f"student_feature {student} and teacher_feature {teacher} must have one shape, "
            "(batch, width); reduce the teacher's width by PCA, or give the student a projector."
        )


@final
class EmbeddingMSELoss(Loss):
    """The teacher's embeddings as targets; see :func:`embedding_mse_loss`."""

    name = "embedding_mse"
    paper = Paper(
        title="Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation",
        authors="Nils Reimers, Iryna Gurevych",
        venue="EMNLP",
        year=2020,
        url="https://arxiv.org/abs/2004.09813",
    )
    equation = "L = meanᵢ ‖fˢᵢ − fᵗᵢ‖² / d"
    family = "feature"
    sources: ClassVar = {
        "reduction": "authors' code: mean over samples and widths",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(self, *, reduction: Reduction = "mean", scope: Scope = "global") -> None:
        super().__init__()
        check_reduction(reduction, scope)
        self.reduction, self.scope = reduction, scope

    def forward(
        self,
        student_feature: Float[Tensor, "batch width"],
        teacher_feature: Float[Tensor, "batch width"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`embedding_mse_loss` with the stored hyper-parameters."""
        return embedding_mse_loss(student_feature, teacher_feature, mask=mask, **self.options)
