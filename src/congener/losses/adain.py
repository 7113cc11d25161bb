r"""Knowledge transfer via adaptive instance normalisation, AdaIN-KD (Yang et al., arXiv 2020).

The teacher's map is given the *student's* channel statistics and runs through the rest of the
frozen teacher: the change of what comes out says which statistics are wrong.

.. math::
    \hat F = \frac{F^t - \mu_t}{\sigma_t} \sigma_s + \mu_s, \qquad
    L = d\big(q_l(\hat F), q\big)

===============  ====================  ==========================================
symbol           argument              default
===============  ====================  ==========================================
:math:`\hat F`   of :func:`adain`
:math:`q_l`      ``restyled_logits``   of the rest of the teacher, run by the caller
:math:`q`        ``teacher_logits``
(labels)         ``labels``            read by ``"ce"`` alone
:math:`d`        ``distance``          ``"kl"``, ours: the paper's is not known to us
:math:`\tau`     ``temperature``       4, ours
===============  ====================  ==========================================

Conventions
    ``"kl"`` is τ² KL(q ‖ q_l) at τ; ``"mse_logits"`` the mean of (q_l − q)²; ``"ce"`` the cross-
    entropy of q_l with the labels. Mean over samples, which are independent. One tap; several are
    several terms, without a task loss. The rest of the teacher runs with gradient, in eval mode.

Differences from the authors' code
    None is public but the statistics' (jingyang2017/KD_SRRL, d2e802f). Behind the last map, where
    pooling and a linear layer follow, the deviation has no effect: tap an earlier one.
"""

from typing import ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from congener.losses.adain_parts import check_restyled_logits
from congener.losses.base import Loss
from congener.losses.mixed_labels import label_cross_entropy_rows
from congener.ops.checks import check_choice, check_temperature
from congener.ops.collectives import Scope
from congener.ops.divergence import kl_rows
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.types import Paper

__all__ = ["AdaINLoss", "adain_loss"]

Distance = Literal["kl", "mse_logits", "ce"]


def adain_loss(
    restyled_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"] | None = None,
    *,
    distance: Distance = "kl",
    temperature: float = 4.0,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """What the teacher says to its map in the student's statistics, against what it says else.

    Args:
        restyled_logits: (batch, classes), what the rest of the teacher makes of :func:`adain`.
        teacher_logits: (batch, classes); no gradient flows into them.
        labels: (batch,), read by ``"ce"`` alone; samples with a negative one do not count there.
        distance: how two outputs are compared.
        temperature: τ, softens both distributions of ``"kl"``.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the logits differ in shape, or the labels or the mask do not fit.
        ValueError: integer logits, ``"ce"`` without labels, τ ≤ 0, an unknown word.

    >>> adain_loss(torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2), distance="mse_logits")
    tensor(5.)
    """
    check_restyled_logits(restyled_logits, teacher_logits, mask)
    check_choice("distance", distance, ("kl", "mse_logits", "ce"))
    check_temperature(temperature)
    check_reduction(reduction, scope)
    with torch.autocast(restyled_logits.device.type, enabled=False):
        restyled, teacher = upcast(restyled_logits, teacher_logits.detach())
        restyled, teacher = blank_rows(restyled, mask), blank_rows(teacher, mask)
        if distance == "ce":
            if labels is None:
                raise ValueError("distance='ce' compares with the labels; give them.")
            per_sample = label_cross_entropy_rows(restyled, labels, mask, scope=scope)
        elif distance == "kl":
            per_sample = temperature**2 * kl_rows(restyled, teacher, temperature)
        else:
            per_sample = (restyled - teacher).square().mean(dim=1)
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


@final
class AdaINLoss(Loss):
    """The teacher's answer to its map in the student's statistics; see :func:`adain_loss`."""

    name = "adain"
    paper = Paper(
        title="Knowledge Transfer via Adaptive Instance Normalization",
        authors="Jing Yang, Brais Martinez, Adrian Bulat, Georgios Tzimiropoulos",
        venue="arXiv",
        year=2020,
        url="https://arxiv.org/abs/2003.04289",
    )
    equation = "L = meanᵢ d( q_l(F̂ᵢ), qᵢ ),  F̂ = (Fᵗ − μᵗ)/σᵗ·σˢ + μˢ"
    family = "feature"
    sources: ClassVar = {
        "distance": "ours: not in what we could read of the paper",
        "temperature": "ours: 4, as KD on CIFAR-100",
        "reduction": "ours: mean over samples",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        distance: Distance = "kl",
        temperature: float = 4.0,
        *,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_choice("distance", distance, ("kl", "mse_logits", "ce"))
        check_temperature(temperature)
        check_reduction(reduction, scope)
        self.distance, self.temperature = distance, temperature
        self.reduction, self.scope = reduction, scope

    def forward(
        self,
        restyled_logits: Float[Tensor, "batch classes"],
        teacher_logits: Float[Tensor, "batch classes"],
        labels: Int[Tensor, " batch"] | None = None,
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`adain_loss` with the stored hyper-parameters."""
        return adain_loss(restyled_logits, teacher_logits, labels, mask=mask, **self.options)
