"""Augmentation of a whole batch on its device, driven by (seed, epoch, sample id) alone.

Beside these, each augmentation of :mod:`congener.tasks.image_classification.augment` that takes
images can be named.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from congener.ops.keyed_random import keyed_uniform

__all__ = ["redrawn"]

ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
"""In which three channels can be arranged."""


def redrawn(
    images: Tensor,
    ids: Tensor,
    *,
    seed: int,
    epoch: int,
    degrees: float = 15.0,
    scale: float = 0.2,
    shift: float = 0.1,
    colour: float = 0.3,
    grey: float = 0.2,
    permute: float = 0.2,
) -> Tensor:
    """As another hand might draw it: turned, scaled, moved, and in other colours.

    Args:
        images: (batch, 3, height, width), uint8; what comes in at a side repeats the border.
        ids: sample ids, (batch,).
        seed: of the run.
        epoch: all is drawn anew in each.
        degrees: largest turn, either way; ours, as all that follow.
        scale: the size is uniform in 1 ± this, of each side on its own.
        shift: largest move, as a share of the side.
        colour: each channel is multiplied by a factor uniform in 1 ± this.
        grey: probability that the colours go.
        permute: probability that the channels change places.
    """
    if not (0 <= scale < 1 and 0 <= grey <= 1 and 0 <= permute <= 1):
        raise ValueError(
            f"scale={scale}, grey={grey}, permute={permute}: expected a scale from 0 to below 1, "
            "and probabilities from 0 to 1"
        )
    draws = keyed_uniform(ids, seed=seed, epoch=epoch, count=11)
    turn, wide, high, right, down = (2 * draws[:, :5] - 1).unbind(1)
    angle = turn * math.radians(degrees)
    wide, high = 1 + scale * wide, 1 + scale * high
    rows = [
        torch.stack([angle.cos() / wide, -angle.sin() / wide, 2 * shift * right], dim=1),
        torch.stack([angle.sin() / high, angle.cos() / high, 2 * shift * down], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    moved = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    factors = 1 + colour * (2 * draws[:, 5:8] - 1)
    moved = moved * factors[:, :, None, None]
    mean = moved.mean(1, keepdim=True).expand_as(moved)
    moved = torch.where((draws[:, 8] < grey)[:, None, None, None], mean, moved)
    which = torch.where(draws[:, 9] < permute, draws[:, 10] * len(ORDERS), 0).long()
    order = torch.tensor(ORDERS, device=images.device)[which]
    moved = moved.gather(1, order[:, :, None, None].expand_as(moved))
    return moved.round().clamp(0, 255).to(torch.uint8)
