r"""The channel statistics of AdaIN-KD (Yang, Martinez, Bulat and Tzimiropoulos, arXiv 2020).

A channel's mean and deviation over the positions of a map say how the channel is used. Asking the
student for the teacher's is the plain way to transfer them, which AdaIN-KD improves on.

.. math::
    L = \frac{1}{BC} \sum_{i,c} \big( (\mu^s_{ic} - \mu^t_{ic})^2
      + (\sigma^s_{ic} - \sigma^t_{ic})^2 \big), \qquad
    \sigma = \sqrt{\mathrm{var} + \epsilon}

==================  ====================  ====================================
symbol              argument              default
==================  ====================  ====================================
:math:`F^s`         ``student_feature``   of the teacher's channels, any size
:math:`F^t`         ``teacher_feature``
:math:`\epsilon`    ``eps``               1e-5, authors' code
(variance)          ``unbiased``          divided by positions − 1, authors' code
==================  ====================  ====================================

Conventions
    Mean over channels and samples, which are independent. With a single position the variance is 0,
    whichever its divisor.

Differences from the authors' code
    Theirs (jingyang2017/KD_SRRL, d2e802f) keeps only the means: :func:`srrl_feature_loss`. The form
    with deviations follows the paper's summary.
"""

from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.adain_parts import channel_statistics
from congener.losses.base import Loss
from congener.ops.checks import check_positive, check_same_channels
from congener.ops.collectives import Scope
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.types import Paper

__all__ = ["AdaINStatisticsLoss", "adain_statistics_loss"]


def adain_statistics_loss(
    student_feature: Float[Tensor, "batch channels *student_size"],
    teacher_feature: Float[Tensor, "batch channels *teacher_size"],
    *,
    eps: float = 1e-5,
    unbiased: bool = True,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Squared error of the channels' means and deviations, averaged over channels.

    Args:
        student_feature: (batch, channels, ...), projected to the teacher's channels.
        teacher_feature: (batch, channels, ...) of any size; no gradient flows into it.
        eps: ε, added to the variances.
        unbiased: whether variances are divided by the number of positions less one.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: batches or channels differ, or the mask does not fit.
        ValueError: integer features, eps ≤ 0, an unknown reduction or scope.

    >>> student, teacher = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[5.0, 5.0]]])
    >>> adain_statistics_loss(student, teacher, eps=2.0)  # 3² + (2 - √2)²
    tensor(9.3431)
    """
    check_same_channels(student_feature, teacher_feature, mask)
    check_reduction(reduction, scope)
    with torch.autocast(student_feature.device.type, enabled=False):
        features = (student_feature, teacher_feature.detach())
        student, teacher = (
            torch.stack(channel_statistics(blank_rows(x, mask), eps=eps, unbiased=unbiased))
            for x in upcast(*features)
        )
        per_sample = (student - teacher).square().sum(dim=0).mean(dim=1)
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


@final
class AdaINStatisticsLoss(Loss):
    """Each channel's mean and deviation, sample by sample; see :func:`adain_statistics_loss`."""

    name = "adain_statistics"
    paper = Paper(
        title="Knowledge Transfer via Adaptive Instance Normalization",
        authors="Jing Yang, Brais Martinez, Adrian Bulat, Georgios Tzimiropoulos",
        venue="arXiv",
        year=2020,
        url="https://arxiv.org/abs/2003.04289",
    )
    equation = "L = mean over samples and channels of (μˢ − μᵗ)² + (σˢ − σᵗ)²"
    family = "feature"
    sources: ClassVar = {
        "eps": "authors' code (SRRL): 1e-5",
        "unbiased": "authors' code (SRRL): divided by positions − 1",
        "reduction": "authors' code (SRRL): mean over channels and samples",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        eps: float = 1e-5,
        unbiased: bool = True,
        *,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_positive("eps", eps)
        check_reduction(reduction, scope)
        self.eps, self.unbiased = eps, unbiased
        self.reduction, self.scope = reduction, scope

    def forward(
        self,
        student_feature: Float[Tensor, "batch channels *student_size"],
        teacher_feature: Float[Tensor, "batch channels *teacher_size"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`adain_statistics_loss` with the stored hyper-parameters."""
        return adain_statistics_loss(student_feature, teacher_feature, mask=mask, **self.options)
