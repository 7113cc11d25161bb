r"""Attention transfer, AT (Zagoruyko and Komodakis, ICLR 2017).

Where a network looks is seen in how strongly each place of a feature map answers, over all
channels. The student is asked to look where the teacher looks.

.. math::
    L = \frac{1}{B \, H W} \sum_{i=1}^{B} \| q^s_i - q^t_i \|_2^2, \qquad
    q = \frac{a}{\|a\|_2}, \quad a_{hw} = \frac{1}{C} \sum_{c=1}^{C} f_{chw}^{\,p}

=============  =====================  ============================
symbol         argument               default
=============  =====================  ============================
:math:`f^s`    ``student_feature``    a map, of any channels
:math:`f^t`    ``teacher_feature``    a map, of any channels
:math:`p`      ``power``              2, authors' code
=============  =====================  ============================

Conventions
    One pair of maps; several stages are several pairs, summed. Of maps of two sizes the larger is
    average-pooled to the smaller, axis by axis. A map of zeros attends nowhere, q = 0; its gradient
    is 0, but for p = 1, where normalising makes it 10¹² times another's. Equal maps give 0. The
    task loss is not included; RepDistiller weighs each stage by 1000.

Differences from the authors' code
    attention-transfer (893df54) gives the same value; so does RepDistiller (b84f547), of which this
    has the pooling, but for maps that are not square, and the sign that odd powers keep. The paper
    has the norm of the difference instead: ``"paper"``, without β/2, which is the term's weight.
"""

from typing import ClassVar, Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.ops.checks import check_choice, check_maps
from congener.ops.collectives import Scope
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.ops.spatial import match_sizes
from congener.types import Paper

__all__ = ["ATLoss", "at_loss", "attention"]

Variant = Literal["authors", "paper"]


def at_loss(
    student_feature: Float[Tensor, "batch student_channels student_height student_width"],
    teacher_feature: Float[Tensor, "batch teacher_channels teacher_height teacher_width"],
    *,
    power: int = 2,
    variant: Variant = "authors",
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Distance of two normalised attention maps.

    Args:
        student_feature: (batch, channels, height, width).
        teacher_feature: likewise, of any channels and size; no gradient flows into it.
        power: p, to which the activations are raised before their mean over the channels.
        variant: ``"authors"``: mean square of the difference; ``"paper"``: its norm.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the features are no maps of one batch, or the mask does not fit.
        ValueError: integer features, a power that is no whole number from 1, an unknown word.

    >>> student, teacher = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 1.0]]]])
    >>> round(at_loss(student, teacher).item(), 4)
    1.0
    """
    check_maps(student_feature, teacher_feature, mask)
    _check_power(power)
    check_choice("variant", variant, ("authors", "paper"))
    check_reduction(reduction, scope)
    with torch.autocast(student_feature.device.type, enabled=False):
        student, teacher = upcast(student_feature, teacher_feature.detach())
        student, teacher = match_sizes(blank_rows(student, mask), blank_rows(teacher, mask))
        difference = attention(student, power) - attention(teacher, power)
        if variant == "authors":
            per_sample = difference.square().mean(dim=1)
        else:
            per_sample = torch.linalg.vector_norm(difference, dim=1)
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


def attention(feature: Tensor, power: int = 2) -> Tensor:
    """Where a map (batch, channels, height, width) answers: (batch, height · width), of norm 1."""
    answers = feature.pow(power).mean(dim=1).flatten(1)
    # Large answers are brought to 1, so that their squares in the norm cannot overflow.
    largest = answers.detach().abs().amax(dim=1, keepdim=True).clamp(min=1)
    return F.normalize(answers / largest, dim=1)


def _check_power(power: int) -> None:
    if not isinstance(power, int) or power < 1:
        raise ValueError(f"power must be a whole number from 1, not {power}.")


@final
class ATLoss(Loss):
    """Where a network looks; see :func:`at_loss`."""

    name = "at"
    paper = Paper(
        title="Paying More Attention to Attention: Improving the Performance of Convolutional "
        "Neural Networks via Attention Transfer",
        authors="Sergey Zagoruyko, Nikos Komodakis",
        venue="ICLR",
        year=2017,
        url="https://arxiv.org/abs/1612.03928",
    )
    equation = "L = meanᵢ ‖ qˢᵢ − qᵗᵢ ‖² / HW,  q = a/‖a‖,  a = mean over channels of fᵖ"
    family = "feature"
    sources: ClassVar = dict.fromkeys(("power", "variant", "reduction"), "authors' code") | {
        "scope": "ours: the batch is the global batch"
    }

    def __init__(
        self,
        power: int = 2,
        *,
        variant: Variant = "authors",
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        _check_power(power)
        check_choice("variant", variant, ("authors", "paper"))
        check_reduction(reduction, scope)
        self.power, self.variant, self.reduction, self.scope = power, variant, reduction, scope

    def forward(
        self,
        student_feature: Float[Tensor, "batch student_channels student_height student_width"],
        teacher_feature: Float[Tensor, "batch teacher_channels teacher_height teacher_width"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`at_loss` with the stored hyper-parameters."""
        return at_loss(student_feature, teacher_feature, mask=mask, **self.options)
