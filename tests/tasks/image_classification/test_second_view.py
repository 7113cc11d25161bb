"""The strong view: RandAugment against PIL, jitter, and two independent views of one image."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from congener.errors import DataError
from congener.ops.keyed_random import keyed_uniform
from congener.tasks.image_classification import ImageClassification, augment
from congener.tasks.image_classification.data.splits import Arrays, divide

SIDE = 32
NAMES = (
    "autocontrast", "brightness", "color", "contrast", "equalize", "identity", "posterize",
    "rotate", "sharpness", "shear_x", "shear_y", "solarize", "translate_x", "translate_y",
)  # fmt: skip
RANGES = {
    "brightness": (0.05, 0.95), "color": (0.05, 0.95), "contrast": (0.05, 0.95),
    "sharpness": (0.05, 0.95), "posterize": (4, 8), "rotate": (-30, 30), "solarize": (0, 256),
    "shear_x": (-0.3, 0.3), "shear_y": (-0.3, 0.3), "translate_x": (-0.3, 0.3),
    "translate_y": (-0.3, 0.3),
}  # fmt: skip


def pictures(count: int = 6, channels: int = 3) -> Tensor:
    """Smooth, so that a pixel's rounding is a small difference, and of a narrow range."""
    generator = torch.Generator().manual_seed(channels)
    coarse = torch.rand(count, channels, 5, 5, generator=generator) * 170 + 40
    smooth = torch.nn.functional.interpolate(coarse, SIDE, mode="bicubic")
    return smooth.round().clamp(0, 255).to(torch.uint8)


def by_pil(name: str, image: Image.Image, v: float) -> Image.Image:
    enhance = {
        "brightness": ImageEnhance.Brightness, "color": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast, "sharpness": ImageEnhance.Sharpness,
    }  # fmt: skip
    if name in enhance:
        return enhance[name](image).enhance(v)
    matrices = {
        "shear_x": (1, v, 0, 0, 1, 0), "shear_y": (1, 0, 0, v, 1, 0),
        "translate_x": (1, 0, -v * SIDE, 0, 1, 0), "translate_y": (1, 0, 0, 0, 1, -v * SIDE),
    }  # fmt: skip
    if name in matrices:
        return image.transform(image.size, Image.Transform.AFFINE, matrices[name])
    return {
        "identity": lambda: image,
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "posterize": lambda: ImageOps.posterize(image, int(v)),
        "rotate": lambda: image.rotate(v),
        "solarize": lambda: ImageOps.solarize(image, math.ceil(v)),
    }[name]()


