"""Augmentation of a whole batch on its device, driven by (seed, epoch, sample id) alone."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from congener.errors import DataError
from congener.ops.keyed_random import keyed_uniform

__all__ = ["crop_flip", "jitter", "none", "rand_augment", "shift"]

GREY = {1: (122,), 3: (125, 123, 114)}
"""What a hole of :func:`rand_augment` shows; of one channel: ours."""


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


def rand_augment(
    images: Tensor,
    ids: Tensor,
    *,
    seed: int,
    epoch: int,
    pad: int = 4,
    flip: float = 0.5,
    operations: int = 2,
    cutout: float = 0.5,
) -> Tensor:
    """Crop and flip, then random operations of random strength, then a grey square.

    The strong view of MLLD's and CSKD's trainers: RandAugment as in FixMatch (Sohn et al., NeurIPS
    2020), where every strength is uniform in its range. Ours: strengths are rounded as torchvision
    does, not PIL, and the square's side is relative to the image's width.

    Args:
        images: (batch, channels, height, width), uint8, 1 or 3 channels.
        ids: sample ids, (batch,).
        seed: of the run.
        epoch: all is drawn anew in each.
        pad: as of :func:`crop_flip`.
        flip: likewise.
        operations: how many, drawn with replacement.
        cutout: the square's side is uniform up to this share of the width; it lies anywhere, and
            may reach beyond the border.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in GREY:
        raise DataError(
            "rand_augment works on uint8 images (batch, 1 or 3 channels, height, width), but a "
            f"batch here is {images.dtype} of the shape {tuple(images.shape)}; use another "
            "augmentation for this data, such as 'jitter' for signals."
        )
    draws = keyed_uniform(ids, seed=seed, epoch=epoch, count=6 + 2 * operations)
    images = _crop(images, draws[:, :2], pad, "zeros", mirrored=draws[:, 2] < flip)
    changed = [
        _operate(image, row) for image, row in zip(images, draws[:, 6:].tolist(), strict=True)
    ]
    return _cut_out(torch.stack(changed), draws[:, 3:6], cutout)


def _shear(image: Tensor, x: float = 0.0, y: float = 0.0) -> Tensor:
    degrees = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
    moved: Tensor = V.affine(image, 0.0, [0, 0], 1.0, degrees, center=[0.0, 0.0])
    return moved


def _translate(image: Tensor, x: float = 0.0, y: float = 0.0) -> Tensor:
    height, width = image.shape[-2:]
    moved: Tensor = V.affine(image, 0.0, [round(x * width), round(y * height)], 1.0, [0.0, 0.0])
    return moved


_OPERATIONS: tuple[tuple[float, float, Callable[[Tensor, float], Tensor]], ...] = (
    (0, 1, lambda image, _: V.autocontrast(image)),
    (0.05, 0.95, V.adjust_brightness),
    (0.05, 0.95, V.adjust_saturation),
    (0.05, 0.95, V.adjust_contrast),
    (0, 1, lambda image, _: V.equalize(image)),
    (0, 1, lambda image, _: image),
    (4, 8, lambda image, bits: V.posterize(image, int(bits))),
    (-30, 30, V.rotate),
    (0.05, 0.95, V.adjust_sharpness),
    (-0.3, 0.3, lambda image, share: _shear(image, x=share)),
    (-0.3, 0.3, lambda image, share: _shear(image, y=share)),
    (0, 256, lambda image, threshold: torch.where(image < threshold, image, 255 - image)),
    (-0.3, 0.3, lambda image, share: _translate(image, x=share)),
    (-0.3, 0.3, lambda image, share: _translate(image, y=share)),
)
"""Lowest and highest strength of an operation on one image, and what it does: those of CSKD."""


def _operate(image: Tensor, draws: list[float]) -> Tensor:
    """Operations in turn; two numbers choose each, and its strength."""
    for which, strength in zip(draws[::2], draws[1::2], strict=True):
        low, high, operation = _OPERATIONS[int(which * len(_OPERATIONS))]
        image = operation(image, low + (high - low) * strength)
    return image


def _cut_out(images: Tensor, draws: Tensor, largest: float) -> Tensor:
    """A grey square on each image; ``draws`` place its centre and size it."""
    inside = []
    width = images.shape[-1]
    for axis, length in enumerate(images.shape[-2:]):
        pixels = torch.arange(length, device=images.device) + 0.5
        distance = (pixels - draws[:, axis, None] * length).abs()
        inside.append(distance < draws[:, 2, None] * largest * width / 2)
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    grey = torch.tensor(GREY[images.shape[1]], dtype=images.dtype, device=images.device)
    return torch.where(hole, grey[:, None, None], images)


def jitter(
    images: Tensor,
    ids: Tensor,
    *,
    seed: int,
    epoch: int,
    noise: float = 0.1,
    scale: float = 0.2,
) -> Tensor:
    """Scale each sample, then add Gaussian noise: for signals, which cannot be cropped.

    Args:
        images: (batch, ...), floats.
        ids: sample ids, (batch,).
        seed: of the run.
        epoch: all is drawn anew in each.
        noise: its standard deviation, in the units of the data; ours.
        scale: the factor is uniform in 1 ± this; ours.
    """
    if not images.is_floating_point():
        raise DataError(
            f"jitter works on floats, but a batch here is {images.dtype}; use 'crop_flip' or "
            "'rand_augment' for images."
        )
    draws = keyed_uniform(ids, seed=seed, epoch=epoch, count=1 + images[0].numel())
    factor = 1 + scale * (2 * draws[:, :1] - 1)
    normal = torch.special.ndtri(draws[:, 1:].clamp(min=2.0**-24))
    changed: Tensor = images.flatten(1) * factor + noise * normal
    return changed.view_as(images).to(images.dtype)


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
    # One gather of pixels: indexing by four tensors takes ten times as long.
    pixels = (rows[:, :, None] * padded.shape[-1] + columns[:, None, :]).flatten(1)[:, None]
    chosen = padded.flatten(2).gather(2, pixels.expand(-1, images.shape[1], -1))
    return chosen.view_as(images)
