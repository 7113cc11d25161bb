r"""Neuron selectivity transfer, NST (Huang and Wang, 2017).

What a neuron likes is the pattern of places at which its channel answers. The student's channels
are asked for the teacher's patterns: for a squared maximum mean discrepancy of 0, kernel (xᵀy)².

.. math::
    L = \frac{1}{B} \sum_{i=1}^{B} \Big[ \frac{1}{C_s^2} \sum_{c,d} k(x_c, x_d)
      + \frac{1}{C_t^2} \sum_{c,d} k(y_c, y_d) - \frac{2}{C_s C_t} \sum_{c,d} k(x_c, y_d) \Big],
    \qquad k(x, y) = (x^\top y)^2

=============  =====================  =====================================
symbol         argument               default
=============  =====================  =====================================
:math:`x`      ``student_feature``    channels of a map, of norm 1 each
:math:`y`      ``teacher_feature``    likewise; of any number
=============  =====================  =====================================

Conventions
    One pair of maps; several stages are several pairs, summed. Of maps of two sizes the larger is
    average-pooled to the smaller, axis by axis. A silent channel is a pattern of zeros. Channels
    that answer alike, in any order, give 0. The task loss is not included; the weight is 50.

Differences from the authors' code
    RepDistiller and mdistiller give the same value. The authors' MXNet code drops the teacher's
    own term, a constant. Here no product of all pairs of channels and places is ever built: few
    places are compared as places, with no round-off at the match, many through channel products.
"""

from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.ops.checks import check_maps
from congener.ops.collectives import Scope
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.ops.spatial import match_sizes
from congener.types import Paper

__all__ = ["NSTLoss", "nst_loss"]


def nst_loss(
    student_feature: Float[Tensor, "batch student_channels student_height student_width"],
    teacher_feature: Float[Tensor, "batch teacher_channels teacher_height teacher_width"],
    *,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Squared discrepancy of the channels' patterns under the kernel (x·y)².

    Args:
        student_feature: (batch, channels, height, width).
        teacher_feature: likewise, of any channels and size; no gradient flows into it.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the features are no maps of one batch, or the mask does not fit.
        ValueError: integer features, an unknown reduction or scope.

    >>> student, teacher = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[1.0, 0.0]]]])
    >>> round(nst_loss(student, teacher).item(), 4)  # 1 + 1 - 2 · 0.6²
    1.28
    """
    check_maps(student_feature, teacher_feature, mask)
    check_reduction(reduction, scope)
    with torch.autocast(student_feature.device.type, enabled=False):
        student, teacher = upcast(student_feature, teacher_feature.detach())
        student, teacher = match_sizes(blank_rows(student, mask), blank_rows(teacher, mask))
        per_sample = _discrepancy(student.flatten(2), teacher.flatten(2))
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


def _discrepancy(x: Tensor, y: Tensor) -> Tensor:
    """Of maps (batch, channels, places), in the form that takes fewer products."""
    mine, theirs, places = x.shape[1], y.shape[1], x.shape[2]
    if places * (mine + theirs) <= mine**2 + theirs**2 + mine * theirs:
        # (x·y)² = ⟨xxᵀ, yyᵀ⟩: the discrepancy is the distance of the mean xxᵀ and the mean yyᵀ.
        x, y = (a * a.norm(dim=2, keepdim=True).clamp(min=1e-12).reciprocal() for a in (x, y))
        return torch.sub(_Gram.apply(x.mT) / mine, _Gram.apply(y.mT) / theirs).square().sum((1, 2))
    own, other, cross = _Gram.apply(x), _Gram.apply(y), x @ y.mT
    r, s = (g.diagonal(dim1=1, dim2=2).clamp(min=1e-24).rsqrt() for g in (own, other))
    return _mean_square(own, r, r) + _mean_square(other, s, s) - 2 * _mean_square(cross, r, s)


def _mean_square(products: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Of cosines: products times 1 / norm; a norm too large for the type makes a silent channel."""
    scales = rows.unsqueeze(2) * columns.unsqueeze(1)
    return (products.masked_fill(scales == 0, 0) * scales).square().mean(dim=(1, 2))


class _Gram(torch.autograd.Function):
    """x xᵀ, whose gradient is one product, where autograd takes two."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x @ x.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], _output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.matmul(grad + grad.mT, *ctx.saved_tensors)


@final
class NSTLoss(Loss):
    """Which patterns the channels answer to; see :func:`nst_loss`."""

    name = "nst"
    paper = Paper(
        title="Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
        authors="Zehao Huang, Naiyan Wang",
        venue="arXiv",
        year=2017,
        url="https://arxiv.org/abs/1707.01219",
    )
    equation = "L = mean k(x,x′) + mean k(y,y′) − 2·mean k(x,y),  k(x,y) = (xᵀy)², ‖x‖ = ‖y‖ = 1"
    family = "feature"
    sources: ClassVar = {
        "reduction": "RepDistiller, mdistiller: mean over samples",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(self, *, reduction: Reduction = "mean", scope: Scope = "global") -> None:
        super().__init__()
        check_reduction(reduction, scope)
        self.reduction, self.scope = reduction, scope

    def forward(
        self,
        student_feature: Float[Tensor, "batch student_channels student_height student_width"],
        teacher_feature: Float[Tensor, "batch teacher_channels teacher_height teacher_width"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`nst_loss` with the stored hyper-parameters."""
        return nst_loss(student_feature, teacher_feature, mask=mask, **self.options)
