r"""Decoupled knowledge distillation, DKD (Zhao, Cui, Song, Qiu and Liang, CVPR 2022).

KD's divergence is two: of the true class against all others (TCKD), and among the others (NCKD).
There the second weighs less the surer the teacher is; here both have weights of their own.

.. math::
    L = \frac{\tau^2}{B} \sum_{i=1}^{B} \big( \alpha \, \mathrm{KL}(b^t_i \,\|\, b^s_i)
        + \beta \, \mathrm{KL}(\hat p^t_i \,\|\, \hat p^s_i) \big)

with b = (p_y, 1 − p_y) at the label y, and p̂ the softmax over the classes other than y.

===============  ==================  =======================================
symbol           argument            default
===============  ==================  =======================================
:math:`y`        ``labels``
:math:`\alpha`   ``alpha``           1, authors' code
:math:`\beta`    ``beta``            8, authors' code for most CIFAR pairs
:math:`\tau`     ``temperature``     4, authors' CIFAR-100 setting
===============  ==================  =======================================

Conventions
    Mean over samples, times τ². KD is α = 1 with each sample's β = 1 − pᵗ of its label. With two
    classes NCKD is 0. Warm-up, a schedule of the weight, and the task loss are the caller's.

Differences from the authors' code
    None where mdistiller (a08d46f) is sound: it hides the true class by subtracting 1000, which
    fails for logits / τ that far apart, and takes log(p), infinite for a sure student.
"""

from typing import ClassVar, final

from jaxtyping import Bool, Float, Int
from torch import Tensor

from congener.losses.base import Loss
from congener.losses.dkd_parts import decoupled_rows
from congener.ops.checks import check_temperature
from congener.ops.collectives import Scope
from congener.ops.reduction import Reduction, check_reduction, labelled, reduce_samples
from congener.types import Paper

__all__ = ["DKDLoss", "dkd_loss"]


def dkd_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    standardize: bool = False,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Weighted divergences of the true class against the rest, and among the rest, times τ².

    Args:
        student_logits: (batch, classes), two classes or more.
        teacher_logits: (batch, classes); no gradient flows into it.
        labels: (batch,), the true classes; samples with a negative one are as if absent.
        alpha: α, weight of TCKD.
        beta: β, weight of NCKD.
        temperature: τ, softens both distributions.
        standardize: standardise each sample's logits first, as the authors of LSKD do.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: shapes that do not fit, or fewer than two classes.
        ValueError: integer logits, labels that are no class, τ ≤ 0, an unknown word.

    >>> import torch
    >>> student, teacher = torch.zeros(1, 3), torch.tensor([[0.0, 2.0, -2.0]])
    >>> round(dkd_loss(student, teacher, torch.tensor([0]), temperature=1.0, alpha=0).item(), 4)
    4.8244
    """
    check_reduction(reduction, scope)
    tckd, nckd = decoupled_rows(
        student_logits, teacher_logits, labels, temperature, standardize, mask=mask
    )
    per_sample = alpha * tckd + beta * nckd
    return reduce_samples(per_sample, labelled(labels, mask), reduction=reduction, scope=scope)


@final
class DKDLoss(Loss):
    """The true class against the rest, and the rest among themselves; see :func:`dkd_loss`."""

    name = "dkd"
    paper = Paper(
        title="Decoupled Knowledge Distillation",
        authors="Borui Zhao, Quan Cui, Renjie Song, Yiyu Qiu, Jiajun Liang",
        venue="CVPR",
        year=2022,
        url="https://arxiv.org/abs/2203.08679",
    )
    equation = "L = τ² · meanᵢ ( α·KL(bᵗᵢ ‖ bˢᵢ) + β·KL(p̂ᵗᵢ ‖ p̂ˢᵢ) ),  p̂ without the true class"
    family = "response"
    needs_labels = True
    sources: ClassVar = {
        **dict.fromkeys(("alpha", "beta", "temperature", "reduction"), "authors' code"),
        "standardize": "authors' code: no; True in the code of LSKD's authors",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
        *,
        standardize: bool = False,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_reduction(reduction, scope)
        self.alpha, self.beta, self.temperature = alpha, beta, temperature
        self.standardize, self.reduction, self.scope = standardize, reduction, scope

    def forward(
        self,
        student_logits: Float[Tensor, "batch classes"],
        teacher_logits: Float[Tensor, "batch classes"],
        labels: Int[Tensor, " batch"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`dkd_loss` with the stored hyper-parameters."""
        return dkd_loss(student_logits, teacher_logits, labels, mask=mask, **self.options)
