"""Pascal VOC, and any data set annotated in its format."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Unpack
from xml.etree import ElementTree

from congener.errors import DataError, did_you_mean

from .boxes import Listed, scene_files, usual_scale
from .splits import IMAGENET_MEAN, IMAGENET_STD, Division, Splits, divide

__all__ = ["voc"]

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
SIDES = ("xmin", "ymin", "xmax", "ymax")
KINDS = (".jpg", ".jpeg", ".png")


class _Object(NamedTuple):
    name: str
    box: tuple[float, ...]
    crowd: bool


class _Scene(NamedTuple):
    path: Path
    shape: tuple[int, int]
    objects: Sequence[_Object]


def voc(
    root: str | Path,
    *,
    size: int,
    train: str = "trainval",
    test: str = "test",
    class_names: Sequence[str] | str = VOC_CLASSES,
    skip_bad: bool = False,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    **division: Unpack[Division],
) -> Splits:
    """Pascal VOC (Everingham et al., 2010), or any data set whose boxes are in its XML format.

    Images stay in their files and are fitted into a square, see :class:`.SceneFiles`; they come in
    the order of the lists ``ImageSets/Main/NAME.txt``, and those without boxes stay. The format
    counts pixels from 1 and includes the last, so that a box is (xmin - 1, ymin - 1, xmax, ymax),
    as detectron2 reads it (torchvision gives the numbers as they are). An object that is
    ``difficult`` counts neither for nor against, as in VOC's own evaluation. Objects are called
    small, medium or large by their size before the fitting (exactly so where all images have the
    median longer side).

    Args:
        root: the folder with ``Annotations``, ``JPEGImages`` and ``ImageSets`` in it, such as
            ``VOCdevkit/VOC2007``.
        size: height and width of the fitted images.
        train: the list of the training images; default: as of VOC2007.
        test: the list of the test images; VOC2012 has none but ``val``, to go with ``train``.
        class_names: in the order of their numbers, or ``"found"``: all that occur in the training
            annotations, in alphabetical order; default: VOC's 20.
        skip_bad: leave out boxes that have no area or lie outside their image, with one warning,
            instead of refusing them.
        mean: per channel, of the images as floats in [0, 1]; default: ImageNet's.
        std: likewise.
        **division: teacher, pool, labelled, holdout; see :func:`.divide`.

    Raises:
        DataError: a file that is missing, damaged or not of VOC, or annotations that cannot be.
    """
    base = Path(root)
    train_scenes, test_scenes = _read(base, train), _read(base, test)
    if isinstance(class_names, str):
        if class_names != "found":
            raise DataError(f"class_names={class_names!r} is no list of names; or say 'found'.")
        class_names = sorted({each.name for scene in train_scenes for each in scene.objects})
    numbers = {name: number for number, name in enumerate(class_names)}
    fitted = partial(scene_files, size=size, skip_bad=skip_bad)
    train_part = fitted(f"The list {train!r} of {base}", _listed(base, train_scenes, numbers))
    test_part = fitted(f"The list {test!r} of {base}", _listed(base, test_scenes, numbers))
    return divide(
        str(base),
        train_part,
        test_part,
        class_names=class_names,
        area_scale=usual_scale(test_part),
        mean=mean,
        std=std,
        **division,
    )


def _read(base: Path, name: str) -> list[_Scene]:
    path = base / "ImageSets" / "Main" / f"{name}.txt"
    if not path.is_file():
        raise DataError(
            f"There is no file {path}; expected a list of image names in VOC's layout, with "
            "Annotations/*.xml and JPEGImages/ beside ImageSets/."
        )
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    names = [line[0] for line in lines if line]
    if not names:
        raise DataError(f"{path} names no image; at least one is needed.")
    files = [base / "Annotations" / f"{name}.xml" for name in names]
    if missing := [file for file in files if not file.is_file()]:
        raise DataError(
            f"{path} names {len(missing)} of {len(files)} images without annotations, first "
            f"{missing[0]}; put the files there."
        )
    return [_scene(base, name, file) for name, file in zip(names, files, strict=True)]


def _scene(base: Path, name: str, file: Path) -> _Scene:
    try:
        tree = ElementTree.parse(file).getroot()
    except ElementTree.ParseError as error:
        raise DataError(
            f"{file} is no XML ({error}); it may be truncated, so fetch or write it anew."
        ) from error
    height, width = (_number(file, tree, f"size/{side}") for side in ("height", "width"))
    if not (height >= 1 and width >= 1 and height.is_integer() and width.is_integer()):
        raise DataError(
            f"{file} has the size {width:g} x {height:g}; write the image's width and height there."
        )
    places = [base / "JPEGImages" / f"{name}{kind}" for kind in KINDS]
    path = next((place for place in places if place.is_file()), places[0])
    return _Scene(
        path, (int(height), int(width)), [_object(file, found) for found in tree.findall("object")]
    )


def _object(file: Path, found: ElementTree.Element) -> _Object:
    left, top, right, bottom = (_number(file, found, f"bndbox/{side}") for side in SIDES)
    crowd = found.find("difficult") is not None and _number(file, found, "difficult") != 0
    return _Object(_text(file, found, "name"), (left - 1, top - 1, right, bottom), crowd)


def _text(file: Path, element: ElementTree.Element, key: str) -> str:
    text = (element.findtext(key) or "").strip()
    if not text:
        raise DataError(
            f"{file} is not of VOC: <{element.tag}> has no {key!r}; expected size/width, "
            "size/height, and for each object a name and bndbox/xmin, ymin, xmax, ymax."
        )
    return text


def _number(file: Path, element: ElementTree.Element, key: str) -> float:
    text = _text(file, element, key)
    try:
        return float(text)
    except ValueError:
        raise DataError(f"{file} has {key} = {text!r}; expected a number.") from None


def _listed(base: Path, scenes: Sequence[_Scene], numbers: Mapping[str, int]) -> Listed:
    found = [(row, each) for row, scene in enumerate(scenes) for each in scene.objects]
    for row, each in found:
        if each.name not in numbers:
            file = base / "Annotations" / f"{scenes[row].path.stem}.xml"
            raise DataError(
                f"{file} has an object of the class {each.name!r}; "
                f"{did_you_mean(each.name, numbers)} Give all names as class_names, or 'found'."
            )
    places = [place for scene in scenes for place in range(1, len(scene.objects) + 1)]
    return Listed(
        paths=[scene.path for scene in scenes],
        shapes=[scene.shape for scene in scenes],
        image=[row for row, _ in found],
        boxes=[each.box for _, each in found],
        labels=[numbers[each.name] for _, each in found],
        crowd=[each.crowd for _, each in found],
        names=[f"object {place}" for place in places],
    )
