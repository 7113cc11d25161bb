"""Maps of one size, and features laid out as maps, positions or rows."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

__all__ = ["as_map", "match_sizes", "pixels_as_rows", "pooled", "positions"]


def match_sizes(
    first: Tensor, second: Tensor, *, pool: Literal["average", "max"] = "average"
) -> tuple[Tensor, Tensor]:
    """Pool the larger of two maps (batch, channels, height, width) to the smaller, axis by axis."""
    height = min(first.shape[2], second.shape[2])
    width = min(first.shape[3], second.shape[3])
    pooled = F.adaptive_avg_pool2d if pool == "average" else F.adaptive_max_pool2d
    small, same = (
        x if x.shape[2:] == (height, width) else pooled(x, (height, width)) for x in (first, second)
    )
    return small, same


def pixels_as_rows(logits: Tensor) -> Tensor:
    """Lay out (batch, classes, height, width) as (batch · height · width, classes).

    The rows of one image follow each other; (batch, classes) comes back as it is.
    """
    return logits if logits.dim() == 2 else logits.movedim(1, -1).flatten(0, -2)


def as_map(feature: Tensor) -> Tensor:
    """A pooled feature (batch, channels) as a map of one position; a map as it is."""
    return feature[:, :, None, None] if feature.dim() == 2 else feature


def positions(feature: Tensor) -> Tensor:
    """A feature (batch, channels, ...) as (batch, channels, positions)."""
    return feature.unsqueeze(2) if feature.dim() == 2 else feature.flatten(2)


def pooled(feature: Tensor) -> Tensor:
    """The mean of a map (batch, channels, ...) over its positions; (batch, channels) as it is."""
    return feature if feature.dim() == 2 else feature.flatten(2).mean(dim=2)