def test_the_operations_are_those_of_the_trainer() -> None:
    assert len(augment._OPERATIONS) == len(NAMES) == 14
    for (low, high, _), name in zip(augment._OPERATIONS, NAMES, strict=True):
        assert (low, high) == RANGES.get(name, (0, 1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("strength", [0.1, 0.5, 0.93])
@pytest.mark.parametrize("name", NAMES)
def test_an_operation_equals_pil(name: str, strength: float, channels: int) -> None:
    low, high = RANGES.get(name, (0, 1))
    draws = [(NAMES.index(name) + 0.5) / 14, strength]
    for image in pictures(3, channels):
        found = augment._operate(image, draws)
        wanted = pil_to_tensor(by_pil(name, to_pil_image(image), low + (high - low) * strength))
        assert found.dtype == torch.uint8
        assert found.shape == image.shape
        apart = (found.int() - wanted.int()).abs()
        if name in ("identity", "posterize", "solarize"):
            assert torch.equal(found, wanted)
        # Rounding, and which neighbour is nearest, may differ; and so may the border.
        near = (apart <= (25 if name in ("rotate", "shear_x", "shear_y") else 3)).float().mean()
        assert near > 0.9, name
        if name not in ("identity", "color"):
            changed = (found.int() - image.int()).abs().float().mean()
            like = (wanted.int() - image.int()).abs().float().mean()
            assert changed == pytest.approx(like.item(), rel=0.2, abs=0.7)


def test_moved_pixels_come_from_where_the_share_says() -> None:
    """On images that are not square, and large enough to tell a slope from its angle."""
    height, width = 120, 200
    rows = torch.arange(height, dtype=torch.uint8)[None, :, None].expand(1, height, width)
    columns = torch.arange(width, dtype=torch.uint8)[None, None].expand(1, height, width)
    inside = (slice(None), slice(50, 80), slice(60, 130))
    y, x = rows.float()[inside], columns.float()[inside]
    for share in (-0.3, 0.3):
        strength = share / 0.6 + 0.5
        draws = {n: [(NAMES.index(n) + 0.5) / 14, strength] for n in NAMES}
        for name, image, wanted in (
            ("shear_x", columns, x + share * y),
            ("shear_y", rows, y + share * x),
            ("translate_x", columns, x - share * width),
            ("translate_y", rows, y - share * height),
        ):
            found = augment._operate(image, draws[name])[inside].float()
            assert (found - wanted).abs().max() < 1.01, name


def strong(images: Tensor, ids: Tensor, epoch: int = 0, **options: Any) -> Tensor:
    return augment.rand_augment(images, ids, seed=3, epoch=epoch, **options)


def test_crop_and_flip_come_first() -> None:
    images, ids = pictures(20), torch.arange(20)
    plain = augment.crop_flip(images, ids, seed=3, epoch=0, pad=2, flip=0.3)
    found = strong(images, ids, pad=2, flip=0.3, operations=0, cutout=0.0)
    assert torch.equal(found, plain)


def test_operations_are_drawn_evenly_with_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[float]] = []
    monkeypatch.setattr(augment, "_operate", lambda image, draws: seen.append(draws) or image)
    strong(pictures(1, 1).expand(4000, 1, SIDE, SIDE), torch.arange(4000))
    assert {len(draws) for draws in seen} == {4}
    own = keyed_uniform(torch.arange(4000), seed=3, epoch=0, count=10)[:, 6:]
    assert torch.equal(torch.tensor(seen), own)  # the crop and the square have others
    chosen = [(int(a * 14), int(b * 14)) for a, _, b, _ in seen]
    counts = Counter(which for pair in chosen for which in pair)
    assert set(counts) == set(range(14))
    assert all(abs(n / (8000 / 14) - 1) < 0.2 for n in counts.values())
    assert sum(a == b for a, b in chosen) / 4000 == pytest.approx(1 / 14, rel=0.3)
    strengths = torch.tensor([draws[1::2] for draws in seen])
    assert strengths.mean().item() == pytest.approx(0.5, abs=0.02)
    assert torch.corrcoef(strengths.T)[0, 1].abs() < 0.05


def test_both_operations_are_applied_in_turn() -> None:
    image = pictures(1)[0]
    draws = [[(NAMES.index(name) + 0.5) / 14, 0.25] for name in ("brightness", "solarize")]
    once = augment._operate(augment._operate(image, draws[0]), draws[1])
    assert torch.equal(augment._operate(image, draws[0] + draws[1]), once)
    assert not torch.equal(augment._operate(image, draws[1] + draws[0]), once)


@pytest.mark.parametrize(("channels", "grey"), [(3, (125, 123, 114)), (1, (122,))])
def test_a_grey_square_of_up_to_half_the_width(channels: int, grey: Any) -> None:
    count, height = 3000, 20
    images = torch.zeros(count, channels, height, SIDE, dtype=torch.uint8)
    found = strong(images, torch.arange(count), operations=0)
    draws = keyed_uniform(torch.arange(count), seed=3, epoch=0, count=6)[:, 3:]
    hole = found[:, 0] == grey[0]
    for channel, value in enumerate(grey):
        assert torch.equal(found[:, channel], torch.where(hole, value, 0).to(torch.uint8))
    for k in range(100):
        y, x, half = (
            draws[k, 0] * height, draws[k, 1] * SIDE, draws[k, 2] * SIDE / 4,
        )  # fmt: skip
        rows = [r for r in range(height) if abs(r + 0.5 - y) < half]
        columns = [c for c in range(SIDE) if abs(c + 0.5 - x) < half]
        wanted = torch.zeros(height, SIDE, dtype=torch.bool)
        for r in rows:
            wanted[r, columns] = True
        assert torch.equal(hole[k], wanted)
    assert hole.any(1).sum(1).max() == SIDE // 2
    centres = hole.float().mean(0)
    assert centres.min() > 0.01  # corners, too
    none = strong(images, torch.arange(count), operations=0, cutout=0.0)
    assert not none.any()


@pytest.mark.parametrize("name", ["rand_augment", "jitter"])
def test_whatever_the_batch(name: str) -> None:
    function = getattr(augment, name)
    images = pictures(24) if name == "rand_augment" else torch.ones(24, 1, 40)
    ids = torch.arange(24)
    whole = function(images, ids, seed=0, epoch=1)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(99)
    parts = [function(images[i], ids[i], seed=0, epoch=1) for i in order.split(7)]
    assert torch.equal(torch.cat(parts), whole[order])
    for other in (function(images, ids, seed=0, epoch=2), function(images, ids, seed=1, epoch=1)):
        assert (other != whole).flatten(1).any(1).float().mean() > 0.9


def test_jitter_is_a_scale_and_gaussian_noise() -> None:
    images, ids = torch.full((4000, 1, 30), 2.0), torch.arange(4000)
    scaled = augment.jitter(images, ids, seed=0, epoch=0, noise=0.0, scale=0.4)
    factors = scaled.flatten(1) / 2
    assert torch.allclose(factors, factors[:, :1].expand_as(factors))
    assert factors.min() == pytest.approx(0.6, abs=1e-3)
    assert factors.max() == pytest.approx(1.4, abs=1e-3)
    assert factors.mean() == pytest.approx(1.0, abs=0.01)
    noisy = augment.jitter(images, ids, seed=0, epoch=0, noise=0.3, scale=0.0) - 2
    assert noisy.isfinite().all()
    assert noisy.mean().abs() < 0.005
    assert noisy.std() == pytest.approx(0.3, rel=0.01)
    assert (noisy.abs() < 0.3).float().mean() == pytest.approx(0.6827, abs=0.005)
    neighbours = torch.corrcoef(noisy.flatten(1)[:, :2].T)[0, 1]
    assert neighbours.abs() < 0.05
    both = augment.jitter(images, ids, seed=0, epoch=0, noise=0.3, scale=0.4)
    torch.testing.assert_close(both - scaled, noisy)  # the noise is not scaled
    plain = augment.jitter(images, ids, seed=0, epoch=0)
    assert torch.equal(plain, augment.jitter(images, ids, seed=0, epoch=0, noise=0.1, scale=0.2))
    half = augment.jitter(images.half(), ids, seed=0, epoch=0)
    assert half.dtype == torch.half


def test_jitter_of_the_smallest_draw_is_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "keyed_uniform", lambda ids, count, **_: torch.zeros(2, count))
    assert augment.jitter(torch.ones(2, 1, 30), torch.arange(2), seed=0, epoch=0).isfinite().all()


