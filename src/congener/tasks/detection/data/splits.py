"""Images with boxes, in memory or in files, and how a training set is divided."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor

from congener.errors import DataError
from congener.tasks.in_memory import InMemory
from congener.tasks.parts import PartsOptions, divide_positions, kept_labels
from congener.types import Batch

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Division",
    "SceneFiles",
    "Scenes",
    "Splits",
    "divide",
    "labelled_positions",
    "letterboxed",
]

IGNORE = -100
NOTHING = -1
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
GREY = 114
"""What images are padded with: ImageNet's mean over the channels, as a byte."""
Division = PartsOptions

ORDER = 0x5EED_0DE7EC7
"""Seed of the order in which annotations are kept; the shuffles of training have others."""


class Scenes(InMemory):
    """Images in memory; a whole batch is one indexing operation.

    A batch is ``{"image", "boxes", "labels", "crowd", "index"}``; ``index`` is the position in
    this data set.

    Args:
        images: (images, 3, height, width), uint8.
        boxes: left, top, right, bottom in pixels, (images, most, 4), float32.
        labels: (images, most), int64: a class, -1 where the row of ``boxes`` holds nothing, -100
            in all rows of an image that is not annotated.
        crowd: boxes that count neither for nor against, (images, most).
        ids: position of each image in the training (or test) set it was taken from; default: here.
    """

    def __init__(
        self,
        images: UInt8[Tensor, "images 3 height width"],
        boxes: Float[Tensor, "images most 4"],
        labels: Int[Tensor, "images most"],
        crowd: Bool[Tensor, "images most"],
        ids: Int[Tensor, " images"] | None = None,
    ) -> None:
        self.images, self.boxes, self.labels, self.crowd = images, boxes, labels, crowd
        self.ids = torch.arange(len(labels)) if ids is None else ids

    @property
    def columns(self) -> dict[str, Tensor]:
        """What a batch is made of, beside ``index``."""
        return {
            "image": self.images,
            "boxes": self.boxes,
            "labels": self.labels,
            "crowd": self.crowd,
        }

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every image."""
        return self.images.shape[2], self.images.shape[3]

    def part(self, rows: slice | Tensor) -> "Scenes":
        """Some of the images."""
        return Scenes(
            self.images[rows],
            self.boxes[rows],
            self.labels[rows],
            self.crowd[rows],
            self.ids[rows],
        )


class SceneFiles(Dataset[Batch]):
    """Images in files, decoded when asked for, fitted into a square; batches as of :class:`Scenes`.

    An image is scaled, keeping its ratio, until its longer side is ``size``, and padded with grey
    at the right and at the bottom. A batch has as many rows of boxes as its fullest image.

    Args:
        paths: of the images.
        shapes: height and width of each file's image, (images, 2): what is decoded must have them.
        boxes: in pixels of the fitted images, see :func:`letterboxed`; (images, most, 4), float32.
        labels: (images, most), int64; objects first, -1 behind them; see :class:`Scenes`.
        crowd: (images, most).
        size: height and width of every fitted image.
        ids: position of each image in the training (or test) set it was taken from; default: here.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        shapes: Int[Tensor, "images 2"],
        boxes: Float[Tensor, "images most 4"],
        labels: Int[Tensor, "images most"],
        crowd: Bool[Tensor, "images most"],
        size: int,
        ids: Int[Tensor, " images"] | None = None,
    ) -> None:
        self.paths, self.shapes = list(paths), shapes
        self.boxes, self.labels, self.crowd = boxes, labels, crowd
        self.size = (size, size)
        self.ids = torch.arange(len(labels)) if ids is None else ids

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Batch:
        position = range(len(self))[index]
        return {
            "image": self._decode(position),
            "boxes": self.boxes[position],
            "labels": self.labels[position],
            "crowd": self.crowd[position],
            "index": torch.tensor(position),
        }

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The batch of these images, in this order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        labels = self.labels[index]
        most = int((labels >= 0).sum(1).max().clamp(min=1))
        return {
            "image": torch.stack([self._decode(position) for position in index.tolist()]),
            "boxes": self.boxes[index, :most],
            "labels": labels[:, :most],
            "crowd": self.crowd[index, :most],
            "index": index,
        }

    def part(self, rows: slice | Tensor) -> "SceneFiles":
        """Some of the images."""
        places = torch.arange(len(self))[rows]
        return SceneFiles(
            [self.paths[place] for place in places.tolist()],
            self.shapes[rows],
            self.boxes[rows],
            self.labels[rows],
            self.crowd[rows],
            self.size[0],
            self.ids[rows],
        )

    def _decode(self, position: int) -> Tensor:
        path, shape, side = self.paths[position], self.shapes[position], self.size[0]
        high, wide = letterboxed(shape, side).tolist()
        try:
            with Image.open(path) as opened:
                height, width = opened.height, opened.width
                # A JPEG is decoded without the detail that scaling would drop.
                drafted = opened.draft("RGB", (wide, high))
                image = opened.convert("RGB").resize(
                    (wide, high), Image.Resampling.BILINEAR, drafted and drafted[1]
                )
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(
                f"{path} cannot be read as an image ({error}); fix it, or take it out of the "
                "annotations."
            ) from error
        if [height, width] != shape.tolist():
            raise DataError(
                f"{path} is an image of {width} x {height} pixels, but its annotations say "
                f"{int(shape[1])} x {int(shape[0])}; its boxes may be wrong, so annotate the image "
                "as it is."
            )
        canvas = torch.full((3, side, side), GREY, dtype=torch.uint8)
        canvas[:, :high, :wide] = pil_to_tensor(image)
        return canvas


