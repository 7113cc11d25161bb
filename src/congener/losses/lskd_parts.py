r"""Logits standardised sample by sample (Sun, Ren, Li, Wang and Cao, CVPR 2024), for any loss.

.. math::
    \mathcal Z(z) = \frac{z - \bar z}{\mathrm{std}(z) + \epsilon}

LSKD is KD of such logits; DKD and the KL divergence of MLLD take them likewise. A positive factor
and a shift of a sample's logits change nothing, but for ε.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.errors import ShapeError
from congener.ops.checks import check_choice, check_floating, check_mask
from congener.ops.precision import upcast
from congener.ops.reduction import blank_rows

__all__ = ["Variant", "standardize_logits"]

Variant = Literal["authors", "paper"]


def standardize_logits(
    logits: Float[Tensor, "batch classes"],
    *,
    variant: Variant = "authors",
    mask: Bool[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch classes"]:
    """Give each sample's logits mean 0 and standard deviation 1, to put before any other loss.

    Args:
        logits: (batch, classes); the gradient flows through.
        variant: ``"authors"``: unbiased deviation + 1e-7; ``"paper"``: of the population.
        mask: (batch,), which samples count; the others become zeros, whatever they hold.

    Returns:
        (batch, classes), at least float32; zeros for a sample whose logits are all equal.

    Raises:
        ShapeError: the logits have other axes, or the mask does not fit.
        ValueError: integer logits, or an unknown variant.

    >>> standardize_logits(torch.tensor([[1.0, 3.0], [5.0, 5.0]]), variant="paper")
    tensor([[-1.,  1.],
            [ 0.,  0.]])
    """
    check_floating(logits=logits)
    check_choice("variant", variant, ("authors", "paper"))
    if logits.dim() != 2:
        raise ShapeError(f"logits {tuple(logits.shape)} must be (batch, classes); flatten them.")
    check_mask(mask, logits, "logits")
    with torch.autocast(logits.device.type, enabled=False):
        (wide,) = upcast(blank_rows(logits, mask))
        centred = wide - wide.mean(dim=1, keepdim=True)
        # A norm has gradient 0 at 0, where a square root has none.
        norm: Tensor = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
        if variant == "authors":
            return centred / (norm / math.sqrt(max(logits.shape[1] - 1, 1)) + 1e-7)
        return centred / torch.where(norm > 0, norm / math.sqrt(logits.shape[1]), 1)
