"""Batched augmentation against one sample at a time in plain Python."""

import pytest
import torch
from torch import Tensor

from congener.errors import DataError
from congener.ops.keyed_random import keyed_uniform
from congener.tasks.image_classification import augment

IMAGES = torch.randint(
    0, 256, (40, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
IDS = torch.arange(100, 140)
CASES = [
    ("shift", {}),
    ("shift", {"pad": 3}),
    ("shift", {"pad": 0}),
    ("crop_flip", {}),
    ("crop_flip", {"pad": 2, "mode": "reflect"}),
    ("crop_flip", {"pad": 1, "flip": 0.0}),
    ("crop_flip", {"flip": 1.0}),
]


def reference(
    name: str, image: Tensor, sample: int, seed: int, epoch: int, options: dict
) -> Tensor:
    """Pixel by pixel: where does the pixel at (row, column) of the result come from?"""
    pad = options.get("pad", 2 if name == "shift" else 4)
    draws = keyed_uniform(torch.tensor([sample]), seed=seed, epoch=epoch, count=3)[0].tolist()
    down, right = (int(draws[axis] * (2 * pad + 1)) - pad for axis in (0, 1))
    mirrored = name == "crop_flip" and draws[2] < options.get("flip", 0.5)
    _, height, width = image.shape
    result = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            y, x = row + down, (width - 1 - column if mirrored else column) + right
            if options.get("mode") == "reflect":
                y, x = abs(y), abs(x)
                y, x = min(y, 2 * (height - 1) - y), min(x, 2 * (width - 1) - x)
            if 0 <= y < height and 0 <= x < width:
                result[:, row, column] = image[:, y, x]
    return result


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("floats", [False, True])
def test_equals_the_slow_way(name: str, options: dict, floats: bool) -> None:
    images = IMAGES / 255 if floats else IMAGES
    made = getattr(augment, name)(images, IDS, seed=3, epoch=2, **options)
    assert made.dtype == images.dtype
    for image, sample, result in zip(images, IDS.tolist(), made, strict=True):
        assert torch.equal(result, reference(name, image, sample, 3, 2, options))


@pytest.mark.parametrize("name", ["shift", "crop_flip"])
def test_whatever_the_batch(name: str) -> None:
    function = getattr(augment, name)
    whole = function(IMAGES, IDS, seed=0, epoch=1)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(99)
    parts = [function(IMAGES[i], IDS[i], seed=0, epoch=1) for i in order.split(7)]
    assert torch.equal(torch.cat(parts), whole[order])
    for other in (function(IMAGES, IDS, seed=0, epoch=2), function(IMAGES, IDS, seed=1, epoch=1)):
        changed = (other != whole).flatten(1).any(1)
        assert changed.float().mean() > 0.6


def test_every_place_is_reached_equally_often() -> None:
    pixel = torch.zeros(9000, 1, 3, 3, dtype=torch.uint8)
    pixel[:, :, 1, 1] = 1
    made = augment.shift(pixel, torch.arange(9000), seed=0, epoch=0, pad=1)
    share = made.float().mean(0)[0]
    assert torch.allclose(share, torch.full((3, 3), 1 / 9), atol=0.015)


def test_none() -> None:
    assert augment.none(IMAGES, IDS, seed=0, epoch=0) is IMAGES


def test_refused() -> None:
    with pytest.raises(DataError, match=r"\(40, 63\); use augment='none'"):
        augment.shift(IMAGES[:, 0].flatten(1), IDS, seed=0, epoch=0)
    with pytest.raises(DataError, match="mode='edge' of crop_flip is unknown"):
        augment.crop_flip(IMAGES, IDS, seed=0, epoch=0, mode="edge")
