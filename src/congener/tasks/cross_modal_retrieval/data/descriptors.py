"""CIFAR-10 as two descriptors of an image, the toy of Masci et al. (TPAMI 2014)."""

import math
from pathlib import Path
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from congener.tasks.image_classification.data import cifar10 as images_of
from congener.tasks.image_classification.data.splits import ArrayDataset

from .splits import Division, Pairs, Splits, divide

__all__ = ["cifar10", "colour_histogram", "gradient_histogram"]

CHUNK = 500
CELLS, DIRECTIONS = 4, 8
QUARTERS, LEVELS = 2, 4


def cifar10(root: str | Path, **division: Unpack[Division]) -> Splits:
    """CIFAR-10: the shapes of an image in one modality, its colours in the other.

    The paper pairs two descriptors of an image; these two are ours: histograms of gradients and of
    colours. The 50,000 training images are learnt from and searched, the 10,000 test images ask.

    Args:
        root: folder of the binary version, as for image classification.
        **division: labelled, holdout; see :func:`divide`.
    """
    found = images_of(root)
    train, test = _described(found.train), _described(found.test)
    return divide("CIFAR-10", train, test, label_names=found.class_names, **division)


def _described(part: ArrayDataset) -> Pairs:
    chunks = torch.split(part.images, CHUNK)
    shapes = torch.cat([gradient_histogram(chunk) for chunk in chunks])
    colours = torch.cat([colour_histogram(chunk) for chunk in chunks])
    return Pairs(shapes, colours, part.labels)


def gradient_histogram(images: Tensor) -> Tensor:
    """How strong the edges of each of 8 directions are in each of 4 by 4 cells of an image.

    Args:
        images: (images, 3, height, width), uint8.

    Returns:
        (images, 128), each row of length 1, or 0 where an image is of one grey.
    """
    grey = F.pad(images.float().mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]
    down = grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]
    direction = torch.atan2(down, across) / math.pi * DIRECTIONS
    which = direction.round().long() % DIRECTIONS  # an edge and its negative are one direction
    strength = F.one_hot(which.squeeze(1), DIRECTIONS).movedim(-1, 1) * torch.hypot(across, down)
    return F.normalize(F.adaptive_avg_pool2d(strength, CELLS).flatten(1))


def colour_histogram(images: Tensor) -> Tensor:
    """The share of each of 64 colours, four levels of red, green and blue, in each quarter.

    Args:
        images: (images, 3, height, width), uint8.

    Returns:
        (images, 256), at least 0, of sum 4.
    """
    red, green, blue = (images.long() * LEVELS // 256).unbind(1)
    colour = (red * LEVELS + green) * LEVELS + blue
    counted = F.one_hot(colour, LEVELS**3).movedim(-1, 1).float()
    return F.adaptive_avg_pool2d(counted, QUARTERS).flatten(1)