# ---------------------------------------------------------------- the task


def task(images: Tensor, **options: Any) -> ImageClassification:
    arrays = Arrays(images, torch.arange(len(images)) % 2)
    channels = images.shape[1]
    return ImageClassification(
        divide(
            "toy", arrays, arrays, class_names="ab", mean=[0.5] * channels, std=[2.0] * channels
        ),
        **options,
    )


def batch(toy: ImageClassification, count: int = 12, **options: Any) -> dict[str, Any]:
    raw = toy.collate(toy.splits["train"].__getitems__(list(range(count))))
    return toy.prepare(raw, **({"train": True, "seed": 3, "epoch": 1} | options))


def test_the_views_are_drawn_apart_from_the_same_image_and_normalised() -> None:
    images = pictures(12)
    toy = task(images, augment="crop_flip", strong={"name": "crop_flip", "pad": 4})
    found, ids = batch(toy), torch.arange(12)
    weak = augment.crop_flip(images, ids, seed=3, epoch=1)
    assert torch.equal(found["image"], (weak.float() / 255 - 0.5) / 2)
    second = augment.crop_flip(images, ids, seed=3 + 2**32, epoch=1)
    assert torch.equal(found["strong_image"], (second.float() / 255 - 0.5) / 2)
    assert (weak != second).flatten(1).any(1).float().mean() > 0.9
    again = batch(toy, 5)
    assert torch.equal(again["strong_image"], found["strong_image"][:5])
    assert "strong_image" not in batch(toy, train=False)


def test_the_strong_view_does_not_see_the_weak_one() -> None:
    images = pictures(12)
    found = [
        batch(task(images, augment=weak, strong="rand_augment"))["strong_image"]
        for weak in ("none", "crop_flip")
    ]
    assert torch.equal(*found)
    weak_key = strong(images, torch.arange(12), 1).float()
    assert not torch.equal(found[0], (weak_key / 255 - 0.5) / 2)


def test_without_strong_there_is_one_view() -> None:
    assert set(batch(task(pictures(4)), 4)) == {"image", "labels", "index"}


@pytest.mark.parametrize(
    ("images", "strong", "sentence"),
    [
        (torch.rand(4, 1, 40), "rand_augment", r"float32 of the shape \(1, 1, 40\); use another"),
        (torch.rand(4, 3, 8, 8), "rand_augment", "rand_augment works on uint8 images"),
        (torch.zeros(4, 2, 8, 8, dtype=torch.uint8), "rand_augment", "1 or 3 channels"),
        (pictures(4), "jitter", "jitter works on floats, but a batch here is torch.uint8"),
        (pictures(4), "rand_augmnt", "did you mean 'rand_augment'"),
        (pictures(4), {"name": "rand_augment", "cut": 1}, "did you mean 'cutout'"),
    ],
)
def test_refused_before_training(images: Tensor, strong: Any, sentence: str) -> None:
    with pytest.raises((DataError, ValueError), match=sentence):
        task(images, strong=strong)


def test_own_data_sets_have_a_second_view_too() -> None:
    data = torch.utils.data.TensorDataset(pictures(6), torch.arange(6) % 2)
    toy = ImageClassification.from_datasets(data, data, strong="rand_augment")
    raw = toy.collate([data[k] for k in range(6)]) | {"index": torch.arange(6)}
    found = toy.prepare(raw, train=True, seed=0, epoch=0)["strong_image"]
    assert found.dtype == torch.float32
    assert found.max() <= 1
    assert toy.input_shape == (3, SIDE, SIDE)