def letterboxed(shapes: Int[Tensor, "*images 2"], size: int) -> Int[Tensor, "*images 2"]:
    """Height and width of images after they were scaled until the longer side is ``size``."""
    longer = shapes.amax(-1, keepdim=True).double()
    return (shapes * (size / longer)).round().clamp(min=1).long()


@dataclass(frozen=True, slots=True)
class Splits:
    """A data set, divided.

    Attributes:
        train: what the student sees; images that are not annotated carry -100 in all ``labels``.
        test: what the figures are measured on.
        class_names: one for each class.
        size: height and width of every image.
        teacher: what the teacher is trained on, where that is not ``train``.
        area_scale: factor on lengths before objects are called small, medium or large by COCO's
            limits of 32 and 96 pixels.
        mean: per channel, of the images as floats in [0, 1].
        std: likewise.
    """

    train: Scenes | SceneFiles
    test: Scenes | SceneFiles
    class_names: tuple[str, ...]
    size: tuple[int, int]
    teacher: Scenes | SceneFiles | None = None
    area_scale: float = 1.0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


def labelled_positions(labels: Int[Tensor, "images most"]) -> Int[Tensor, " known"] | None:
    """Positions of the images that are annotated, where others are not; otherwise ``None``."""
    known = (labels != IGNORE).any(1)
    return known.nonzero().flatten() if known.any() and not known.all() else None


def divide(
    what: str,
    train: Scenes | SceneFiles,
    test: Scenes | SceneFiles,
    *,
    class_names: Sequence[str],
    area_scale: float = 1.0,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    teacher: int | None = None,
    pool: int | None = None,
    labelled: int | None = None,
    holdout: int | None = None,
) -> Splits:
    """Divide a training set, in its own order, as :func:`.divide_positions` says.

    Args:
        what: how messages call the data set.
        train: the training set.
        test: the test set; images of the same size.
        class_names: one for each class.
        area_scale: factor on lengths before COCO's limits of small and large.
        mean: per channel, of the images as floats in [0, 1]; default: ImageNet's.
        std: likewise.
        teacher: images of the teacher's own; default: it learns from ``train``.
        pool: images that the student sees; default: all that ``teacher`` and ``holdout`` leave.
        labelled: how many images of the pool keep their annotations: the first of a fixed random
            order in which the first image of every class comes before all others, so that a class
            is left out only where it must be, and those without annotations come last; default:
            all.
        holdout: images to test on, for tuning, instead of the test set; default: none.

    Raises:
        DataError: data or options that do not fit, saying which and why.
    """
    classes = len(class_names)
    _check(f"The training set of {what}", train, classes)
    _check(f"The test set of {what}", test, classes)
    _check_scale(mean, std)
    if train.size != test.size:
        raise DataError(
            f"The training images of {what} are {_by(train.size)} and the test images "
            f"{_by(test.size)} pixels (height x width); give them one size."
        )
    parts = divide_positions(
        what, len(train), teacher=teacher, pool=pool, labelled=labelled, holdout=holdout
    )
    own = None if parts.teacher is None else train.part(parts.teacher)
    student = train.part(parts.train)
    figures = test if parts.test is None else train.part(parts.test)
    if not _present(figures, classes).any():
        raise DataError(f"No image of {what} to test on has an object; figures need some.")
    learnt = student if own is None else own
    if not _present(learnt, classes).any():
        raise DataError(f"No training image of {what} has an object; to learn takes some.")
    if labelled is not None:
        _keep_annotations(student, labelled, classes)
    _tell_of_unseen(what, learnt, figures, class_names)
    return Splits(
        train=student,
        test=figures,
        class_names=tuple(class_names),
        size=train.size,
        teacher=own,
        area_scale=area_scale,
        mean=tuple(mean),
        std=tuple(std),
    )


