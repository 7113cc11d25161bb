r"""Correlation congruence for knowledge distillation, CCKD (Peng et al., ICCV 2019).

Followed sample by sample, a teacher does not pass on how compact its classes are. Here the student
is asked for the teacher's correlations between the samples of a batch, under a kernel.

.. math::
    L = \frac{1}{B^2} \sum_{i,j} \big( \varphi(f^s_i, f^s_j) - \varphi(f^t_i, f^t_j) \big)^2, \quad
    \varphi(x, y) = e^{-2\gamma} \sum_{p=0}^{P} \frac{(2\gamma)^p}{p!} (x^\top y)^p

=================  ========================================  =========================
symbol             argument                                  default
=================  ========================================  =========================
:math:`f`          ``student_feature``, ``teacher_feature``  flattened to (batch, rest)
:math:`\varphi`    ``kernel``                                ``"rbf"``, as above
:math:`\gamma, P`  ``gamma``, ``order``                      0.4 and 2, published code
(f of length 1)    ``normalize``                             True
=================  ========================================  =========================

Conventions
    φ of ``"rbf"`` is the Taylor expansion of exp(-γ‖x - y‖²) for x, y of length 1; ``"bilinear"``
    is xᵀy, ``"mmd"`` the difference of the means, \|mean(x) - mean(y)\|. Mean over all B² pairs;
    the diagonal adds 0. The instance terms and the weight β (0.003) are not included.

Differences from the authors' code
    None was published. KD-Zoo (65470c8) gives this; torchdistill (3e4373c) leaves lengths alone and
    takes the root, √L / B. What the authors shared is :func:`neighbour_correlation_loss`.
"""

from functools import partial
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.losses.cckd_parts import Kernel, check_kernel, kernel_values, warn_if_not_monotone
from congener.ops.checks import check_features
from congener.ops.collectives import Scope, batch_size, warn_if_alone
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, check_reduction, reduce_samples
from congener.ops.relations import by_rows, gather_batch, unit_rows
from congener.types import Paper

__all__ = ["CCKDLoss", "cckd_loss"]


def cckd_loss(
    student_feature: Float[Tensor, "batch *student_axes"],
    teacher_feature: Float[Tensor, "batch *teacher_axes"],
    *,
    kernel: Kernel = "rbf",
    gamma: float = 0.4,
    order: int = 2,
    normalize: bool = True,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Squared difference of the two batches' kernel matrices.

    Args:
        student_feature: (batch, ...) with 2 to 5 axes.
        teacher_feature: (batch, ...), other axes free; no gradient flows into it.
        kernel: ``"rbf"``, ``"bilinear"`` or ``"mmd"``.
        gamma: γ of ``"rbf"``.
        order: P of ``"rbf"``, the last power of its expansion.
        normalize: give every sample length 1 before.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"``, ``"none"``: each sample's row of it, whose mean it is, ``"sum"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the batch sizes differ, or a feature or the mask has the wrong axes.
        ValueError: integer features, γ ≤ 0, P < 0, an unknown kernel, reduction or scope.

    >>> student, teacher = torch.tensor([[1.0], [1.0]]), torch.eye(2)
    >>> cckd_loss(student, teacher, kernel="bilinear")  # (1 + 1) / 4
    tensor(0.5000)
    """
    check_features(student_feature, teacher_feature, mask)
    check_kernel(kernel, gamma, order)
    check_reduction(reduction, scope)
    warn_if_alone(student_feature, "cckd", scope=scope)
    phi = partial(kernel_values, kernel=kernel, gamma=gamma, order=order)
    with torch.autocast(student_feature.device.type, enabled=False):
        student, teacher = upcast(student_feature.flatten(1), teacher_feature.detach().flatten(1))
        batch = gather_batch(student, teacher, mask, scope=scope)
        features = (batch.student, batch.teacher)
        students, teachers = map(unit_rows, features) if normalize else features

        def row_sums(s: Tensor, t: Tensor, _: Tensor, *everyone: Tensor) -> Tensor:
            all_s, all_t, kept = everyone
            return ((phi(s, all_s) - phi(t, all_t)) * kept).square().sum(dim=1)

        total = by_rows(row_sums, (students, teachers, batch.kept), batch.own)
        per_sample = total / batch_size(student, mask, scope=scope)
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


@final
class CCKDLoss(Loss):
    """Correlations of samples under a kernel; see :func:`cckd_loss`.

    Warns where the expansion is so short for γ that less alike samples may get a larger φ.
    """

    name = "cckd"
    paper = Paper(
        title="Correlation Congruence for Knowledge Distillation",
        authors="Baoyun Peng, Xiao Jin, Jiaheng Liu, Shunfeng Zhou, Yichao Wu, et al.",
        venue="ICCV",
        year=2019,
        url="https://arxiv.org/abs/1904.01802",
    )
    equation = "L = Σᵢⱼ ( φ(fˢᵢ,fˢⱼ) − φ(fᵗᵢ,fᵗⱼ) )² / B²,  φ(x,y) ≈ exp(−γ‖x−y‖²)"
    family = "relation"
    batch_coupled = True
    sources: ClassVar = {
        "kernel": "paper: the Gaussian kernel, expanded",
        "gamma": "KD-Zoo's and torchdistill's settings: 0.4",
        "order": "KD-Zoo's and torchdistill's settings: 2",
        "normalize": "KD-Zoo; the paper's expansion assumes it",
        "reduction": "paper: 1/B²",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self, kernel: Kernel = "rbf", gamma: float = 0.4, order: int = 2, *,
        normalize: bool = True, reduction: Reduction = "mean", scope: Scope = "global",
    ) -> None:  # fmt: skip
        super().__init__()
        check_kernel(kernel, gamma, order)
        check_reduction(reduction, scope)
        if kernel == "rbf":
            warn_if_not_monotone(gamma, order)
        self.kernel, self.gamma, self.order = kernel, gamma, order
        self.normalize, self.reduction, self.scope = normalize, reduction, scope

    def forward(
        self,
        student_feature: Float[Tensor, "batch *student_axes"],
        teacher_feature: Float[Tensor, "batch *teacher_axes"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`cckd_loss` with the stored hyper-parameters."""
        return cckd_loss(student_feature, teacher_feature, mask=mask, **self.options)
