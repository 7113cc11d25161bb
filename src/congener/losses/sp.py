r"""Similarity-preserving knowledge distillation (Tung and Mori, ICCV 2019).

Inputs that a trained teacher finds alike excite alike activations in it. The student need not copy
the activations: within each batch it keeps which inputs are alike.

.. math::
    L = \frac{1}{B^2} \, \| G^t - G^s \|_F^2, \qquad
    G_{[i,:]} = \tilde G_{[i,:]} / \| \tilde G_{[i,:]} \|_2, \quad \tilde G = Q Q^\top

=============  =====================  ==========================================
symbol         argument               default
=============  =====================  ==========================================
:math:`Q^s`    ``student_feature``    flattened to (batch, everything else)
:math:`Q^t`    ``teacher_feature``    likewise; of any channels and size
:math:`G`      ``normalize``          ``"gram_rows"``: rows of the Gram matrix
=============  =====================  ==========================================

Conventions
    Mean over the B² entries, diagonal included. The loss of b samples is of order 1/b, so a weight
    is worth quoting only with its batch size. The task loss is not included. G is never held for a
    large batch (:mod:`congener.ops.gram`), which changes neither value nor gradient.

Differences from the authors' code
    RepDistiller (b84f547), verified by the paper's author, gives the same value. The own row of a
    sample of zeros has no gradient; there it is of order 1e12. ``"features"`` is another loss that
    circulates: samples are normalised before the product, rows are not after.
"""

from typing import ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.ops.checks import check_choice, check_features
from congener.ops.collectives import Scope, warn_if_alone
from congener.ops.gram import gram_distances
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.ops.relations import unit_rows
from congener.types import Paper

__all__ = ["SPLoss", "sp_loss"]

Normalize = Literal["gram_rows", "features"]


def sp_loss(
    student_feature: Float[Tensor, "batch *student_axes"],
    teacher_feature: Float[Tensor, "batch *teacher_axes"],
    *,
    normalize: Normalize = "gram_rows",
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Squared distance of the two batches' similarity matrices.

    Args:
        student_feature: (batch, ...) with 2 to 5 axes.
        teacher_feature: (batch, ...), other axes free; no gradient flows into it.
        normalize: ``"gram_rows"`` as published, or ``"features"``.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"``, ``"none"``: each sample's row of it, whose mean it is, ``"sum"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32; not for ``torch.func``.

    Raises:
        ShapeError: the batch sizes differ, or a feature or the mask has the wrong axes.
        ValueError: integer features, an unknown normalisation, reduction or scope.

    >>> student, teacher = torch.tensor([[1.0], [1.0]]), torch.eye(2)
    >>> round(sp_loss(student, teacher).item(), 4)  # (2 - sqrt(2)) / 2
    0.2929
    """
    check_features(student_feature, teacher_feature, mask)
    check_choice("normalize", normalize, ("gram_rows", "features"))
    check_reduction(reduction, scope)
    warn_if_alone(student_feature, "sp", scope=scope)
    with torch.autocast(student_feature.device.type, enabled=False):
        student, teacher = upcast(student_feature.flatten(1), teacher_feature.detach().flatten(1))
        student, teacher = blank_rows(student, mask), blank_rows(teacher, mask)
        by_rows = normalize == "gram_rows"
        if not by_rows:
            student, teacher = unit_rows(student), unit_rows(teacher)
        row_sums = gram_distances(student, teacher, normalize_rows=by_rows, scope=scope)
        return reduce_samples(row_sums, mask, reduction=reduction, scope=scope, of_pairs=True)


@final
class SPLoss(Loss):
    """Which inputs of a batch are alike; see :func:`sp_loss`."""

    name = "sp"
    paper = Paper(
        title="Similarity-Preserving Knowledge Distillation",
        authors="Frederick Tung, Greg Mori",
        venue="ICCV",
        year=2019,
        url="https://arxiv.org/abs/1907.09682",
    )
    equation = "L = ‖Gᵗ − Gˢ‖²_F / B²,  G = rows of Q·Qᵀ, each divided by its norm"
    family = "relation"
    batch_coupled = True
    sources: ClassVar = {
        "normalize": "RepDistiller, verified by the paper's author: rows of the Gram matrix",
        "reduction": "the paper's 1/B²",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        normalize: Normalize = "gram_rows",
        *,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_choice("normalize", normalize, ("gram_rows", "features"))
        check_reduction(reduction, scope)
        self.normalize = normalize
        self.reduction, self.scope = reduction, scope

    def forward(
        self,
        student_feature: Float[Tensor, "batch *student_axes"],
        teacher_feature: Float[Tensor, "batch *teacher_axes"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`sp_loss` with the stored hyper-parameters."""
        return sp_loss(student_feature, teacher_feature, mask=mask, **self.options)