def _by(size: tuple[int, int]) -> str:
    return " x ".join(map(str, size))


def _check(what: str, scenes: Scenes | SceneFiles, classes: int) -> None:
    """Refuse images from which nothing can be learnt; of boxes, see :func:`.clean`."""
    if not len(scenes):
        raise DataError(f"{what} is empty; at least one image is needed.")
    labels = scenes.labels
    unknown = labels == IGNORE
    wrong = ~unknown & ((labels < NOTHING) | (labels >= classes))
    if wrong.any():
        image, row = wrong.nonzero()[0].tolist()
        raise DataError(
            f"{what} has the label {int(labels[image, row])} at image {image}, row {row}; expected "
            f"0 to {classes - 1} for its {classes} classes, {NOTHING} where there is no box, and "
            f"{IGNORE} in all rows of an image that is not annotated."
        )
    mixed = unknown.any(1) & ~unknown.all(1)
    if mixed.any():
        raise DataError(
            f"{what} has the label {IGNORE} in some rows of image {int(mixed.nonzero()[0, 0])}; an "
            f"image is annotated, or has {IGNORE} in all rows."
        )


def _check_scale(mean: Sequence[float], std: Sequence[float]) -> None:
    if len(mean) != 3 or len(std) != 3 or not min(std) > 0:
        raise DataError(
            f"mean={list(mean)} and std={list(std)} do not fit; give three values each, one for "
            "each of red, green and blue, and std above 0."
        )


def _present(scenes: Scenes | SceneFiles, classes: int) -> Bool[Tensor, "images classes"]:
    """Which classes an image has objects of; a crowd is none."""
    column = scenes.labels.masked_fill((scenes.labels < 0) | scenes.crowd, classes)
    found = torch.zeros(len(column), classes + 1, dtype=torch.bool)
    return found.scatter_(1, column, True)[:, :classes]


def _keep_annotations(scenes: Scenes | SceneFiles, labelled: int, classes: int) -> None:
    """Take the annotations from all but ``labelled`` images, in tensors of their own."""
    unknown = (scenes.labels == IGNORE).all(1)
    chosen = kept_labels(_present(scenes, classes), unknown, labelled, seed=ORDER)
    lost = torch.ones(len(scenes), dtype=torch.bool)
    lost[chosen] = False
    scenes.labels = scenes.labels.masked_fill(lost[:, None], IGNORE)
    scenes.boxes = scenes.boxes.masked_fill(lost[:, None, None], 0)
    scenes.crowd = scenes.crowd & ~lost[:, None]


def _tell_of_unseen(
    what: str,
    train: Scenes | SceneFiles,
    test: Scenes | SceneFiles,
    class_names: Sequence[str],
) -> None:
    seen, asked = (_present(scenes, len(class_names)).any(0) for scenes in (train, test))
    unseen = [class_names[number] for number in (asked & ~seen).nonzero().flatten().tolist()]
    if unseen and seen.any():
        shown = ", ".join(unseen[:5]) + (" and more" if len(unseen) > 5 else "")
        warnings.warn(
            f"No annotated training image of {what} has the class {shown}: nothing tells a network "
            "what it looks like; it counts in the figures all the same.",
            stacklevel=4,
        )
