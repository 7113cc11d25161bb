"""Augmentation of a batch of scenes, driven by (seed, epoch, sample id) alone.

Each function may change pixels, and draws how the scenes are to move: the geometry that
:func:`~congener.tasks.detection.geometry.moved_images` and
:func:`~congener.tasks.detection.geometry.moved_boxes` apply to images, boxes and whatever belongs
to the same scene. With one seed all functions mirror the same images and cut the same windows.
"""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from congener.errors import DataError
from congener.ops.keyed_random import keyed_uniform
from congener.tasks.detection.geometry import still

__all__ = ["crop_flip", "flip", "none", "sample_specific"]

Images = UInt8[Tensor, "batch channels height width"]
Boxes = Float[Tensor, "batch objects 4"]
Labels = Int[Tensor, "batch objects"]
Moved = tuple[Images, Float[Tensor, "batch 5"]]

MIRROR, SIZE, PLACE, NOISE, COLOUR, PIXELS = 0, 1, 3, 5, 6, 8  # first columns of what is drawn
NOT_ANNOTATED = -100


def none(
    images: Images,
    boxes: Boxes,  # noqa: ARG001
    labels: Labels,  # noqa: ARG001
    ids: Int[Tensor, " batch"],  # noqa: ARG001
    *,
    seed: int,  # noqa: ARG001
    epoch: int,  # noqa: ARG001
) -> Moved:
    """The scenes as they are."""
    return images, _still(images)


def flip(
    images: Images,
    boxes: Boxes,  # noqa: ARG001
    labels: Labels,  # noqa: ARG001
    ids: Int[Tensor, " batch"],
    *,
    seed: int,
    epoch: int,
    flip: float = 0.5,
) -> Moved:
    """Mirror scenes left and right.

    Args:
        images: (batch, channels, height, width), bytes.
        boxes: (batch, objects, 4).
        labels: (batch, objects).
        ids: sample ids, (batch,).
        seed: of the run.
        epoch: drawn anew in each.
        flip: chance of mirroring.
    """
    _check(flip=flip)
    return images, _mirrored(images, _drawn(ids, seed, epoch), flip)


def crop_flip(
    images: Images,
    boxes: Boxes,  # noqa: ARG001
    labels: Labels,  # noqa: ARG001
    ids: Int[Tensor, " batch"],
    *,
    seed: int,
    epoch: int,
    scale: float = 0.6,
    flip: float = 0.5,
    jitter: float = 0.0,
) -> Moved:
    """Cut out a random window, mirror left and right, and perhaps change the colours.

    For a student that learns from few labelled scenes alone.

    Args:
        images: (batch, channels, height, width), bytes; 1 or 3 channels for ``jitter``.
        boxes: (batch, objects, 4).
        labels: (batch, objects).
        ids: sample ids, (batch,).
        seed: of the run.
        epoch: all is drawn anew in each.
        scale: the window's height and width are uniform in [scale, 1] of the image's; ours.
        flip: chance of mirroring.
        jitter: brightness and contrast are multiplied by factors uniform in 1 ± this; ours.
    """
    _check(scale=scale, flip=flip, jitter=jitter)
    draws = _drawn(ids, seed, epoch)
    everyone = torch.ones_like(ids, dtype=torch.bool)
    geometry = _cut(_mirrored(images, draws, flip), draws, scale, everyone)
    return _coloured(images, draws, jitter), geometry


