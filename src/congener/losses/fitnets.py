r"""FitNets: hints for thin deep nets (Romero et al., ICLR 2015).

A middle layer of the teacher is a hint: the student's guided layer, through a projector that gives
it the hint's shape, is asked for the same activations.

.. math::
    L = \frac{1}{B} \sum_{i=1}^{B} \frac{1}{D} \, \| r(f^s_i) - f^t_i \|_2^2

=============  ===================================  ================================
symbol         argument                             default
=============  ===================================  ================================
:math:`r(f^s)` ``student_feature``                  the projected feature
:math:`f^t`    ``teacher_feature``                  of the same shape, D numbers
:math:`r`      ``student_shape``, ``teacher_shape`` no projector
=============  ===================================  ================================

Conventions
    Mean over all elements and samples. The projector is trained with the student and is part of the
    module alone; in training its batch normalisation is over the batch. Equal features give 0. The
    task loss is not included; the paper trains on hints in a stage of its own, RepDistiller in one.

Differences from the authors' code
    RepDistiller (b84f547) gives the same value. ``"paper"`` is half the squared norm, D/2 times as
    much. Masked samples do not enter the projector's statistics, those of other processes do.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.losses.fitnets_parts import projector_between
from congener.ops.checks import check_choice, check_same_shape
from congener.ops.collectives import Scope
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.types import Paper

__all__ = ["FitNetsLoss", "hint_loss"]

Variant = Literal["repdistiller", "paper"]


def hint_loss(
    student_feature: Float[Tensor, "batch *axes"],
    teacher_feature: Float[Tensor, "batch *axes"],
    *,
    variant: Variant = "repdistiller",
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Squared distance of two features of one shape.

    Args:
        student_feature: (batch, ...), after a projector where the networks' shapes differ.
        teacher_feature: of the same shape; no gradient flows into it.
        variant: ``"repdistiller"``: mean over the elements; ``"paper"``: half their sum.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the features differ in shape, or the mask does not fit.
        ValueError: integer features, an unknown variant, reduction or scope.

    >>> student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]])
    >>> hint_loss(student, teacher), hint_loss(student, teacher, variant="paper")
    (tensor(2.), tensor(2.))
    """
    way_out = "a projector gives them one: FitNetsLoss(student_shape, teacher_shape)"
    check_same_shape(student_feature, teacher_feature, mask, way_out=way_out)
    check_choice("variant", variant, ("repdistiller", "paper"))
    check_reduction(reduction, scope)
    with torch.autocast(student_feature.device.type, enabled=False):
        student, teacher = upcast(student_feature.flatten(1), teacher_feature.detach().flatten(1))
        squares = (blank_rows(student, mask) - blank_rows(teacher, mask)).square()
        per_sample = squares.mean(dim=1) if variant == "repdistiller" else squares.sum(dim=1) / 2
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


@final
class FitNetsLoss(Loss):
    """A hint from a middle layer, through a projector if built for two shapes.

    See :func:`hint_loss` and :class:`congener.losses.fitnets_parts.ConvProjector`.
    """

    name = "fitnets"
    paper = Paper(
        title="FitNets: Hints for Thin Deep Nets",
        authors="Adriana Romero, Nicolas Ballas, Samira Ebrahimi Kahou, Antoine Chassang, "
        "Carlo Gatta, Yoshua Bengio",
        venue="ICLR",
        year=2015,
        url="https://arxiv.org/abs/1412.6550",
    )
    equation = "L = meanᵢ ‖ r(fˢᵢ) − fᵗᵢ ‖² / D,  r a trained projector"
    family = "feature"
    sources: ClassVar = {
        "student_shape": "ours: none, for features of one shape",
        "teacher_shape": "ours: none, for features of one shape",
        "variant": "RepDistiller: mean over all elements; the paper's half sum is from memory",
        "reduction": "RepDistiller: mean over samples",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        student_shape: Sequence[int] | None = None,
        teacher_shape: Sequence[int] | None = None,
        *,
        variant: Variant = "repdistiller",
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_choice("variant", variant, ("repdistiller", "paper"))
        check_reduction(reduction, scope)
        self.student_shape, self.teacher_shape = student_shape, teacher_shape
        self.variant, self.reduction, self.scope = variant, reduction, scope
        self.projector = projector_between(student_shape, teacher_shape, scope=scope)

    def forward(
        self,
        student_feature: Float[Tensor, "batch *student_axes"],
        teacher_feature: Float[Tensor, "batch *teacher_axes"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Project the student's feature, then call :func:`hint_loss`."""
        if self.projector is not None:
            student_feature = self.projector(student_feature, mask)
        return hint_loss(
            student_feature, teacher_feature, mask=mask,
            variant=self.variant, reduction=self.reduction, scope=self.scope,
        )  # fmt: skip
