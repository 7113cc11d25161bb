"""COCO's files, right and damaged."""

import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from congener.engine.held import held
from congener.errors import DataError
from congener.tasks.detection.data import coco
from congener.tasks.detection.data.splits import Splits, labelled_positions

SHAPES = {42: (20, 40), 7: (30, 15), 9: (10, 10)}
"""Height and width of the images by id, in the order of the file."""


def content() -> dict[str, Any]:
    """Three images, of which 9 has no box; the categories are 90 and 3."""
    rows = [
        (1, 42, 90, [10, 5, 20, 10], 0),
        (2, 7, 3, [0, 0, 15, 30], 0),
        (3, 42, 3, [0, 0, 8, 4], 1),
    ]
    names = ("id", "image_id", "category_id", "bbox", "iscrowd")
    return {
        "info": {},
        "images": [
            {"id": number, "file_name": f"{number:012}.png", "height": high, "width": wide}
            for number, (high, wide) in SHAPES.items()
        ],
        "annotations": [dict(zip(names, row, strict=True)) for row in rows],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for part in ("train2017", "val2017"):
        (tmp_path / part).mkdir()
        for number, (high, wide) in SHAPES.items():
            pixels = np.zeros((high, wide, 3), np.uint8)
            pixels[..., 0] = number
            pixels[high // 2 :, :, 1] = 200
            Image.fromarray(pixels).save(tmp_path / part / f"{number:012}.png")
        write(tmp_path, part, content())
    return tmp_path


def write(root: Path, part: str, found: Any) -> None:
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(found))


def changed(root: Path, change: Callable[[dict[str, Any]], Any], **options: Any) -> Splits:
    found = content()
    change(found)
    write(root, "train2017", found)
    return coco(root, size=20, **options)


def test_original_layout(root: Path) -> None:
    splits = coco(root, size=20)
    assert splits.class_names == ("car", "toothbrush")
    assert splits.size == (20, 20)
    assert splits.area_scale == 30 / 20  # the median of the longer sides 40, 30, 10
    train = splits.train
    assert len(train) == len(splits.test) == 3
    assert [path.name for path in train.paths] == [  # type: ignore[union-attr]
        "000000000007.png",
        "000000000009.png",
        "000000000042.png",
    ]
    assert train.labels.tolist() == [[0, -1], [-1, -1], [1, 0]]
    assert train.crowd.tolist() == [[False, False], [False, False], [False, True]]
    assert train.boxes.tolist() == [
        [[0, 0, 10, 20], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [0, 0, 0, 0]],
        [[5, 2.5, 15, 7.5], [0, 0, 4, 2]],
    ]
    assert train.boxes.dtype == torch.float32
    assert held(train) is None


def test_images_are_fitted_into_the_square(root: Path) -> None:
    batch = coco(root, size=20).train.__getitems__([2, 0, 1])
    assert list(batch) == ["image", "boxes", "labels", "crowd", "index"]
    image = batch["image"]
    assert image.shape == (3, 3, 20, 20)
    assert image.dtype == torch.uint8
    assert batch["index"].tolist() == [2, 0, 1]
    assert image[:, 0, 0, 0].tolist() == [42, 7, 9]
    assert (image[0, :, 10:] == 114).all()
    assert (image[0, 0, :10] == 42).all()
    assert image[0, 1, [0, 3, 6, 9], 3].tolist() == [0, 0, 200, 200]
    assert (image[1, :, :, 10:] == 114).all()
    assert (image[1, 0, :, :10] == 7).all()
    assert (image[2, 0] == 9).all()
    assert (image[2, 1, 12:] == 200).all()


def test_a_batch_has_as_many_rows_as_its_fullest_image(root: Path) -> None:
    train = coco(root, size=20).train
    assert train.__getitems__([0, 1])["labels"].tolist() == [[0], [-1]]
    assert train.__getitems__([0, 1])["boxes"].shape == (2, 1, 4)
    assert train.__getitems__([1])["crowd"].shape == (1, 1)
    assert train.__getitems__([2, 1])["labels"].tolist() == [[1, 0], [-1, -1]]
    lost = coco(root, size=20, labelled=2).train
    known = labelled_positions(lost.labels)
    assert known is not None
    assert known.tolist() == [0, 2]
    assert lost.__getitems__([1, 0])["labels"].tolist() == [[-100], [0]]


def test_read_by_workers_and_one_by_one(root: Path) -> None:
    train = coco(root, size=20).train
    whole = train.__getitems__([0, 1, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads
        loader = DataLoader(train, batch_size=3, num_workers=1, collate_fn=lambda batch: batch)
        found = next(iter(loader))
    again = pickle.loads(pickle.dumps(train))
    for name, column in whole.items():
        assert torch.equal(found[name], column)
        assert torch.equal(again[-1][name], column[2])


def test_parts_keep_their_files(root: Path) -> None:
    with pytest.warns(UserWarning, match="has the class toothbrush"):
        splits = coco(root, size=20, teacher=1, pool=2)
    assert splits.teacher is not None
    assert splits.teacher.ids.tolist() == [0]
    assert splits.train.ids.tolist() == [1, 2]
    assert splits.train.__getitems__([1])["image"][0, 0, 0, 0] == 42
    assert splits.train[0]["image"][0, 0, 0] == 9
    assert splits.train.part(torch.tensor([1]))[0]["image"][0, 0, 0] == 42


def test_boxes_follow_the_rounding_of_the_image(root: Path) -> None:
    def wide(found: dict[str, Any]) -> None:
        found["images"][0] |= {"height": 7, "width": 40}
        found["annotations"] = [found["annotations"][0] | {"bbox": [0, 0, 40, 7]}]

    Image.new("RGB", (40, 7), (9, 9, 9)).save(root / "train2017" / "000000000042.png")
    with pytest.warns(UserWarning, match="has the class car"):
        train = changed(root, wide).train
    assert train.boxes[2].tolist() == [[0, 0, 20, 4]]
    assert (train[2]["image"][0] == 9).sum() == 20 * 4


def test_other_names_of_files(root: Path) -> None:
    (root / "train2017").rename(root / "pictures")
    (root / "annotations" / "instances_train2017.json").rename(root / "boxes.json")
    splits = coco(root, size=8, train_images="pictures", train_annotations="boxes.json")
    assert len(splits.train) == 3
    assert splits.train[0]["image"].shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("bbox", "expected"),
    [
        ([-0.9, 0, 20.9, 10], [0, 0, 10, 5]),
        ([30, 10, 10.9, 10.5], [15, 5, 20, 10]),
        ([-1, 0, 21, 10], [0, 0, 10, 5]),
        ([-4, -3, 8, 8], [0, 0, 2, 2.5]),
        ([30, 15, 99, 99], [15, 7.5, 20, 10]),
    ],
)
def test_boxes_are_cut_to_their_image(root: Path, bbox: list[float], expected: list[float]) -> None:
    def change(found: dict[str, Any]) -> None:
        found["annotations"][0]["bbox"] = bbox

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        splits = changed(root, change)
    assert splits.train.boxes[2, 0].tolist() == pytest.approx(expected)
    far = bbox[0] <= -1 or bbox[2] == 99
    assert [str(each.message) for each in told] == [
        f"{root}/annotations/instances_train2017.json: 1 of 3 boxes reach a pixel or more out of "
        "their image and are cut to it, first that of 000000000042.png, annotation 1."
    ] * far


@pytest.mark.parametrize(
    ("bbox", "reason"),
    [
        ([10, 5, 0, 10], "is inverted or has no area"),
        ([10, 5, 20, -3], "is inverted or has no area"),
        ([10, float("nan"), 20, 3], "is no number"),
        ([40, 0, 5, 5], "lies outside the image"),
        ([0, -9, 5, 9], "lies outside the image"),
    ],
)
def test_bad_boxes(root: Path, bbox: list[float], reason: str) -> None:
    def change(found: dict[str, Any]) -> None:
        found["annotations"][2]["bbox"] = bbox

    with pytest.raises(
        DataError, match=rf"000000000042.png, annotation 3 {reason}; .* 40 x 20 .*skip_bad"
    ):
        changed(root, change)
    with pytest.warns(UserWarning, match=r"1 of 3 boxes are left out, .*42.png, annotation 3\."):
        train = changed(root, change, skip_bad=True).train
    assert train.labels.tolist() == [[0], [-1], [1]]
    assert train.boxes[2].tolist() == [[5, 2.5, 15, 7.5]]


def delete(*keys: Any) -> Callable[[Any], None]:
    def change(found: Any) -> None:
        for key in keys[:-1]:
            found = found[key]
        del found[keys[-1]]

    return change


def put(value: Any, *keys: Any) -> Callable[[Any], None]:
    def change(found: Any) -> None:
        for key in keys[:-1]:
            found = found[key]
        found[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (delete("images"), "has no list 'images'; expected COCO's format"),
        (delete("annotations"), "has no list 'annotations'"),
        (put({}, "categories"), "has no list 'categories'"),
        (put([], "categories"), "has no category"),
        (delete("annotations", 1, "bbox"), "entry 1 of 'annotations' has no 'bbox'"),
        (delete("images", 0, "width"), "entry 0 of 'images' has no 'width'"),
        (put(7, "images", 2), "entry 2 of 'images' has no 'id'"),
        (put(4, "annotations", 1, "category_id"), "annotation 2 has the category id 4, which"),
        (put(8, "annotations", 1, "image_id"), "annotation 2 has the image id 8, which is"),
        (put([1, 2, 3], "annotations", 1, "bbox"), r"annotation 2 has the bbox \[1, 2, 3\]"),
        (put([1, 2, 3, "4"], "annotations", 1, "bbox"), "expected four numbers"),
        (put(0, "images", 0, "height"), "image 42 has the height 0 and the width 40"),
        (put(7, "images", 0, "id"), "has the id 7 twice in 'images'"),
        (put(None, "images", 0, "id"), "ids in 'images' that are no whole numbers"),
        (put("van", "categories", 1, "name"), "have different categories"),
        (put("gone.png", "images", 0, "file_name"), "1 of 3 images that are missing, .*gone.png"),
        (put([], "annotations"), "No training image of .* has an object"),
    ],
)
def test_annotations_that_cannot_be(
    root: Path, change: Callable[[Any], None], sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        changed(root, change)


@pytest.mark.parametrize("text", ["", '{"images": [', "[" * 100_000, "\xff"])
def test_what_is_no_json(root: Path, text: str) -> None:
    path = root / "annotations" / "instances_val2017.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"instances_val2017.json is no JSON .* truncated"):
        coco(root, size=20)
    path.write_text("[1]")
    with pytest.raises(DataError, match="has no list 'images'"):
        coco(root, size=20)
    path.unlink()
    with pytest.raises(DataError, match=r"There is no file .*instances_val2017.json"):
        coco(root, size=20)


def test_all_images_missing(root: Path) -> None:
    for path in (root / "val2017").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"names 3 of 3 images that are missing, .*0007.png"):
        coco(root, size=20)


@pytest.mark.parametrize("size", [0, -3, 2.5])
def test_size(root: Path, size: Any) -> None:
    with pytest.raises(DataError, match="is not a number of pixels"):
        coco(root, size=size)


def test_images_that_are_not_what_they_should_be(root: Path) -> None:
    train = coco(root, size=20).train
    path = root / "train2017" / "000000000007.png"
    Image.new("RGB", (30, 15)).save(path)
    with pytest.raises(DataError, match=r"0007.png is an image of 30 x 15 pixels, .*say 15 x 30"):
        train.__getitems__([0])
    noise = np.random.default_rng(0).integers(256, size=(30, 15, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(DataError, match=r"0007.png cannot be read as an image"):
        train.__getitems__([1, 0])
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0007.png cannot be read as an image"):
        train[0]


def test_a_large_photo_is_scaled_as_a_whole(root: Path) -> None:
    """A JPEG, decoded at a lower resolution, is what the whole image, scaled, would be."""
    down, across = np.mgrid[:333, :250] / 333
    pixels = np.stack([down, across, (down + across) / 2], -1) * 255
    photo = Image.fromarray(pixels.astype(np.uint8))
    photo.save(root / "train2017" / "photo.jpg", quality=95)

    def change(found: dict[str, Any]) -> None:
        found["images"][1] |= {"file_name": "photo.jpg", "height": 333, "width": 250}

    image = changed(root, change).train[0]["image"]
    expected = np.asarray(photo.resize((15, 20), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(image[:, :, :15].permute(1, 2, 0).numpy() - expected).max() <= 2
    assert (image[:, :, 15:] == 114).all()


def test_grey_images_become_colours(root: Path) -> None:
    Image.new("L", (15, 30), 77).save(root / "train2017" / "000000000007.png")
    assert (coco(root, size=20).train[0]["image"][:, :, :10] == 77).all()
