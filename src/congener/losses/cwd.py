r"""Channel-wise knowledge distillation for dense prediction, CWD (Shu et al., ICCV 2021).

A channel of a dense predictor is a heat map: it says where something is. Each channel's map is made
a distribution over the locations, and the student's is drawn to the teacher's.

.. math::
    L = \frac{\tau^2}{N C} \sum_{n=1}^{N} \sum_{c=1}^{C}
        \mathrm{KL}\big(\phi(y^t_{n,c}) \,\|\, \phi(y^s_{n,c})\big), \qquad
    \phi(y) = \mathrm{softmax}_{h,w}(y / \tau)

=============  ===========================================  ===============================
symbol         argument                                     default
=============  ===========================================  ===============================
:math:`y`      ``student_feature``, ``teacher_feature``
:math:`\tau`   ``temperature``                              4, authors' code
:math:`\phi`   ``normalize``                                ``"channel"``, over locations
=============  ===========================================  ===============================

Conventions
    Sum over locations, mean over channels and samples, times τ². Adding a constant to a channel
    changes nothing. Logit maps and feature maps alike; authors weigh logit maps by 3.

Differences from the authors' code
    The release (TorchDistiller, c2caaca) takes the logarithm of the softmax, which is -inf where
    that underflows; here it is exact. Its ``"spatial"`` is a softmax over the channels of each
    location, divided by N · H · W.
"""

from typing import ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.ops.checks import check_choice, check_maps, check_temperature
from congener.ops.collectives import Scope
from congener.ops.divergence import kl_rows
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.types import Paper

__all__ = ["CWDLoss", "cwd_loss"]

Normalize = Literal["channel", "spatial"]


def cwd_loss(
    student_feature: Float[Tensor, "batch channels height width"],
    teacher_feature: Float[Tensor, "batch channels height width"],
    *,
    temperature: float = 4.0,
    normalize: Normalize = "channel",
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Kullback-Leibler divergence of the channels' distributions over the locations, times τ².

    Args:
        student_feature: (batch, channels, height, width), features or logits.
        teacher_feature: of the same shape; no gradient flows into it.
        temperature: τ, softens both distributions.
        normalize: ``"channel"``: each channel over the locations; ``"spatial"``: each location over
            the channels.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the maps differ in shape, or the mask does not fit.
        ValueError: integer maps, τ ≤ 0, an unknown normalisation, reduction or scope.

    >>> student, teacher = torch.zeros(1, 1, 1, 2), torch.tensor([[[[4.0, 0.0]]]])
    >>> round(cwd_loss(student, teacher).item(), 4)
    1.7751
    """
    check_maps(student_feature, teacher_feature, mask, same_shape=True)
    check_temperature(temperature)
    check_choice("normalize", normalize, ("channel", "spatial"))
    check_reduction(reduction, scope)
    with torch.autocast(student_feature.device.type, enabled=False):
        student, teacher = upcast(student_feature, teacher_feature.detach())
        student, teacher = (blank_rows(x, mask).flatten(2) for x in (student, teacher))
        if normalize == "spatial":
            student, teacher = student.transpose(1, 2), teacher.transpose(1, 2)
        rows = kl_rows(student.flatten(0, 1), teacher.flatten(0, 1), temperature)
        per_sample = temperature**2 * rows.reshape(student.shape[:2]).mean(dim=1)
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


@final
class CWDLoss(Loss):
    """Where each channel is active; see :func:`cwd_loss`."""

    name = "cwd"
    paper = Paper(
        title="Channel-Wise Knowledge Distillation for Dense Prediction",
        authors="Changyong Shu, Yifan Liu, Jianfei Gao, Zheng Yan, Chunhua Shen",
        venue="ICCV",
        year=2021,
        url="https://arxiv.org/abs/2011.13256",
    )
    equation = "L = τ² · mean over samples and channels of KL( φ(yᵗ) ‖ φ(yˢ) ),  φ over locations"
    family = "feature"
    sources: ClassVar = {
        "temperature": "authors' code: its Cityscapes command, 4",
        "normalize": "authors' code: its Cityscapes command, channel",
        "reduction": "authors' code: sum over locations, mean over channels and samples",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        temperature: float = 4.0,
        normalize: Normalize = "channel",
        *,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_choice("normalize", normalize, ("channel", "spatial"))
        check_reduction(reduction, scope)
        self.temperature, self.normalize = temperature, normalize
        self.reduction, self.scope = reduction, scope

    def forward(
        self,
        student_feature: Float[Tensor, "batch channels height width"],
        teacher_feature: Float[Tensor, "batch channels height width"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`cwd_loss` with the stored hyper-parameters."""
        return cwd_loss(student_feature, teacher_feature, mask=mask, **self.options)
