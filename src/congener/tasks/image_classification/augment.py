"""Augmentation of a whole batch on its device, driven by (seed, epoch, sample id) alone."""

import torch
import torch.nn.functional as F
from torch import Tensor

from congener.errors import DataError
from congener.ops.keyed_random import keyed_uniform

__all__ = ["crop_flip", "none", "shift"]


def none(images: Tensor, ids: Tensor, *, seed: int, epoch: int) -> Tensor:  # noqa: ARG001
    """The images as they are."""
    return images


def shift(images: Tensor, ids: Tensor, *, seed: int, epoch: int, pad: int = 2) -> Tensor:
    """Move each image by up to ``pad`` pixels along each axis; what comes in is zero.

    Args:
        images: (batch, channels, height, width), any type.
        ids: sample ids, (batch,).
        seed: of the run.
        epoch: the images move anew in each.
        pad: largest displacement.
    """
    return _crop(images, keyed_uniform(ids, seed=seed, epoch=epoch, count=2), pad, "zeros")


def crop_flip(
    images: Tensor,
    ids: Tensor,
    *,
    seed: int,
    epoch: int,
    pad: int = 4,
    mode: str = "zeros",
    flip: float = 0.5,
) -> Tensor:
    """Pad, cut out a random window of the old size, mirror left and right: CIFAR's protocol.

    Args:
        images: (batch, channels, height, width), any type.
        ids: sample ids, (batch,).
        seed: of the run.
        epoch: the window is drawn anew in each.
        pad: width of the border on each side.
        mode: what the border holds, ``"zeros"`` or ``"reflect"``.
        flip: probability of mirroring.
    """
    draws = keyed_uniform(ids, seed=seed, epoch=epoch, count=3)
    return _crop(images, draws[:, :2], pad, mode, mirrored=draws[:, 2] < flip)


def _crop(
    images: Tensor, draws: Tensor, pad: int, mode: str, mirrored: Tensor | None = None
) -> Tensor:
    if images.ndim != 4:
        raise DataError(
            f"Augmentation moves images (batch, channels, height, width), but a batch here has the "
            f"shape {tuple(images.shape)}; use augment='none' for this data."
        )
    height, width = images.shape[-2:]
    if mode == "reflect":
        padded = F.pad(images.float(), [pad] * 4, mode="reflect").to(images.dtype)
    elif mode == "zeros":
        padded = F.pad(images, [pad] * 4)
    else:
        raise DataError(f"mode={mode!r} of crop_flip is unknown; use 'zeros' or 'reflect'.")
    offsets = (draws * (2 * pad + 1)).long()
    columns = torch.arange(width, device=images.device).expand(len(images), width)
    if mirrored is not None:
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    columns = offsets[:, 1, None] + columns
    rows = offsets[:, 0, None] + torch.arange(height, device=images.device)
    sample = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[:, None, None]
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]
