r"""What the head of SSKD's teacher is trained with (Xu, Liu, Li and Loy, ECCV 2020).

Before the student is trained, the teacher's head learns to match transformed copies with images.

.. math::
    L = -\frac{1}{M} \sum_{m=1}^{M} \log \sigma(A_m / \tau)_{i(m)}, \qquad
    A_{mj} = \cos(r_m, r_j)

m runs over the M transformed copies, j over the untransformed samples, i(m) is the copy's own.

============  ===============  ==========================================
symbol        argument         default
============  ===============  ==========================================
:math:`r`     ``feature``      outputs of the head, of all views
:math:`\tau`  ``temperature``  1, authors' code
============  ===============  ==========================================

Conventions
    Rows as in :func:`congener.losses.sskd_loss`. Between about ln(1 + (B − 1)/e) and ln B at τ = 1.

Differences from the authors' code
    None (xuguodong03/SSKD, 661b972). The paper writes a temperature, the code has none.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.sskd_selection import check_views, kept_mean, match
from congener.ops.checks import check_temperature
from congener.ops.collectives import Scope, warn_if_alone
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, check_reduction

__all__ = ["sskd_head_loss"]


def sskd_head_loss(
    feature: Float[Tensor, "rows channels"],
    *,
    views: int = 4,
    temperature: float = 1.0,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """L_head: what a network's head is trained with; ``feature``, its outputs, gets the gradient.

    The other arguments, results and errors are those of :func:`congener.losses.sskd_loss`.
    """
    check_views(feature, "feature", views, mask)
    check_temperature(temperature)
    check_reduction(reduction, scope)
    warn_if_alone(feature[::views], "sskd_head", scope=scope)
    with torch.autocast(feature.device.type, enabled=False):
        (wide,) = upcast(feature)
        scores, targets = match(wide, views, mask, scope)
        per_copy = F.cross_entropy(scores / temperature, targets, reduction="none")
        kept = torch.ones_like(targets, dtype=torch.bool)
        if mask is not None:
            kept = mask.repeat_interleave(views - 1)
        return kept_mean(per_copy, kept, mask, views, reduction=reduction, scope=scope)
