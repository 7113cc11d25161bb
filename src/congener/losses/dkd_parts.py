r"""The two divergences of DKD (Zhao, Cui, Song, Qiu and Liang, CVPR 2022), one by one.

.. math::
    \mathrm{TCKD} = \frac{\tau^2}{B} \sum_i \mathrm{KL}(b^t_i \,\|\, b^s_i), \qquad
    \mathrm{NCKD} = \frac{\tau^2}{B} \sum_i \mathrm{KL}(\hat p^t_i \,\|\, \hat p^s_i)

=============  ===================  ==========================================
symbol         argument             default
=============  ===================  ==========================================
:math:`b`      ``labels``           (p of the label, 1 − it)
:math:`p̂`      ``labels``           the softmax over the other classes
:math:`\tau`   ``temperature``      4, authors' CIFAR-100 setting
=============  ===================  ==========================================

Conventions
    Both are at least 0, and 0 at equal logits. With two classes NCKD is 0. Samples with a negative
    label, the mark of unlabelled ones, are as if absent.

Differences from the authors' code
    None where mdistiller (a08d46f) is sound: it hides the label's class by subtracting 1000, which
    fails for logits / τ that far apart, and takes log(p), infinite for a sure student.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from congener.errors import ShapeError
from congener.losses.lskd_parts import standardize_logits
from congener.ops.checks import check_classes, check_logits, check_temperature
from congener.ops.collectives import Scope
from congener.ops.divergence import kl_rows
from congener.ops.precision import upcast
from congener.ops.reduction import (
    Reduction,
    blank_rows,
    check_reduction,
    labelled,
    reduce_samples,
)

__all__ = ["decoupled_rows", "nckd_loss", "tckd_loss"]


def tckd_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    *,
    temperature: float = 4.0,
    standardize: bool = False,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """TCKD, the label's class against all others; arguments as of :func:`congener.losses.dkd_loss`.

    >>> student, teacher = torch.zeros(1, 2), torch.tensor([[0.0, 2.0]])
    >>> round(tckd_loss(student, teacher, torch.tensor([0]), temperature=1.0).item(), 4)
    0.3278
    """
    check_reduction(reduction, scope)
    tensors, options = (student_logits, teacher_logits, labels), (temperature, standardize)
    tckd, _ = decoupled_rows(*tensors, *options, mask=mask)
    return reduce_samples(tckd, labelled(labels, mask), reduction=reduction, scope=scope)


def nckd_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    *,
    temperature: float = 4.0,
    standardize: bool = False,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """NCKD, among the other classes; arguments as of :func:`congener.losses.dkd_loss`.

    >>> student, teacher = torch.zeros(1, 3), torch.tensor([[9.0, 2.0, 0.0]])
    >>> round(nckd_loss(student, teacher, torch.tensor([0]), temperature=1.0).item(), 4)
    0.3278
    """
    check_reduction(reduction, scope)
    tensors, options = (student_logits, teacher_logits, labels), (temperature, standardize)
    _, nckd = decoupled_rows(*tensors, *options, mask=mask)
    return reduce_samples(nckd, labelled(labels, mask), reduction=reduction, scope=scope)


def decoupled_rows(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    standardize: bool,
    *,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD of each sample; arguments as of :func:`congener.losses.dkd_loss`."""
    check_logits(student_logits, teacher_logits, mask)
    check_classes(labels, student_logits, mask)
    check_temperature(temperature)
    if student_logits.shape[1] < 2:
        raise ShapeError(f"student_logits {tuple(student_logits.shape)} need two classes or more.")
    mask = labelled(labels, mask)
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher = upcast(student_logits, teacher_logits.detach())
        student, teacher = blank_rows(student, mask), blank_rows(teacher, mask)
        if standardize:
            student, teacher = standardize_logits(student), standardize_logits(teacher)
        own = blank_rows(labels, mask).long().unsqueeze(1)
        student, student_others = _decouple(student, own, temperature)
        teacher, teacher_others = _decouple(teacher, own, temperature)
        tckd, nckd = kl_rows(student, teacher, 1.0), kl_rows(student_others, teacher_others, 1.0)
        return temperature**2 * tckd, temperature**2 * nckd


def _decouple(logits: Tensor, own: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits of (own class, all others together), and of the others alone, at a temperature."""
    others = logits.scatter(1, own, -torch.inf)
    # Shifted to at most 0: beside a large logit the logarithm of their number would be lost.
    shift = others.detach().amax(dim=1, keepdim=True)
    logits, others = (logits - shift) / temperature, (others - shift) / temperature
    rest = torch.logsumexp(others, dim=1, keepdim=True)
    return torch.cat((logits.gather(1, own), rest), dim=1), others
