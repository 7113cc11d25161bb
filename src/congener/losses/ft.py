r"""Factor transfer, FT (Kim, Park and Kwak, NeurIPS 2018).

A paraphraser, an autoencoder trained first, puts what the teacher's map holds into fewer channels,
its factor. A translator, trained with the student, makes a factor of the student's map, and the two
factors are asked to point the same way.

.. math::
    L = \frac{1}{B} \sum_{i=1}^{B} \frac{1}{D}
        \Big\| \frac{F^s_i}{\|F^s_i\|_2} - \frac{F^t_i}{\|F^t_i\|_2} \Big\|_1

=============  ===================================  ===============================
symbol         argument                             default
=============  ===================================  ===============================
:math:`F^s`    ``student_feature``                  the translated map, D numbers
:math:`F^t`    ``teacher_feature``                  the paraphrased map, likewise
:math:`k`      ``rate``                             0.5, authors' code
=============  ===================================  ===============================

Conventions
    Mean over all elements and samples of flattened factors; a factor of zeros stays zero, with a
    gradient 10¹² times that of a factor of norm 1, as normalising has it. Equal directions give 0.
    The task loss is not included; the authors' weight is 500. The module holds both nets and
    freezes the paraphraser: it must have been trained before.

Differences from the authors' code
    Factor-Transfer-pytorch (19cce26) gives the same value; the paper has the norm, not the mean.
    RepDistiller's FactorTransfer is another loss, of attention maps instead of factors.
"""

import math
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.losses.ft_parts import Paraphraser, Translator
from congener.ops.checks import check_channels, check_maps, check_same_shape
from congener.ops.collectives import Scope
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.types import Paper

__all__ = ["FTLoss", "ft_loss"]


def ft_loss(
    student_feature: Float[Tensor, "batch *axes"],
    teacher_feature: Float[Tensor, "batch *axes"],
    *,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Mean absolute difference of two normalised factors.

    Args:
        student_feature: the student's factor, (batch, ...).
        teacher_feature: the teacher's, of the same shape; no gradient flows into it.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the factors differ in shape, or the mask does not fit.
        ValueError: integer factors, an unknown reduction or scope.

    >>> student, teacher = torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0]])
    >>> round(ft_loss(student, teacher).item(), 4)  # (0.4 + 0.8) / 2
    0.6
    """
    way_out = "FTLoss(student_channels, teacher_channels) makes factors of one shape of them"
    check_same_shape(student_feature, teacher_feature, mask, way_out=way_out)
    check_reduction(reduction, scope)
    with torch.autocast(student_feature.device.type, enabled=False):
        student, teacher = upcast(student_feature.flatten(1), teacher_feature.detach().flatten(1))
        directions = (F.normalize(blank_rows(x, mask), dim=1) for x in (student, teacher))
        per_sample = torch.sub(*directions).abs().mean(dim=1)
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


@final
class FTLoss(Loss):
    """Direction of the student's factor and the teacher's; see :func:`ft_loss`.

    Its ``paraphraser`` is frozen; give it the weights that were trained on
    :meth:`congener.losses.ft_parts.Paraphraser.reconstruction_loss`.
    """

    name = "ft"
    paper = Paper(
        title="Paraphrasing Complex Network: Network Compression via Factor Transfer",
        authors="Jangho Kim, SeongUk Park, Nojun Kwak",
        venue="NeurIPS",
        year=2018,
        url="https://arxiv.org/abs/1802.04977",
    )
    equation = "L = meanᵢ ‖ Fˢᵢ/‖Fˢᵢ‖ − Fᵗᵢ/‖Fᵗᵢ‖ ‖₁ / D"
    family = "feature"
    sources: ClassVar = {
        "student_channels": "yours: the channels of the student's map",
        "teacher_channels": "yours: the channels of the teacher's map",
        "rate": "authors' code: the factor has half the teacher's channels",
        "reduction": "authors' code: mean over all elements",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        rate: float = 0.5,
        *,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_reduction(reduction, scope)
        factor_channels = round(rate * teacher_channels) if 0 < rate < math.inf else 0
        if factor_channels < 1:
            raise ValueError(
                f"rate {rate} of {teacher_channels} channels leaves none; give one in (0, 1]."
            )
        self.student_channels, self.teacher_channels = student_channels, teacher_channels
        self.rate, self.reduction, self.scope = rate, reduction, scope
        self.translator = Translator(student_channels, factor_channels)
        self.paraphraser = Paraphraser(teacher_channels, factor_channels).requires_grad_(False)

    def forward(
        self,
        student_feature: Float[Tensor, "batch student_channels height width"],
        teacher_feature: Float[Tensor, "batch teacher_channels height width"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Make both factors, then call :func:`ft_loss`."""
        check_maps(student_feature, teacher_feature, mask)
        check_channels("student_feature", student_feature, self.student_channels)
        check_channels("teacher_feature", teacher_feature, self.teacher_channels)
        student_factor = self.translator(blank_rows(student_feature, mask))
        with torch.no_grad():
            teacher_factor = self.paraphraser(blank_rows(teacher_feature, mask))
        return ft_loss(
            student_factor, teacher_factor, mask=mask, reduction=self.reduction, scope=self.scope
        )
