r"""MixKD (Liang et al., ICLR 2021): distilling where training samples are mixed.

With little text the teacher is asked on mixtures of it too. Word embeddings of pairs are
interpolated, each network its own; the student learns the mixed labels and the teacher's answer.

.. math::
    L = \alpha_{SM} \frac{1}{B} \sum_i \big( \lambda_i \, \mathrm{CE}(z^s_i, y_i)
        + (1 - \lambda_i) \, \mathrm{CE}(z^s_i, y'_i) \big)
      + \alpha_{TMKD} \frac{1}{B} \sum_i d(z^t_i, z^s_i)

=======================  ======================================  ====================
symbol                   argument                                default
=======================  ======================================  ====================
:math:`z`                ``student_logits``, ``teacher_logits``  of mixed samples
:math:`y, y'`            ``labels``, ``other_labels``
:math:`\lambda`          ``share``
:math:`\alpha_{SM}`      ``alpha_sm``                            1, ours
:math:`\alpha_{TMKD}`    ``alpha_tmkd``                          1, ours
:math:`d`                ``distance``, ``temperature``           ``"mse"``, 1, ours
=======================  ======================================  ====================

Conventions
    d is the mean squared difference of the logits, or τ² times the KL divergence. L_MLE, the task
    loss of the samples themselves, is not included. The second term alone, which needs no labels,
    is :func:`congener.losses.mixkd_distance_loss`.

Differences from the authors' code
    None is known to be published. Mixing for the student and for the teacher is the paper's, the
    terms' exact form is from memory, and d and every number are ours.
"""

from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from congener.losses.base import Loss
from congener.losses.mixed_labels import Share, mixed_label_rows
from congener.losses.mixkd_parts import Distance, distance_rows
from congener.ops.checks import check_choice, check_temperature
from congener.ops.collectives import Scope
from congener.ops.reduction import Reduction, check_reduction, reduce_samples
from congener.types import Paper

__all__ = ["MixKDLoss", "mixkd_loss"]


def mixkd_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    other_labels: Int[Tensor, " batch"],
    share: Share,
    *,
    alpha_sm: float = 1.0,
    alpha_tmkd: float = 1.0,
    distance: Distance = "mse",
    temperature: float = 1.0,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Cross-entropy with mixed labels, and distance to the teacher, on mixed samples.

    Arguments, results and errors are those of :func:`congener.losses.mixed_cross_entropy_loss` and
    of :func:`congener.losses.mixkd_distance_loss`. A sample without labels, a negative one, keeps
    the distance.

    >>> student, teacher, labels = torch.zeros(1, 2), torch.tensor([[4.0, 0.0]]), torch.tensor([0])
    >>> round(mixkd_loss(student, teacher, labels, 1 - labels, 0.3).item(), 4)  # log 2 + 16 / 2
    8.6931
    """
    check_reduction(reduction, scope)
    both, labels_of_both = (student_logits, teacher_logits), (labels, other_labels)
    teacher_mixup = distance_rows(*both, distance, temperature, mask)
    with torch.autocast(student_logits.device.type, enabled=False):
        student_mixup = mixed_label_rows(student_logits, *labels_of_both, share, mask, scope=scope)
        per_sample = alpha_sm * student_mixup + alpha_tmkd * teacher_mixup
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


@final
class MixKDLoss(Loss):
    """Mixed labels and the teacher's answer on mixed samples; see :func:`mixkd_loss`."""

    name = "mixkd"
    paper = Paper(
        title="MixKD: Towards Efficient Distillation of Large-scale Language Models",
        authors="Kevin J Liang, Weituo Hao, Dinghan Shen, Yufan Zhou, Weizhu Chen, Changyou Chen, "
        "Lawrence Carin",
        venue="ICLR",
        year=2021,
        url="https://arxiv.org/abs/2011.00593",
    )
    equation = "L = α_SM·meanᵢ (λᵢ·CE(yᵢ) + (1−λᵢ)·CE(y'ᵢ)) + α_TMKD·meanᵢ d(zᵗᵢ, zˢᵢ)"
    family = "response"
    zero_at_match = False
    needs_labels = True
    sources: ClassVar = {
        **dict.fromkeys(
            ("alpha_sm", "alpha_tmkd", "distance", "temperature"),
            "ours: the paper's was not at hand",
        ),
        "reduction": "ours: mean over mixed samples",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        alpha_sm: float = 1.0,
        alpha_tmkd: float = 1.0,
        distance: Distance = "mse",
        temperature: float = 1.0,
        *,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_choice("distance", distance, ("mse", "kl"))
        check_temperature(temperature)
        check_reduction(reduction, scope)
        self.alpha_sm, self.alpha_tmkd = alpha_sm, alpha_tmkd
        self.distance, self.temperature = distance, temperature
        self.reduction, self.scope = reduction, scope

    def forward(
        self,
        student_logits: Float[Tensor, "batch classes"],
        teacher_logits: Float[Tensor, "batch classes"],
        labels: Int[Tensor, " batch"],
        other_labels: Int[Tensor, " batch"],
        share: Share,
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`mixkd_loss` with the stored hyper-parameters."""
        tensors = (student_logits, teacher_logits, labels, other_labels, share)
        return mixkd_loss(*tensors, mask=mask, **self.options)
