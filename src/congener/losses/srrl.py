r"""Softmax regression representation learning, SRRL (Yang et al., ICLR 2021).

The teacher's own classifier says which parts of a representation matter: besides matching the
teacher's pooled feature, the student's must give the teacher's logits when that classifier, frozen,
reads it.

.. math::
    L = \frac{1}{BC} \sum_{i=1}^{B} \| h^s_i - h^t_i \|_2^2
      + \lambda \, \frac{1}{BK} \sum_{i=1}^{B} \| W h^s_i + b - z^t_i \|_2^2, \qquad
    h = \mathrm{GAP}(F)

====================  ==========================================  ===================
symbol                argument                                    default
====================  ==========================================  ===================
:math:`F^s`           ``student_feature``, projected
:math:`F^t`           ``teacher_feature``
:math:`z^t`           ``teacher_logits``
:math:`W, b`          ``classifier_weight``, ``classifier_bias``
:math:`\lambda`       ``weight``                                  1, authors' code
====================  ==========================================  ===================

Conventions
    GAP is the mean over positions; both squared errors are means over all elements, C channels and
    K classes. The feature is the last map, which the teacher pools and classifies. The task loss
    is not included. Samples are independent but for batch normalisation in the projector.

Differences from the authors' code
    None in value (jingyang2017/KD_SRRL, d2e802f): the projector is their 1x1 convolution, batch
    normalisation and ReLU. The classifier comes with each call.
"""

from typing import ClassVar, final

from jaxtyping import Bool, Float
from torch import Tensor, nn

from congener.losses.base import Loss
from congener.losses.srrl_parts import srrl_feature_loss, srrl_logit_loss
from congener.ops.collectives import Scope
from congener.ops.projectors import ConvNorm
from congener.ops.reduction import Reduction, check_reduction
from congener.types import Paper

__all__ = ["SRRLLoss", "srrl_loss"]


def srrl_loss(
    student_feature: Float[Tensor, "batch channels *student_size"],
    teacher_feature: Float[Tensor, "batch channels *teacher_size"],
    teacher_logits: Float[Tensor, "batch classes"],
    classifier_weight: Float[Tensor, "classes channels"],
    classifier_bias: Float[Tensor, " classes"] | None = None,
    *,
    weight: float = 1.0,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Squared error of pooled features, and of the logits the teacher's classifier reads there.

    Args:
        student_feature: (batch, channels, ...), projected to the teacher's channels.
        teacher_feature: (batch, channels, ...) of any size; no gradient flows into it.
        teacher_logits: (batch, classes); no gradient flows into them.
        classifier_weight: (classes, channels) of the teacher's last layer, held fixed.
        classifier_bias: (classes,), likewise.
        weight: λ, of the logits' error.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: batches, channels or classes differ, or the mask does not fit.
        ValueError: integer inputs, an unknown reduction or scope.

    >>> import torch
    >>> student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]])
    >>> srrl_loss(student, teacher, teacher @ torch.eye(2), torch.eye(2))
    tensor(4.)
    """
    feature_loss = srrl_feature_loss(
        student_feature, teacher_feature, mask=mask, reduction=reduction, scope=scope
    )
    logit_loss = srrl_logit_loss(
        student_feature, teacher_logits, classifier_weight, classifier_bias,
        mask=mask, reduction=reduction, scope=scope,
    )  # fmt: skip
    return feature_loss + weight * logit_loss


@final
class SRRLLoss(Loss):
    """The projected last map, pooled and read by the teacher's classifier; see :func:`srrl_loss`.

    It owns the projector, ``projector``, which trains with the student and then is left behind.
    """

    name = "srrl"
    paper = Paper(
        title="Knowledge Distillation via Softmax Regression Representation Learning",
        authors="Jing Yang, Brais Martinez, Adrian Bulat, Georgios Tzimiropoulos",
        venue="ICLR",
        year=2021,
        url="https://openreview.net/forum?id=ZzwDy_wiWv",
    )
    equation = "L = meanᵢ ‖hˢᵢ − hᵗᵢ‖²/C + λ·meanᵢ ‖W·hˢᵢ + b − zᵗᵢ‖²/K,  h = GAP(F)"
    family = "feature"
    sources: ClassVar = {
        "student_channels": "yours: channels of the student's last map",
        "teacher_channels": "yours: channels of the teacher's last map",
        "weight": "authors' code: 1",
        "reduction": "authors' code: mean over all elements",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        weight: float = 1.0,
        *,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_reduction(reduction, scope)
        self.projector = ConvNorm(student_channels, teacher_channels, relu=True, scope=scope)
        nn.init.kaiming_normal_(self.projector.conv.weight, mode="fan_out")
        self.student_channels, self.teacher_channels = student_channels, teacher_channels
        self.weight, self.reduction, self.scope = weight, reduction, scope

    def forward(
        self,
        student_feature: Float[Tensor, "batch student_channels *student_size"],
        teacher_feature: Float[Tensor, "batch teacher_channels *teacher_size"],
        teacher_logits: Float[Tensor, "batch classes"],
        classifier_weight: Float[Tensor, "classes teacher_channels"],
        classifier_bias: Float[Tensor, " classes"] | None = None,
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Project the student's map, then call :func:`srrl_loss`."""
        projected = self.projector(student_feature, mask)
        classifier = (classifier_weight, classifier_bias)
        return srrl_loss(
            projected, teacher_feature, teacher_logits, *classifier, mask=mask, **self.options
        )
