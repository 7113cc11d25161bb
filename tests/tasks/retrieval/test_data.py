"""How identities are divided, and what data are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.tasks.retrieval.tiny import arrays, splits

from congener.engine.held import held
from congener.errors import DataError
from congener.tasks.retrieval import IdentityDataset, data


def test_a_batch_is_rows_of_the_columns() -> None:
    found = splits().train
    assert len(found) == 40
    one, some = found[-1], found.__getitems__([5, 0])
    assert (int(one["index"]), int(one["labels"]), int(one["camera"])) == (39, 19, 1)
    assert some["index"].tolist() == [5, 0]
    assert some["camera"].tolist() == [1, 0]
    assert torch.equal(some["image"], found.images[[5, 0]])
    kept = held(found)
    assert kept is not None
    assert set(kept.columns) == {"image", "labels", "camera"}
    with pytest.raises(IndexError):
        found[40]


def test_without_options_all_is_as_given() -> None:
    found, given = splits(), arrays()
    assert torch.equal(found.train.labels, given["train_labels"])
    assert torch.equal(found.test.images, given["test_images"])
    assert torch.equal(found.test.cameras, given["test_cameras"])
    assert found.teacher is None
    assert found.names == ()


def test_few_labelled_identities() -> None:
    found = splits(labelled=6, teacher="all")
    assert found.train.labels.tolist() == [*(n // 2 for n in range(12)), *[-100] * 28]
    assert found.teacher is not None
    assert found.teacher.labels.tolist() == [n // 2 for n in range(40)]
    assert torch.equal(found.teacher.images, found.train.images)
    assert splits(labelled=6).teacher is None


def test_a_holdout_is_the_last_training_identities() -> None:
    found = splits(labelled=6, teacher="all", holdout=5)
    assert torch.unique(found.test.labels).tolist() == [15, 16, 17, 18, 19]
    assert len(found.test) == 10
    assert len(found.train) == 30
    assert found.teacher is not None
    assert int(found.teacher.labels.max()) == 14
    assert torch.equal(found.test.images, arrays()["train_images"][30:])


def test_images_without_a_label_stay_where_they_are() -> None:
    labels = arrays()["train_labels"].clone()
    labels[20:30:2] = -100
    found = splits(train_labels=labels, labelled=3, holdout=4)
    assert found.test.labels.tolist() == [n // 2 for n in range(32, 40)]
    assert torch.equal(found.train.images, arrays()["train_images"][:32])
    assert found.train.labels.tolist() == [0, 0, 1, 1, 2, 2, *[-100] * 26]


def test_each_image_has_a_camera_of_its_own_where_none_are_given() -> None:
    found = splits(train_cameras=None, test_cameras=None)
    assert found.test.cameras.tolist() == list(range(20))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"labelled": 1}, "has 1 labelled identities; to learn"),
        ({"labelled": 0}, "labelled=0 is not a number of identities"),
        ({"holdout": 1.5}, "holdout=1.5 is not a number of identities"),
        ({"labelled": 18, "holdout": 3}, r"has 20 labelled .* labelled=18 \+ holdout=3; lower"),
        ({"holdout": 19}, r"labelled=at least 2 \+ holdout=19"),
        ({"train_labels": torch.full((40,), 7)}, "has 1 labelled training identities, too few"),
        ({"train_labels": torch.full((40,), -100)}, "has 0 labelled training identities, too few"),
        ({"train_labels": torch.arange(40)}, "No labelled identity .* has two images"),
        ({"train_labels": torch.arange(40) - 1}, "has the label -1 at image 0; number the ident"),
        ({"train_labels": torch.zeros(39, dtype=torch.int64)}, "has 40 images, 39 labels and 40"),
        ({"teacher": "some"}, "teacher='some': expected 'all'"),
        ({"train_labels": torch.zeros(40)}, "training labels are torch.float32 of the shape"),
        ({"test_cameras": torch.zeros(20, 1).long()}, r"test cameras .* of the shape \(20, 1\)"),
        ({"test_cameras": torch.zeros(20).long()}, "All test images .* come from one camera"),
        ({"test_labels": torch.full((20,), 3)}, "The test set of .* has 1 identities; to find"),
        ({"test_labels": torch.full((20,), -100)}, "The test set of .* has 0 identities"),
        ({"test_labels": torch.arange(20)}, "No test identity .* has images of two cameras"),
        ({"test_images": torch.zeros(20, 3, 9, 9, dtype=torch.uint8)}, "shape .* must be equal"),
        ({"train_images": torch.zeros(40, 3, 8, 8)}, "type torch.float32; expected .* of uint8"),
        ({"train_images": torch.zeros(40, 1, 8, 8).byte(), "test_images": torch.zeros(20, 1, 8, 8)
          .byte()}, r"shape \(40, 1, 8, 8\) .*; expected \(samples, 3"),
    ],
)  # fmt: skip
def test_data_of_no_use(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        splits(**changes)


def test_an_empty_test_set() -> None:
    empty = {
        f"test_{name}": arrays()[f"test_{name}"][:0] for name in ("images", "labels", "cameras")
    }
    with pytest.raises(DataError, match="The test set of the given arrays is empty"):
        splits(**empty)


def test_a_part_of_a_data_set() -> None:
    whole = splits().train
    part = whole.part(torch.tensor([3, 1]))
    assert isinstance(part, IdentityDataset)
    assert part.labels.tolist() == [1, 0]


def picture(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (6, 9), grey).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for camera in ("left", "right"):
        for number in range(6):
            part = "train" if number < 4 else "test"
            path = tmp_path / part / camera / f"person-{number}" / "1.png"
            picture(path, 10 * number + (5 if camera == "right" else 0))
    (tmp_path / "train" / "left" / "person-0" / "notes.txt").write_text("no image")
    return tmp_path


def test_a_size_that_no_picture_has(folder: Path) -> None:
    with pytest.raises(DataError, match="size=0 is not a number of pixels"):
        data.image_identities(folder, size=0)


def test_folders_of_cameras_and_identities(folder: Path) -> None:
    found = data.image_identities(folder, size=4)
    assert found.train.images.shape == (8, 3, 4, 4)
    assert sorted(found.names) == [f"person-{n}" for n in range(6)]
    assert sorted(found.names[:4]) == [f"person-{n}" for n in range(4)]
    assert found.train.cameras.tolist() == [0] * 4 + [1] * 4
    for dataset in (found.train, found.test):
        for image, label, camera in zip(
            dataset.images, dataset.labels, dataset.cameras, strict=True
        ):
            number = int(found.names[int(label)][-1])
            assert (image == 10 * number + 5 * int(camera)).all()


def test_folders_that_are_not_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no folder .*nowhere/train; expected"):
        data.image_identities(folder / "nowhere")
    for path in (folder / "test").rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="test has no image at CAMERA/IDENTITY"):
        data.image_identities(folder)


def test_a_damaged_picture(folder: Path) -> None:
    path = folder / "train" / "left" / "person-0" / "1.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"person-0/1.png cannot be read as an image"):
        data.image_identities(folder)
