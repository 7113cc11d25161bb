r"""Knowledge distillation from a stronger teacher, DIST (Huang et al., NeurIPS 2022).

A strong teacher's probabilities need not be matched, only their relations: how each sample ranks
the classes (inter-class), and how each class ranks the samples of the batch (intra-class).

.. math::
    L = \tau^2 \Big[ \beta \Big( 1 - \frac{1}{B} \sum_{i=1}^{B} \rho(y^s_{i,:}, y^t_{i,:}) \Big)
      + \gamma \Big( 1 - \frac{1}{C} \sum_{j=1}^{C} \rho(y^s_{:,j}, y^t_{:,j}) \Big) \Big]

=====================  ======================================  ====================
symbol                 argument                                default
=====================  ======================================  ====================
:math:`z`              ``student_logits``, ``teacher_logits``
:math:`\beta, \gamma`  ``beta``, ``gamma``                     1, authors' code
:math:`\tau`           ``temperature``                         1, authors' ImageNet
=====================  ======================================  ====================

Conventions
    y = σ(z / τ); ρ is Pearson's correlation, 1e-8 added to the product of the norms. Pixels are
    rows. A lone sample's intra-class term is 1, without gradient. Where the student's logits are
    all equal the gradient grows up to 1e8-fold: do not start from a classifier of zeros. The task
    loss is not included.

Differences from the authors' code
    None in one process (image_classification_sota, 6f7a70a). Its ImageNet runs have the intra-class
    term per process: ``scope="local"``. The paper's listing has no τ²: ``variant="paper"``.
"""

from typing import ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.ops.checks import check_choice, check_logits, check_temperature
from congener.ops.collectives import Scope, warn_if_alone
from congener.ops.divergence import soften
from congener.ops.reduction import Reduction, check_reduction, reduce_samples
from congener.ops.similarity import column_correlations, row_correlations
from congener.ops.spatial import pixels_as_rows
from congener.types import Paper

__all__ = ["DISTLoss", "dist_loss"]

Variant = Literal["authors", "paper"]


def dist_loss(
    student_logits: Float[Tensor, "batch classes *pixels"],
    teacher_logits: Float[Tensor, "batch classes *pixels"],
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    variant: Variant = "authors",
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Lost correlation of class probabilities over classes, and over samples.

    Args:
        student_logits: (batch, classes) or (batch, classes, height, width).
        teacher_logits: of the same shape; no gradient flows into it.
        beta: β, weight of the inter-class term.
        gamma: γ, weight of the intra-class term.
        temperature: τ, softens both distributions.
        variant: ``"authors"`` multiplies by τ², ``"paper"`` does not.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"``, ``"none"``: what each sample adds to it, or ``"sum"`` of those.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the logits differ in shape, or the mask does not fit.
        ValueError: integer logits, τ ≤ 0, an unknown variant, reduction or scope.

    >>> student, teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0]] * 2)
    >>> round(dist_loss(student, teacher).item(), 4)  # inter: one of two wrong; intra: none told
    2.0
    """
    check_logits(student_logits, teacher_logits, mask, dense=True)
    check_temperature(temperature)
    check_choice("variant", variant, ("authors", "paper"))
    check_reduction(reduction, scope)
    batch, pixels = student_logits.shape[0], student_logits.shape[2:].numel()
    rows = None if mask is None else mask.repeat_interleave(pixels)
    with torch.autocast(student_logits.device.type, enabled=False):
        student = soften(pixels_as_rows(student_logits), temperature, rows)
        teacher = soften(pixels_as_rows(teacher_logits.detach()), temperature, rows)
        if gamma != 0:
            warn_if_alone(student, "dist (its intra-class term)", scope=scope)
        inter_class = 1 - row_correlations(student, teacher)
        intra_class = 1 - column_correlations(student, teacher, rows, scope=scope)
        per_row = beta * inter_class + gamma * intra_class
        per_sample = per_row.reshape(batch, pixels).mean(dim=1)
        per_sample = per_sample * (temperature**2 if variant == "authors" else 1.0)
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


@final
class DISTLoss(Loss):
    """Relations of classes and of samples; see :func:`dist_loss`."""

    name = "dist"
    paper = Paper(
        title="Knowledge Distillation from A Stronger Teacher",
        authors="Tao Huang, Shan You, Fei Wang, Chen Qian, Chang Xu",
        venue="NeurIPS",
        year=2022,
        url="https://arxiv.org/abs/2205.10536",
    )
    equation = "L = τ²·( β·(1 − meanᵢ ρ(yˢᵢ, yᵗᵢ)) + γ·(1 − meanⱼ ρ(yˢ.ⱼ, yᵗ.ⱼ)) )"
    family = "relation"
    batch_coupled = True
    sources: ClassVar = {
        **dict.fromkeys(("beta", "gamma", "temperature", "variant", "reduction"), "authors' code"),
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        beta: float = 1.0,
        gamma: float = 1.0,
        temperature: float = 1.0,
        *,
        variant: Variant = "authors",
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_choice("variant", variant, ("authors", "paper"))
        check_reduction(reduction, scope)
        self.beta, self.gamma, self.temperature = beta, gamma, temperature
        self.variant, self.reduction, self.scope = variant, reduction, scope

    def forward(
        self,
        student_logits: Float[Tensor, "batch classes *pixels"],
        teacher_logits: Float[Tensor, "batch classes *pixels"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`dist_loss` with the stored hyper-parameters."""
        return dist_loss(student_logits, teacher_logits, mask=mask, **self.options)
