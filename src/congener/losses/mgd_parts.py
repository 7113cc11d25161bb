"""Which places of a map MGD leaves visible."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from congener.errors import ShapeError
from congener.ops.keyed_random import keyed_uniform

__all__ = ["mgd_visible"]


def mgd_visible(
    index: Int[Tensor, " batch"],
    size: Sequence[int],
    *,
    mask_ratio: float = 0.65,
    seed: int = 0,
    step: int = 0,
) -> Bool[Tensor, "batch height width"]:
    """Hide each place of each sample's map with a probability, by its id and the step alone.

    Args:
        index: (batch,), the stable ids of the samples.
        size: (height, width) of the map.
        mask_ratio: λ, the probability that a place is hidden: in the authors' code 0.65 for
            one-stage detectors, 0.45 for two-stage ones.
        seed: another seed, other places; give each level of a pyramid its own.
        step: another step, other places.

    Returns:
        (batch, height, width), True where the student's map is kept, on the device of ``index``.

    Raises:
        ShapeError: the index is not (batch,).
        ValueError: a ratio outside [0, 1], or an index that is not of integers.

    >>> visible = mgd_visible(torch.arange(8), (10, 10), mask_ratio=0.65)
    >>> round(1 - visible.float().mean().item(), 2)
    0.65
    """
    if not 0 <= mask_ratio <= 1:
        raise ValueError(f"mask_ratio must lie in [0, 1], not {mask_ratio}.")
    if index.dim() != 1:
        raise ShapeError(f"index {tuple(index.shape)} must be (batch,); give one id a sample.")
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise ValueError(f"index must be integers, not {index.dtype}; give the samples' ids.")
    height, width = size
    uniform = keyed_uniform(index, seed=seed, epoch=step, count=height * width)
    return uniform.reshape(-1, height, width) >= mask_ratio
