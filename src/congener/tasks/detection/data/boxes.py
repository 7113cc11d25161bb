"""Boxes as files have them: checked, cut to their image, and put in rows."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from congener.errors import DataError

from .splits import NOTHING, SceneFiles, letterboxed

__all__ = ["Listed", "clean", "in_rows", "scene_files", "usual_scale"]

LEAST = 0.01
"""Pixels; what is narrower has no area."""


class Listed(NamedTuple):
    """What annotations say of a set of images, before any image is opened.

    Attributes:
        paths: of the images.
        shapes: their heights and widths.
        image: of each object, the number of its image, from 0.
        boxes: of each object, left, top, right, bottom in pixels.
        labels: of each object, its class.
        crowd: of each object, whether it counts neither for nor against.
        names: of each object, how messages call it.
    """

    paths: Sequence[Path]
    shapes: Sequence[tuple[int, int]]
    image: Sequence[int]
    boxes: Sequence[Sequence[float]]
    labels: Sequence[int]
    crowd: Sequence[bool]
    names: Sequence[object]


def scene_files(what: str, listed: Listed, *, size: int, skip_bad: bool) -> SceneFiles:
    """Images in files with their boxes, fitted into a square of ``size``.

    Args:
        what: how messages call the annotations.
        listed: what they say.
        size: height and width of the fitted images.
        skip_bad: leave out boxes without area or outside their image, with a warning.

    Raises:
        DataError: images that are missing, or boxes that cannot be.
    """
    if not isinstance(size, int) or size < 1:
        raise DataError(f"size={size!r} is not a number of pixels; give a positive whole number.")
    if missing := [path for path in listed.paths if not path.is_file()]:
        raise DataError(
            f"{what} names {len(missing)} of {len(listed.paths)} images that are missing, first "
            f"{missing[0]}; put them there, or say where they are."
        )
    shapes = torch.tensor(listed.shapes, dtype=torch.int64).view(-1, 2)
    image = torch.tensor(listed.image, dtype=torch.int64)
    boxes, kept = clean(
        what,
        torch.tensor(listed.boxes, dtype=torch.float64).view(-1, 4),
        shapes[image],
        lambda row: f"{listed.paths[listed.image[row]].name}, {listed.names[row]}",
        skip_bad=skip_bad,
    )
    factor = (letterboxed(shapes, size) / shapes.double()).flip(1).repeat(1, 2)
    rows = in_rows(
        len(shapes),
        image[kept],
        (boxes * factor[image])[kept].float(),
        torch.tensor(listed.labels, dtype=torch.int64)[kept],
        torch.tensor(listed.crowd, dtype=torch.bool)[kept],
    )
    return SceneFiles(listed.paths, shapes, *rows, size)


def usual_scale(files: SceneFiles) -> float:
    """The median over the images of the factor that undoes the fitting."""
    return float(files.shapes.amax(1).double().median()) / files.size[0]


def clean(
    what: str,
    boxes: Float[Tensor, "objects 4"],
    shapes: Int[Tensor, "objects 2"],
    name: Callable[[int], str],
    *,
    skip_bad: bool,
) -> tuple[Float[Tensor, "objects 4"], Bool[Tensor, " objects"]]:
    """Cut boxes to their images, and refuse or leave out those that cannot be.

    What reaches less than a pixel out of the image is cut silently, what reaches farther with one
    warning. A box of which nothing is left, that has no area, or that is no number, is bad.

    Args:
        what: how messages call the data.
        boxes: left, top, right, bottom in pixels.
        shapes: height and width of each box's image.
        name: how messages call a box by its number.
        skip_bad: leave bad boxes out, with one warning, instead of refusing them.

    Returns:
        The boxes, and which of them to keep.

    Raises:
        DataError: a bad box.
    """
    limits = shapes.flip(1).repeat(1, 2).to(boxes.dtype)
    cut = torch.minimum(boxes.clamp(min=0), limits)
    known = boxes.isfinite().all(1)
    flat, lost = (~(corners[:, 2:] - corners[:, :2] > LEAST).all(1) for corners in (boxes, cut))
    bad = ~known | lost
    if bad.any() and not skip_bad:
        row = int(bad.nonzero()[0, 0])
        reason = "lies outside the image"
        if flat[row] or not known[row]:
            reason = "is inverted or has no area" if known[row] else "is no number"
        others = int(bad.sum()) - 1
        height, width = shapes[row].tolist()
        raise DataError(
            f"{what}: the box {[round(side, 3) for side in boxes[row].tolist()]} (left, top, "
            f"right, bottom) of {name(row)} {reason}; the image has {width} x {height} pixels"
            f"{f', and {others} more boxes are as bad' if others else ''}; mend them, or leave "
            "such boxes out with skip_bad."
        )
    if bad.any():
        warnings.warn(
            f"{what}: {int(bad.sum())} of {len(bad)} boxes are left out, for they have no area or "
            f"lie outside their image, first that of {name(int(bad.int().argmax()))}.",
            stacklevel=4,
        )
    far = ((boxes - cut).abs().amax(1) >= 1) & ~bad
    if far.any():
        warnings.warn(
            f"{what}: {int(far.sum())} of {len(far)} boxes reach a pixel or more out of their "
            f"image and are cut to it, first that of {name(int(far.int().argmax()))}.",
            stacklevel=4,
        )
    return cut, ~bad


def in_rows(
    images: int,
    image: Int[Tensor, " objects"],
    boxes: Float[Tensor, "objects 4"],
    labels: Int[Tensor, " objects"],
    crowd: Bool[Tensor, " objects"],
) -> tuple[Float[Tensor, "images most 4"], Int[Tensor, "images most"], Bool[Tensor, "images most"]]:
    """Boxes, labels and crowd with a row for each image, padded; objects keep their order.

    Args:
        images: how many.
        image: of each object, the number of its image.
        boxes: of each object.
        labels: of each object.
        crowd: of each object.
    """
    order = torch.argsort(image, stable=True)
    image = image[order]
    counts = torch.bincount(image, minlength=images)
    place = torch.arange(len(image)) - (counts.cumsum(0) - counts)[image]
    most = max(1, int(counts.max()))
    rows = (
        torch.zeros(images, most, 4),
        torch.full((images, most), NOTHING),
        torch.zeros(images, most, dtype=torch.bool),
    )
    for row, column in zip(rows, (boxes, labels, crowd), strict=True):
        row[image, place] = column[order]
    return rows
