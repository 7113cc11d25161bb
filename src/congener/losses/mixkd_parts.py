r"""The teacher's term of MixKD (Liang et al., ICLR 2021), L_TMKD, which needs no labels.

.. math::
    L_{TMKD} = \frac{1}{B} \sum_{i=1}^{B} d(z^t_i, z^s_i)

=========  ======================================  ===========================================
symbol     argument                                default
=========  ======================================  ===========================================
:math:`z`  ``student_logits``, ``teacher_logits``  of mixed samples
:math:`d`  ``distance``, ``temperature``           ``"mse"``, ours; 1, ours
=========  ======================================  ===========================================

Conventions
    ``"mse"``: mean over classes of the squared difference of the logits, which extreme logits of
    mixtures make large; ``"kl"``: τ² KL(teacher ‖ student). At equal logits both are 0.

Differences from the authors' code
    None is known to be published; which distance the paper takes was not at hand.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.ops.checks import check_choice, check_logits, check_temperature
from congener.ops.collectives import Scope
from congener.ops.divergence import kl_rows
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples

__all__ = ["Distance", "distance_rows", "mixkd_distance_loss"]

Distance = Literal["mse", "kl"]


def mixkd_distance_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    *,
    distance: Distance = "mse",
    temperature: float = 1.0,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Distance of the two networks' answers.

    Args:
        student_logits: (batch, classes).
        teacher_logits: (batch, classes); no gradient flows into it.
        distance: ``"mse"`` of the logits, or ``"kl"`` of the probabilities.
        temperature: τ of ``"kl"``; ``"mse"`` has none.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the logits differ in shape, or the mask does not fit.
        ValueError: integer logits, τ ≤ 0, an unknown distance, reduction or scope.

    >>> mixkd_distance_loss(torch.zeros(1, 2), torch.tensor([[4.0, 0.0]]))
    tensor(8.)
    """
    check_reduction(reduction, scope)
    per_sample = distance_rows(student_logits, teacher_logits, distance, temperature, mask)
    return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


def distance_rows(
    student_logits: Tensor,
    teacher_logits: Tensor,
    distance: Distance,
    temperature: float,
    mask: Tensor | None,
) -> Tensor:
    """The distance of each sample; arguments as of :func:`mixkd_distance_loss`."""
    check_logits(student_logits, teacher_logits, mask)
    check_choice("distance", distance, ("mse", "kl"))
    check_temperature(temperature)
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher = upcast(student_logits, teacher_logits.detach())
        student, teacher = blank_rows(student, mask), blank_rows(teacher, mask)
        if distance == "mse":
            return (student - teacher).square().mean(dim=1)
        return temperature**2 * kl_rows(student, teacher, temperature)
