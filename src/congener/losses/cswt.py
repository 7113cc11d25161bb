r"""Cosine-similarity weighted temperature, CSWT (Ham, Kim, Lee, Lee and Kim, arXiv 2023).

Where student and teacher already agree on a sample, a low temperature keeps the detail of the
teacher's prediction; where they disagree, a high one hands over its broad shape.

.. math::
    T_i = T_{min} + (T_{max} - T_{min}) \, \frac{c_{max} - c_i}{c_{max} - c_{min}}, \qquad
    c_i = \cos\big(\sigma(z^s_i), \sigma(z^t_i)\big)

===============  ====================  ==========================================
symbol           argument              default
===============  ====================  ==========================================
:math:`z^s`      ``student_logits``
:math:`z^t`      ``teacher_logits``
:math:`T_{min}`  ``low_temperature``   2, authors' code
:math:`T_{max}`  ``high_temperature``  6, authors' code
===============  ====================  ==========================================

Conventions
    Cosines over classes at temperature 1, 1e-8 added to the product of the norms; extremes over the
    batch. The temperatures are constants: no gradient flows through them.

Differences from the authors' code
    Where all samples agree equally, or there is but one, it divides by zero; here they all get the
    low temperature.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from congener.ops.checks import check_logits, check_temperature_range
from congener.ops.collectives import Scope, check_scope, gather_rows
from congener.ops.divergence import soften
from congener.ops.similarity import cosine_shares

__all__ = ["cswt_temperatures"]

_SAME = 8  # a range of cosines narrower than this many units of round-off is none


@torch.no_grad()
def cswt_temperatures(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    *,
    low_temperature: float = 2.0,
    high_temperature: float = 6.0,
    mask: Bool[Tensor, " batch"] | None = None,
    scope: Scope = "global",
) -> Float[Tensor, " batch"]:
    """Give each sample a temperature by how well student and teacher agree on it.

    Args:
        student_logits: (batch, classes); no gradient flows into it.
        teacher_logits: (batch, classes); no gradient flows into it.
        low_temperature: of the sample they agree on best.
        high_temperature: of the sample they agree on least.
        mask: (batch,), which samples count; the others get some temperature in the range.
        scope: ``"global"``: extremes over the batch of all processes; ``"local"``: of this one.

    Returns:
        Temperatures, (batch,), at least float32.

    Raises:
        ShapeError: the logits differ in shape, or the mask does not fit.
        ValueError: integer logits, a temperature ≤ 0, low above high, an unknown scope.

    >>> student = torch.tensor([[4.0, 0.0], [4.0, 0.0]])
    >>> cswt_temperatures(student, torch.tensor([[4.0, 0.0], [0.0, 4.0]]))
    tensor([2., 6.])
    """
    check_logits(student_logits, teacher_logits, mask)
    check_temperature_range(low_temperature, high_temperature)
    check_scope(scope)
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher = soften(student_logits, mask=mask), soften(teacher_logits, mask=mask)
        cosines = cosine_shares(student, teacher, dim=1).sum(dim=1)
        lowest, highest = _extremes(cosines, mask, scope)
        spread, same = highest - lowest, _SAME * torch.finfo(cosines.dtype).eps
        disagreement = torch.where(spread > same, (highest - cosines) / spread, 0).clamp(0, 1)
        return low_temperature + (high_temperature - low_temperature) * disagreement


def _extremes(values: Tensor, mask: Tensor | None, scope: Scope) -> tuple[Tensor, Tensor]:
    kept = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    values, kept = gather_rows(values, scope=scope)[0], gather_rows(kept, scope=scope)[0]
    # One more entry that never wins lets an empty batch have extremes, too.
    lowest = F.pad(values.masked_fill(~kept, torch.inf), (0, 1), value=torch.inf).amin()
    highest = F.pad(values.masked_fill(~kept, -torch.inf), (0, 1), value=-torch.inf).amax()
    return lowest, highest
