r"""Similarity transfer, STKD (Zhao, Gong, Sun, Dong and Yu, arXiv 2021): a reconstruction.

How alike classes look shows where samples of several are mixed. On virtual samples, interpolated
from pairs, the student learns the mixed labels and the teacher's softened probabilities.

.. math::
    L = w_{CE} \frac{1}{B} \sum_i \big( \lambda_i \, \mathrm{CE}(z^s_i, y_i)
        + (1 - \lambda_i) \, \mathrm{CE}(z^s_i, y'_i) \big)
      + w_{KL} \frac{\tau^2}{B} \sum_i \mathrm{KL}\big(
        \sigma(z^t_i / \tau) \,\|\, \sigma(z^s_i / \tau) \big)

=================  ======================================  ====================
symbol             argument                                default
=================  ======================================  ====================
:math:`z`          ``student_logits``, ``teacher_logits``  of virtual samples
:math:`y, y'`      ``labels``, ``other_labels``
:math:`\lambda`    ``share``
:math:`w_{CE}`     ``ce_weight``                           0.1, ours
:math:`w_{KL}`     ``kl_weight``                           0.9, ours
:math:`\tau`       ``temperature``                         4, ours
=================  ======================================  ====================

Conventions
    **Reconstructed from the abstract**: the paper's equations and settings were not at hand, and no
    code was published. The cross-entropy is the task loss of virtual samples; that of the images
    themselves is not included. Making the virtual samples, the same for both networks, is the
    caller's; so is the teacher's target, of the virtual sample or interpolated.

Differences from the authors' code
    None is known to be published.
"""

from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from congener.losses.base import Loss
from congener.losses.mixed_labels import Share, mixed_label_rows
from congener.ops.checks import check_logits, check_temperature
from congener.ops.collectives import Scope
from congener.ops.divergence import kl_rows
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.types import Paper

__all__ = ["STKDLoss", "stkd_loss"]


def stkd_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    other_labels: Int[Tensor, " batch"],
    share: Share,
    *,
    ce_weight: float = 0.1,
    kl_weight: float = 0.9,
    temperature: float = 4.0,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Cross-entropy with mixed labels, and KL divergence times τ², on virtual samples.

    Arguments, results and errors are those of :func:`congener.losses.mixed_cross_entropy_loss`,
    with ``teacher_logits`` of the same virtual samples, detached, and ``temperature`` as of
    :func:`congener.losses.kd_loss`. A sample without labels, a negative one, keeps its KL.

    >>> student, teacher, labels = torch.zeros(1, 2), torch.tensor([[4.0, 0.0]]), torch.tensor([0])
    >>> round(stkd_loss(student, teacher, labels, 1 - labels, 0.3).item(), 4)  # log 2 / 10 + …
    1.6669
    """
    check_logits(student_logits, teacher_logits, mask)
    check_temperature(temperature)
    check_reduction(reduction, scope)
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher = upcast(student_logits, teacher_logits.detach())
        student, teacher = blank_rows(student, mask), blank_rows(teacher, mask)
        task = mixed_label_rows(student, labels, other_labels, share, mask, scope=scope)
        kd = temperature**2 * kl_rows(student, teacher, temperature)
        per_sample = ce_weight * task + kl_weight * kd
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


@final
class STKDLoss(Loss):
    """Mixed labels and the teacher's probabilities on virtual samples; see :func:`stkd_loss`."""

    name = "stkd"
    paper = Paper(
        title="Similarity Transfer for Knowledge Distillation",
        authors="Haoran Zhao, Kun Gong, Xin Sun, Junyu Dong, Hui Yu",
        venue="arXiv",
        year=2021,
        url="https://arxiv.org/abs/2103.10047",
    )
    equation = "L = w_CE·meanᵢ (λᵢ·CE(yᵢ) + (1−λᵢ)·CE(y'ᵢ)) + w_KL·τ²·meanᵢ KL(pᵗᵢ ‖ pˢᵢ)"
    family = "response"
    zero_at_match = False
    needs_labels = True
    sources: ClassVar = {
        **dict.fromkeys(
            ("ce_weight", "kl_weight", "temperature"),
            "ours: KD's common CIFAR-100 setting; the paper's was not at hand",
        ),
        "reduction": "ours: mean over virtual samples",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        ce_weight: float = 0.1,
        kl_weight: float = 0.9,
        temperature: float = 4.0,
        *,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_reduction(reduction, scope)
        self.ce_weight, self.kl_weight, self.temperature = ce_weight, kl_weight, temperature
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
        """Call :func:`stkd_loss` with the stored hyper-parameters."""
        tensors = (student_logits, teacher_logits, labels, other_labels, share)
        return stkd_loss(*tensors, mask=mask, **self.options)
