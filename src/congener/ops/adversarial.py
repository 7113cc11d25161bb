"""Adversarial images for IKD: the teacher is shown images on which it does worse.

DI²-FGSM (Xie et al., CVPR 2019) with momentum, as the code of IKD (Liang et al., ACM MM 2023;
JWLiang007/IKD, 54838085) has it. From x₀ = x, for each step k

    g = ∇ loss(D(xₖ)),   m ← g / ‖g‖₁ + decay · m
    xₖ₊₁ = clip(x + clip(xₖ + α sign m − x, −ε, ε), lowest and highest value of each channel of x)

ε and α are shares of the image's own range: its channels' largest (highest − lowest value), so that
images may be normalised in any way. D shrinks an image with the probability ``diversity`` and puts
it anywhere on a canvas of the old size that is 0 elsewhere; what ``loss`` compares it with, the
boxes, stays where it was, which is the authors' way.

Only the sign of an image's own direction counts, so a factor that the images share cancels: an
image is attacked alike in any batch. All draws are a function of (seed, sample id, step).

Differences from the authors' code
    An image that is not square keeps its shape when shrunk (``square=True`` for theirs). A gradient
    that is 0 leaves the image as it is; theirs makes it NaN. Images are not written as JPEG.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from congener.errors import NonFiniteLossError, ShapeError
from congener.ops.checks import check_floating
from congener.ops.keyed_random import keyed_uniform
from congener.ops.vocabulary import check_share

__all__ = ["Attack", "attacked"]

OWN = 0x1CD  # added to the seed: other draws than those of an augmentation with the same seed


@dataclass(frozen=True, slots=True)
class Attack:
    """How adversarial images are made.

    Args:
        epsilon: ε, the furthest that a value may move, in 1/255 of the image's range.
        step_size: α, how far it moves in a step, likewise.
        steps: how many; 0 leaves the images as they are.
        decay: how much of the direction of earlier steps is kept; 0: none of it.
        diversity: probability of shrinking an image in a step.
        resize: the smallest width it is shrunk to, as a share of the old one; 1: never shrunk.
        square: shrink to a square and pad to a square, whatever the image's shape: the authors'
            code, which takes one image at a time.

    Raises:
        ValueError: a negative number, a share beyond 1, ``steps`` that is no whole number.
    """

    epsilon: float = 8
    step_size: float = 2
    steps: int = 5
    decay: float = 1.0
    diversity: float = 0.5
    resize: float = 0.9
    square: bool = False

    sources: ClassVar = {
        **dict.fromkeys(
            ("epsilon", "step_size", "steps", "decay", "diversity", "resize"),
            "authors' code: README",
        ),
        "square": "ours: off; only square images are shrunk like the authors'",
    }

    def __post_init__(self) -> None:
        for name in ("epsilon", "step_size", "steps", "decay"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be finite and not negative, not {value}.")
        if int(self.steps) != self.steps:
            raise ValueError(f"steps must be a whole number, not {self.steps}.")
        check_share("diversity", self.diversity)
        if not 0 < self.resize <= 1:
            raise ValueError(f"resize must be above 0 and at most 1, not {self.resize}.")


def attacked(
    images: Float[Tensor, "batch channels height width"],
    loss: Callable[[Tensor], Tensor],
    index: Int[Tensor, " batch"],
    *,
    seed: int,
    settings: Attack,
) -> Float[Tensor, "batch channels height width"]:
    """Images near the given ones on which ``loss`` is larger.

    Args:
        images: (batch, channels, height, width), normalised in any way.
        loss: of images of that shape, a scalar: a sum or mean over images, such as the teacher's
            classification loss, with gradients to the images. Its network must not look at the
            batch (no live BatchNorm) where images are to be attacked alike in any batch.
        index: sample ids, (batch,).
        seed: of the draws.
        settings: how.

    Returns:
        New images, detached; no gradient is left in what ``loss`` uses.

    Raises:
        ShapeError: images, ids or the loss of another shape; several images with ``square``.
        ValueError: integer images, or a loss without gradients.
        NonFiniteLossError: a gradient that is not finite.

    >>> x = torch.tensor([[[[0.0, 1.0, 0.4]]]])
    >>> once = Attack(epsilon=25.5, step_size=25.5, steps=1)
    >>> attacked(x, lambda seen: seen.sum(), torch.tensor([0]), seed=0, settings=once)
    tensor([[[[0.1000, 1.0000, 0.5000]]]])
    """
    _check(images, index, settings)
    images = images.detach()
    lowest, highest = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    unit = (highest - lowest).amax(1, keepdim=True) / 255
    furthest = settings.epsilon * unit

    moved, momentum = images.clone(), torch.zeros_like(images)
    for step in range(int(settings.steps)):
        draws = keyed_uniform(index, seed=seed + OWN, epoch=step, count=4)
        direction = _direction(moved, loss, draws, settings)
        momentum = direction + settings.decay * momentum
        change = moved + settings.step_size * unit * momentum.sign() - images
        moved = images + torch.minimum(torch.maximum(change, -furthest), furthest)
        moved = torch.minimum(torch.maximum(moved, lowest), highest)
    return moved


def _check(images: Tensor, index: Tensor, settings: Attack) -> None:
    if images.dim() != 4 or index.shape != images.shape[:1]:
        raise ShapeError(
            f"images {tuple(images.shape)} must be (batch, channels, height, width) and index "
            f"{tuple(index.shape)} (batch,); give one sample id for each image."
        )
    check_floating(images=images)
    count, _, height, width = images.shape
    if settings.square and height != width and count > 1:
        raise ShapeError(
            f"images {tuple(images.shape)} become squares with square=True, each in its own step, "
            "and do not fit into one batch; attack one at a time, or set square to False."
        )


def _direction(
    images: Tensor, loss: Callable[[Tensor], Tensor], draws: Tensor, settings: Attack
) -> Tensor:
    """The gradient of the loss, of each image divided by its sum of absolute values."""
    with torch.enable_grad():
        images = images.requires_grad_()
        value = loss(_diversified(images, draws.tolist(), settings))
        if value.dim() or not value.requires_grad:
            raise ValueError(
                "loss(images) must be a scalar with gradients to the images, not "
                f"{tuple(value.shape)}, requires_grad={value.requires_grad}; run the teacher with "
                "gradients enabled and take the sum or mean over images."
            )
        (gradient,) = torch.autograd.grad(value, images, materialize_grads=True)
    images.requires_grad_(False)
    length = gradient.abs().sum((1, 2, 3), keepdim=True)
    if not length.isfinite().all():
        raise NonFiniteLossError(
            "The gradient of the attacked loss is not finite; look at the teacher on these images, "
            "or attack in float32."
        )
    return gradient / torch.where(length > 0, length, 1)


def _diversified(images: Tensor, draws: list[list[float]], settings: Attack) -> Tensor:
    """Some images shrunk on a canvas of the old size."""
    width = images.shape[-1]
    smallest = int(width * settings.resize)
    if smallest == width or all(coin >= settings.diversity for coin, *_ in draws):
        return images
    seen = []
    for image, (coin, *place) in zip(images, draws, strict=True):
        shrinks = coin < settings.diversity
        seen.append(_shrunk(image, place, max(smallest, 1), settings) if shrinks else image)
    return torch.stack(seen)


def _shrunk(image: Tensor, place: list[float], smallest: int, settings: Attack) -> Tensor:
    """The image in a whole number of pixels in [smallest, width), anywhere on zeros."""
    height, width = image.shape[-2:]
    if settings.square:
        height = width
    across = smallest + int(place[0] * (width - smallest))
    down = max((height * across + width // 2) // width, 1)  # half up: of a square, ``across``
    small = F.interpolate(image[None], size=(down, across), mode="bilinear", align_corners=False)
    top, left = int(place[1] * (height - down)), int(place[2] * (width - across))
    return F.pad(small[0], (left, width - across - left, top, height - down - top))
