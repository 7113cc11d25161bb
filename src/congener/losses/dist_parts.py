"""The two relations of DIST (Huang et al., NeurIPS 2022) alone: :func:`congener.losses.dist_loss`.

Both are free of τ². For dense logits the samples are pixels.
"""

from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.dist import dist_loss
from congener.ops.collectives import Scope
from congener.ops.reduction import Reduction

__all__ = ["dist_inter_loss", "dist_intra_loss"]


def dist_inter_loss(
    student_logits: Float[Tensor, "batch classes *pixels"],
    teacher_logits: Float[Tensor, "batch classes *pixels"],
    *,
    temperature: float = 1.0,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Inter-class relation: 1 − mean over samples of the correlation over classes."""
    return dist_loss(
        student_logits,
        teacher_logits,
        gamma=0.0,
        temperature=temperature,
        variant="paper",
        mask=mask,
        reduction=reduction,
        scope=scope,
    )


def dist_intra_loss(
    student_logits: Float[Tensor, "batch classes *pixels"],
    teacher_logits: Float[Tensor, "batch classes *pixels"],
    *,
    temperature: float = 1.0,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Intra-class relation: 1 − mean over classes of the correlation over samples."""
    return dist_loss(
        student_logits,
        teacher_logits,
        beta=0.0,
        temperature=temperature,
        variant="paper",
        mask=mask,
        reduction=reduction,
        scope=scope,
    )