def sample_specific(
    images: Images,
    boxes: Boxes,
    labels: Labels,
    ids: Int[Tensor, " batch"],
    *,
    seed: int,
    epoch: int,
    small: float = 32,
    noise: float = 0.3,
    sigma: float = 0.08,
    scale: float = 0.8,
    flip: float = 0.5,
    jitter: float = 0.0,
    until: int | None = None,
) -> Moved:
    """IKD's augmentation: scenes of small objects get noise, scenes with a larger one are cropped.

    Liang et al., ACM MM 2023, as in the authors' code (JWLiang007/IKD, 54838085). An object is
    small if its box, in the given images, has an area below ``small``². A scene without an object
    counts as one of small objects, as in their code; regions of crowds are no objects there, so
    give them the label -1. Ours: a scene that is not annotated counts as one with a larger object;
    a window is resized to the full size, where theirs is padded; a scene whose objects all leave
    with the crop stays, where theirs is replaced by another; the noise, too, takes the area of the
    box as it is, where theirs cuts its corners down to whole pixels.

    Args:
        images: (batch, channels, height, width), bytes; 1 or 3 channels for ``jitter``.
        boxes: (batch, objects, 4), in pixels of the given images.
        labels: (batch, objects); -1: no object, -100: not annotated.
        ids: sample ids, (batch,).
        seed: of the run.
        epoch: all is drawn anew in each.
        small: side of the square below whose area an object is small; authors' code: 32.
        noise: chance of noise on a scene of small objects; authors' code: 0.3.
        sigma: standard deviation of the noise, of pixels in [0, 1]; ours: 0.08, the gentlest of
            the common corruptions.
        scale: a window's height and width are uniform in [scale, 1] of the image's; authors' code.
        flip: chance of mirroring; authors' code: 0.5.
        jitter: as of :func:`crop_flip`; authors' code: none.
        until: the first epoch, from 0, without noise and crops; ``None``: none is without. The
            authors' code: 16 of 24. Where a run keeps a teacher's answers to a few views, epochs
            are counted anew with each round of them.
    """
    _check(noise=noise, scale=scale, flip=flip, jitter=jitter)
    if not (small >= 0 and sigma >= 0):
        raise DataError(f"small={small} and sigma={sigma} must not be negative.")
    draws = _drawn(ids, seed, epoch)
    geometry = _mirrored(images, draws, flip)
    if until is None or epoch < until:
        only_small = _only_small(boxes, labels, small)
        noisy = only_small & (draws[:, NOISE] < noise)
        images = _noisy(images, ids, noisy, sigma, seed=seed, epoch=epoch)
        geometry = _cut(geometry, draws, scale, ~only_small)
    return _coloured(images, draws, jitter), geometry


def _only_small(boxes: Boxes, labels: Labels, small: float) -> Tensor:
    """Which scenes have small objects only, or none, and are annotated."""
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    larger = (labels >= 0) & (areas >= small**2)
    return ~(larger | (labels == NOT_ANNOTATED)).any(1)


def _check(**shares: float) -> None:
    for name, value in shares.items():
        if not 0 <= value <= 1 or (name == "scale" and value == 0):
            interval = "above 0 and at most 1" if name == "scale" else "from 0 to 1"
            raise DataError(f"{name}={value} must be {interval}.")


def _drawn(ids: Tensor, seed: int, epoch: int) -> Tensor:
    return keyed_uniform(ids, seed=seed, epoch=epoch, count=PIXELS)


def _still(images: Images) -> Tensor:
    return still(len(images), (images.shape[-2], images.shape[-1]), device=images.device)


def _mirrored(images: Images, draws: Tensor, chance: float) -> Tensor:
    """Geometry that mirrors by chance."""
    geometry = _still(images)
    geometry[:, 0] = draws[:, MIRROR] < chance
    return geometry


def _cut(geometry: Tensor, draws: Tensor, scale: float, chosen: Tensor) -> Tensor:
    """Geometry with a window for the chosen images, uniform in size and in place."""
    size = geometry[:, 3:]
    window = (size * (scale + (1 - scale) * draws[:, SIZE:PLACE]) + 0.5).floor().clamp(min=1)
    start = (draws[:, PLACE:NOISE] * (size - window + 1)).floor()
    cut = torch.cat((geometry[:, :1], start, window), 1)
    return torch.where(chosen[:, None], cut, geometry)


def _noisy(
    images: Images, ids: Tensor, chosen: Tensor, sigma: float, *, seed: int, epoch: int
) -> Images:
    """Gaussian noise on the chosen images, cut down to whole levels as in the authors' code."""
    if not chosen.any():
        return images
    count = PIXELS + images[0].numel()
    draws = keyed_uniform(ids[chosen], seed=seed, epoch=epoch, count=count)[:, PIXELS:]
    normal = torch.special.ndtri(draws.clamp(min=2.0**-24)).view_as(images[chosen])
    images = images.clone()
    images[chosen] = (images[chosen] + 255 * sigma * normal).clamp(0, 255).to(torch.uint8)
    return images


def _coloured(images: Images, draws: Tensor, jitter: float) -> Images:
    """Another brightness and contrast for each image."""
    if not jitter:
        return images
    factors = 1 + jitter * (2 * draws[:, COLOUR:PIXELS] - 1)
    changed = [
        V.adjust_contrast(V.adjust_brightness(image, brightness), contrast)
        for image, (brightness, contrast) in zip(images, factors.tolist(), strict=True)
    ]
    return torch.stack(changed)
