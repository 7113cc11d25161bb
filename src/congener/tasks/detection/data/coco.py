"""COCO, and any data set annotated in its format."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from congener.errors import DataError

from .boxes import Listed, scene_files, usual_scale
from .splits import IMAGENET_MEAN, IMAGENET_STD, Division, Splits, divide

__all__ = ["coco"]

KEYS = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}

Part = Mapping[str, Sequence[Mapping[str, Any]]]


def coco(
    root: str | Path,
    *,
    size: int,
    train_images: str = "train2017",
    train_annotations: str = "annotations/instances_train2017.json",
    test_images: str = "val2017",
    test_annotations: str = "annotations/instances_val2017.json",
    skip_bad: bool = False,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    **division: Unpack[Division],
) -> Splits:
    """COCO (Lin et al., 2014), or any data set whose boxes are in its JSON format.

    Images stay in their files and are fitted into a square, see :class:`.SceneFiles`; they come in
    the order of their ids, and those without boxes stay. Classes are numbered in the order of
    their ids, which may have gaps. A box is ``[left, top, width, height]`` in pixels; where
    ``iscrowd`` is 1 it counts neither for nor against. Objects are called small, medium or large
    by their size before the fitting (exactly so where all images have the median longer side).

    Args:
        root: the folder that the four names below are relative to; defaults are COCO's own.
        size: height and width of the fitted images.
        train_images: folder of the training images.
        train_annotations: their annotations.
        test_images: folder of the test images.
        test_annotations: their annotations, with the same categories.
        skip_bad: leave out boxes that have no area or lie outside their image, with one warning,
            instead of refusing them (COCO's own training set has two of width or height 0).
        mean: per channel, of the images as floats in [0, 1]; default: ImageNet's.
        std: likewise.
        **division: teacher, pool, labelled, holdout; see :func:`.divide`.

    Raises:
        DataError: a file that is missing, damaged or no COCO, or annotations that cannot be.
    """
    base = Path(root)
    files = base / train_annotations, base / test_annotations
    train, test = _read(files[0]), _read(files[1])
    names = _classes(files[0], train)
    if _classes(files[1], test) != names:
        raise DataError(
            f"{files[0]} and {files[1]} have different categories; give both the same ids and "
            "names."
        )
    fitted = partial(scene_files, size=size, skip_bad=skip_bad)
    train_part = fitted(str(files[0]), _listed(files[0], train, base / train_images, names))
    test_part = fitted(str(files[1]), _listed(files[1], test, base / test_images, names))
    return divide(
        str(base),
        train_part,
        test_part,
        class_names=tuple(names.values()),
        area_scale=usual_scale(test_part),
        mean=mean,
        std=std,
        **division,
    )


def _read(path: Path) -> Part:
    """The three lists of an annotation file, each entry with the keys that it must have."""
    if not path.is_file():
        raise DataError(f"There is no file {path}; expected COCO's annotations in JSON.")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is no JSON ({error}); it may be truncated, so fetch or write it anew."
        ) from error
    for key, needed in KEYS.items():
        entries = found.get(key) if isinstance(found, dict) else None
        if not isinstance(entries, list):
            raise DataError(
                f"{path} has no list {key!r}; expected COCO's format, a mapping with "
                f"{', '.join(map(repr, KEYS))}."
            )
        for place, entry in enumerate(entries):
            lacking = [name for name in needed if not isinstance(entry, dict) or name not in entry]
            if lacking:
                raise DataError(
                    f"{path} is no COCO: entry {place} of {key!r} has no {lacking[0]!r}; expected "
                    f"{', '.join(needed)}."
                )
        if {type(entry["id"]) for entry in entries} not in ({int}, {str}, set()):
            raise DataError(f"{path} has ids in {key!r} that are no whole numbers; number them.")
        often = [
            id_ for id_, count in Counter(entry["id"] for entry in entries).items() if count > 1
        ]
        if often:
            raise DataError(f"{path} has the id {often[0]} twice in {key!r}; ids must differ.")
    return {key: found[key] for key in KEYS}


def _classes(path: Path, part: Part) -> dict[int, str]:
    """The names of the classes by their ids, in the order of the ids."""
    if not part["categories"]:
        raise DataError(f"{path} has no category; name one or more in 'categories'.")
    entries = sorted(part["categories"], key=lambda entry: entry["id"])
    return {entry["id"]: str(entry["name"]) for entry in entries}


def _listed(path: Path, part: Part, folder: Path, names: Mapping[int, str]) -> Listed:
    images = sorted(part["images"], key=lambda entry: entry["id"])
    rows = {entry["id"]: row for row, entry in enumerate(images)}
    numbers = {category: number for number, category in enumerate(names)}
    for entry in part["annotations"]:
        if entry["category_id"] not in numbers:
            raise DataError(
                f"{path}: annotation {entry['id']} has the category id {entry['category_id']}, "
                "which is not in 'categories'; add it there, or take the annotation out."
            )
        if entry["image_id"] not in rows:
            raise DataError(
                f"{path}: annotation {entry['id']} has the image id {entry['image_id']}, which is "
                "not in 'images'; add it there, or take the annotation out."
            )
        box = entry["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            raise DataError(
                f"{path}: annotation {entry['id']} has the bbox {box!r}; expected four numbers, "
                "left, top, width and height."
            )
    found = part["annotations"]
    corners = [(x, y, x + w, y + h) for x, y, w, h in (entry["bbox"] for entry in found)]
    return Listed(
        paths=[folder / entry["file_name"] for entry in images],
        shapes=[_shape(path, entry) for entry in images],
        image=[rows[entry["image_id"]] for entry in found],
        boxes=corners,
        labels=[numbers[entry["category_id"]] for entry in found],
        crowd=[bool(entry.get("iscrowd")) for entry in found],
        names=[f"annotation {entry['id']}" for entry in found],
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shape(path: Path, entry: Mapping[str, Any]) -> tuple[int, int]:
    height, width = entry["height"], entry["width"]
    if not isinstance(height, int) or not isinstance(width, int) or min(height, width) < 1:
        raise DataError(
            f"{path}: image {entry['id']} has the height {height!r} and the width {width!r}; "
            "expected positive whole numbers of pixels."
        )
    return height, width
