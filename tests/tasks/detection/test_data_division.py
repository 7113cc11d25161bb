"""How images with boxes are divided, and tensors of the user's own."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from congener.engine.held import held
from congener.errors import DataError
from congener.tasks.detection.data import tensors
from congener.tasks.detection.data.splits import (
    IMAGENET_MEAN,
    Splits,
    divide,
    labelled_positions,
)

NAMES = ("cat", "dog", "emu")


def box(*sides: float) -> Tensor:
    return torch.tensor(sides, dtype=torch.float32).view(-1, 4)


def given(count: int = 30, **changes: Any) -> dict[str, Any]:
    """Image i is of the byte i, 8 high, 10 wide, and has i % 3 objects of the class i % 2."""
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None]
    options: dict[str, Any] = {
        "train_images": pixels.expand(-1, 3, 8, 10),
        "train_boxes": [box(*[1, 2, 4, 7] * (i % 3)) for i in range(count)],
        "train_labels": [torch.full((i % 3,), i % 2) for i in range(count)],
        "test_images": torch.zeros(2, 3, 8, 10, dtype=torch.uint8),
        "test_boxes": [box(0, 0, 10, 8), box()],
        "test_labels": [torch.tensor([0]), torch.tensor([], dtype=torch.int64)],
        "class_names": NAMES,
    }
    return options | changes


def split(count: int = 30, **changes: Any) -> Splits:
    return tensors(**given(count, **changes))


def test_defaults_leave_nothing_out() -> None:
    splits = split()
    assert splits.teacher is None
    assert splits.class_names == NAMES
    assert (splits.size, splits.area_scale) == ((8, 10), 1.0)
    assert splits.mean == IMAGENET_MEAN
    train, test = splits.train, splits.test
    assert (len(train), len(test)) == (30, 2)
    assert train.boxes.shape == (30, 2, 4)
    assert test.boxes.shape == (2, 1, 4)
    assert train.boxes.dtype == torch.float32
    assert train.labels.dtype == torch.int64
    assert train.crowd.dtype == torch.bool
    assert not train.crowd.any()
    assert train.labels[:6].tolist() == [[-1, -1], [1, -1], [0, 0], [-1, -1], [0, -1], [1, 1]]
    assert train.boxes[1].tolist() == [[1, 2, 4, 7], [0, 0, 0, 0]]
    assert test.labels.tolist() == [[0], [-1]]


def test_a_batch_is_one_mapping() -> None:
    train = split().train
    batch = train.__getitems__([5, 1])
    assert list(batch) == ["image", "boxes", "labels", "crowd", "index"]
    assert batch["index"].tolist() == [5, 1]
    assert batch["image"][:, 2, 7, 9].tolist() == [5, 1]
    assert batch["labels"].tolist() == [[1, 1], [1, -1]]
    assert held(train) is not None
    again = pickle.loads(pickle.dumps(train))
    assert torch.equal(again[29]["boxes"], train[-1]["boxes"])


def test_parts_are_disjoint_and_in_order() -> None:
    splits = split(teacher=6, pool=9, holdout=4, labelled=5)
    assert splits.teacher is not None
    assert splits.teacher.ids.tolist() == list(range(6))
    assert splits.train.ids.tolist() == list(range(6, 15))
    assert splits.test.ids.tolist() == list(range(26, 30))
    known = labelled_positions(splits.train.labels)
    assert known is not None
    assert len(known) == 5
    assert labelled_positions(splits.teacher.labels) is None
    whole = split().train
    for row, place in enumerate(splits.train.ids.tolist()):
        if row in known:
            assert torch.equal(splits.train.labels[row], whole.labels[place])
            assert torch.equal(splits.train.boxes[row], whole.boxes[place])
        else:
            assert (splits.train.labels[row] == -100).all()
            assert (splits.train.boxes[row] == 0).all()
    more = labelled_positions(split(teacher=6, pool=9, holdout=4, labelled=6).train.labels)
    assert more is not None
    assert set(known.tolist()) < set(more.tolist())


@pytest.mark.parametrize("rare", [0, 11, 29])
def test_every_class_is_among_the_labelled(rare: int) -> None:
    labels = given()["train_labels"]
    boxes = given()["train_boxes"]
    labels[rare], boxes[rare] = torch.tensor([2]), box(0, 0, 3, 3)
    splits = split(train_labels=labels, train_boxes=boxes, labelled=3)
    assert set(splits.train.labels.unique().tolist()) == {-100, -1, 0, 1, 2} - (
        set() if (splits.train.labels == -1).any() else {-1}
    )


@pytest.mark.parametrize(("apart", "whole"), [(8, 4), (4, 8)])
def test_a_crowd_does_not_stand_for_its_class(apart: int, whole: int) -> None:
    options = given()
    crowd = [torch.zeros(len(row), dtype=torch.bool) for row in options["train_labels"]]
    for number in (apart, whole):
        options["train_labels"][number] = torch.full((number % 3,), 2)
    crowd[apart][:] = True
    train = tensors(**options, train_crowd=crowd, labelled=3).train
    assert train.labels[whole, 0] == 2
    assert train.labels[apart].tolist() == [-100, -100]
    assert not train.crowd.any()
    assert tensors(**options, train_crowd=crowd).train.crowd[apart, 0]


def test_images_without_annotations_come_last() -> None:
    options = given()
    for number in range(27):
        options["train_labels"][number] = torch.tensor([-100])
        options["train_boxes"][number] = box(0, 0, 0, 0)
    train = tensors(**options, labelled=4).train
    assert labelled_positions(train.labels).tolist() == [27, 28, 29]  # type: ignore[union-attr]
    assert (train.labels[:27] == -100).all()
    assert train.labels[28].tolist() == [0, -1]


def test_padded_tensors_are_the_same() -> None:
    one = split()
    padded = split(
        train_boxes=one.train.boxes.numpy().astype(np.float64),
        train_labels=one.train.labels.int(),
        train_crowd=one.train.crowd,
    )
    assert torch.equal(one.train.boxes, padded.train.boxes)
    assert torch.equal(one.train.labels, padded.train.labels)


def test_the_given_tensors_are_left_as_they_are() -> None:
    one = split().train
    before = one.boxes.clone(), one.labels.clone()
    split(train_boxes=one.boxes, train_labels=one.labels, labelled=3)
    assert torch.equal(one.boxes, before[0])
    assert torch.equal(one.labels, before[1])


def test_boxes_are_cut_to_the_image() -> None:
    options = given()
    options["train_boxes"][1] = box(-0.5, 0, 4, 8.75)
    assert tensors(**options).train.boxes[1, 0].tolist() == [0, 0, 4, 8]
    options["train_boxes"][2] = box(2, 3, 11, 8, 2, -5, 10, 9)
    with pytest.warns(
        UserWarning, match=r"training tensors: 2 of 30 boxes reach .* first that of image 2\."
    ):
        train = tensors(**options).train
    assert train.boxes[2].tolist() == [[2, 3, 10, 8], [2, 0, 10, 8]]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (box(4, 1, 2, 3), r"\[4.0, 1.0, 2.0, 3.0\] .* of image 1 is inverted or has no area"),
        (box(1, 5, 4, 5), "is inverted or has no area; the image has 10 x 8 pixels; mend"),
        (box(float("nan"), 1, 2, 3), "is no number"),
        (box(0, 0, float("inf"), 3), "is no number"),
        (box(10, 0, 12, 3), "lies outside the image"),
        (box(2, -4, 5, 0), "lies outside the image"),
    ],
)
def test_bad_boxes(bad: Tensor, reason: str) -> None:
    options = given()
    options["train_boxes"][1] = bad
    with pytest.raises(DataError, match=reason):
        tensors(**options)


def test_many_bad_boxes_are_one_sentence() -> None:
    options = given()
    options["train_boxes"][1] = box(0, 0, 0, 0)
    options["train_boxes"][2] = box(0, 0, 0, 0, 9, 9, 3, 3)
    with pytest.raises(DataError, match=r"image 1 .* and 2 more boxes are as bad"):
        tensors(**options)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train_images": torch.zeros(30, 3, 8, 10)}, "type torch.float32 .* expected uint8"),
        ({"test_images": torch.zeros(2, 1, 8, 10).byte()}, r"shape \(2, 1, 8, 10\)"),
        ({"test_images": torch.zeros(3, 3, 8, 10).byte()}, "have 3 images, but boxes of 2"),
        ({"test_images": torch.zeros(2, 3, 8, 9).byte(), "test_boxes": [box(0, 0, 9, 8), box()]},
         "are 8 x 10 and the test images 8 x 9 pixels"),
        ({"test_boxes": [box(), box()]}, r"boxes of shape \(0, 4\), labels of shape \(1,\)"),
        ({"test_labels": [torch.tensor([0.5]), torch.tensor([])]}, "type torch.float32; expected"),
        ({"test_labels": [torch.tensor([3]), torch.tensor([]).long()]},
         "label 3 at image 0, row 0; expected 0 to 2 for its 3 classes"),
        ({"test_labels": [torch.tensor([-2]), torch.tensor([]).long()]}, "label -2"),
        ({"test_labels": [torch.tensor([-1]), torch.tensor([]).long()]}, "to test on has an obj"),
        ({"test_labels": [torch.tensor([0, -100]), torch.tensor([]).long()],
          "test_boxes": [box(0, 0, 10, 8, 0, 0, 9, 8), box()]}, "some rows of image 0"),
        ({"train_labels": [torch.full((i % 3,), -1) for i in range(30)]}, "to learn takes some"),
        ({"test_images": torch.zeros(0, 3, 8, 10).byte(), "test_boxes": [], "test_labels": []},
         "have no image"),
        ({"mean": (0.5,)}, "three values each"),
        ({"std": (0.5, 0.5, 0.0)}, "std above 0"),
        ({"labelled": 31}, "more than the 30"),
        ({"teacher": 20, "pool": 11}, "too few"),
    ],
)  # fmt: skip
def test_what_does_not_fit(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        split(**changes)


def test_an_empty_part_is_refused() -> None:
    splits = split()
    with pytest.raises(DataError, match="The test set of it is empty"):
        divide("it", splits.train, splits.test.part(slice(0, 0)), class_names=NAMES)


def test_a_class_that_is_only_tested_is_told() -> None:
    labels = [torch.tensor([2]), torch.tensor([], dtype=torch.int64)]
    with pytest.warns(UserWarning, match="of the given tensors has the class emu: nothing tells"):
        split(test_labels=labels)
