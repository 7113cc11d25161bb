"""How a training set is divided, and arrays of the user's own."""

import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from mnist1d.data import get_dataset_args, make_dataset

from congener.errors import DataError
from congener.tasks.image_classification import Splits, data


def arrays(count: int = 60, classes: int = 3, **changes: Any) -> Splits:
    """Sample i has the label i % classes and the value i in every pixel."""
    options: dict[str, Any] = {
        "train_images": torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(
            -1, 2, 4, 4
        ),
        "train_labels": torch.arange(count) % classes,
        "test_images": torch.zeros(6, 2, 4, 4, dtype=torch.uint8),
        "test_labels": torch.arange(6) % classes,
    }
    return data.tensors(**(options | changes))


def test_mnist1d_is_the_published_set(curves: Splits) -> None:
    published = make_dataset(get_dataset_args())
    assert curves.input_shape == (1, 40)
    assert (len(curves.train), len(curves.test)) == (4000, 1000)
    assert np.array_equal(curves.train.images[:, 0].numpy(), published["x"].astype(np.float32))
    assert curves.train.labels.tolist() == published["y"].tolist()
    assert curves.test.labels.tolist() == published["y_test"].tolist()
    assert (curves.mean, curves.std) == ((0.0,), (1.0,))


def test_mnist1d_leaves_the_generators_alone_and_ignores_them(curves: Splits) -> None:
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    expected = random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    drawn = data.mnist1d(extra=20)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected  # noqa: NPY002
    assert torch.equal(drawn.train.images[:4000], curves.train.images)


def test_mnist1d_extra_pool() -> None:
    splits = data.mnist1d(extra=50, extra_seed=7, labelled=100, holdout=500)
    assert len(splits.train) == 3550
    assert (splits.train.labels[:100] >= 0).all()
    assert (splits.train.labels[100:] == -100).all()
    assert splits.train.ids[3500:].tolist() == list(range(4000, 4050))
    assert len(torch.unique(splits.train.images.flatten(1), dim=0)) == 3550
    with pytest.raises(DataError, match="extra=55 is not a multiple of 10"):
        data.mnist1d(extra=55)
    with pytest.raises(DataError, match="extra_seed=42 would repeat"):
        data.mnist1d(extra=50, extra_seed=42)


def test_parts_are_disjoint_and_where_documented() -> None:
    splits = arrays(teacher=20, pool=25, labelled=7, holdout=10)
    assert splits.teacher is not None
    assert splits.teacher.ids.tolist() == list(range(20))
    assert splits.train.ids.tolist() == list(range(20, 45))
    assert splits.test.ids.tolist() == list(range(50, 60))
    for part in (splits.teacher, splits.train, splits.test):
        assert part.images[:, 0, 0, 0].tolist() == part.ids.tolist()
    assert splits.train.labels.tolist() == [i % 3 for i in range(20, 27)] + [-100] * 18
    assert splits.teacher.labels.tolist() == [i % 3 for i in range(20)]
    assert splits.test.labels.tolist() == [i % 3 for i in range(50, 60)]


def test_defaults_leave_nothing_out() -> None:
    splits = arrays()
    assert splits.teacher is None
    assert (len(splits.train), len(splits.test)) == (60, 6)
    assert len(arrays(teacher=20, holdout=5).train) == 35
    assert (arrays(labelled=0, pool=9).train.labels == -100).all()


def test_balanced_labels() -> None:
    labels = torch.tensor([0] * 10 + [1] * 4 + [2] * 6)
    images = torch.zeros(20, 2, 4, 4, dtype=torch.uint8)
    given = {"train_images": images, "train_labels": labels, "balanced": True}
    kept = arrays(**given, labelled=9).train.labels
    assert [(kept == c).sum().item() for c in (0, 1, 2, -100)] == [3, 3, 3, 11]
    assert kept[10:13].tolist() == [1, 1, 1]
    with pytest.raises(DataError, match="labelled=10 cannot be balanced over 3 classes"):
        arrays(**given, labelled=10)
    with pytest.raises(DataError, match=r"needs 5 samples of each class, .* only 4 of class 1"):
        arrays(**given, labelled=15)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"teacher": 30, "pool": 25, "holdout": 10},
            r"60 training samples, too few for teacher=30",
        ),
        ({"teacher": 60}, r"too few for teacher=60 \+ pool=at least 1 \+ holdout=0"),
        ({"holdout": 60}, r"too few"),
        ({"pool": 5, "labelled": 6}, r"labelled=6 is more than the 5 samples the student sees"),
        ({"pool": 0}, r"pool=0 is not a number of samples"),
        ({"teacher": -1}, r"teacher=-1 is not a number of samples"),
        ({"teacher": "many"}, r"teacher='many' is not a number of samples"),
        ({"teacher": 1}, r"The first 1 samples of .* has only the class 0"),
        ({"test_labels": torch.full((6,), -100)}, r"to test on has a label"),
        ({"train_labels": torch.full((60,), -100), "num_classes": 3}, r"has no labelled sample"),
        ({"train_labels": torch.zeros(60, dtype=torch.long)}, r"label 1 at sample 1, .* 0 to 0"),
        (
            {"train_labels": torch.zeros(60, dtype=torch.long), "num_classes": 3},
            r"training set .* has only the class 0",
        ),
        ({"num_classes": 2}, r"label 2 at sample 2, outside the range 0 to 1 of its 2 classes"),
        ({"train_labels": torch.arange(60) - 1, "num_classes": 60}, r"label -1 at sample 0"),
        ({"class_names": ["a", "b"], "num_classes": 3}, r"2 class names for num_classes=3"),
        ({"train_labels": torch.zeros(59, dtype=torch.long)}, r"60 images but 59 labels"),
        (
            {"train_labels": torch.zeros(60)},
            r"labels of type torch.float32; expected class numbers",
        ),
        ({"test_images": torch.zeros(6, 2, 4, 5, dtype=torch.uint8)}, r"\(2, 4, 4\) but test"),
        (
            {"test_images": torch.zeros(6, 2, 4, 4)},
            r"are torch.uint8 but test images torch.float32",
        ),
        ({"train_images": torch.zeros(60)}, r"have the shapes \(60,\) and \(60,\)"),
        ({"mean": [0.5]}, r"mean has 1 values for images of 2 channels"),
        ({"std": [0.5, 0.0]}, r"has a value that is not positive"),
        (
            {"train_images": torch.zeros(0, 2, 4, 4), "train_labels": torch.zeros(0).long()},
            r"are empty|is empty",
        ),
    ],
)
def test_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence) as caught:
        arrays(**options)
    assert "\n" not in str(caught.value)


def test_refuses_nan() -> None:
    images = torch.zeros(6, 2, 4, 4)
    bad = images.clone()
    bad[3, 1] = float("nan")
    with pytest.raises(DataError, match="NaN or infinite"):
        data.tensors(
            train_images=bad,
            train_labels=torch.arange(6) % 2,
            test_images=images,
            test_labels=torch.arange(6) % 2,
        )


def test_statistics_of_uint8() -> None:
    splits = arrays()
    values = torch.arange(60).double() / 255
    assert splits.mean == pytest.approx([float(values.mean())] * 2)
    assert splits.std == pytest.approx([float(values.std(correction=0))] * 2)


def test_numpy_and_float_vectors() -> None:
    rows = np.arange(12.0).reshape(4, 3)
    splits = data.tensors(
        train_images=rows,  # type: ignore[arg-type]
        train_labels=np.array([0, 1, 0, 1]),  # type: ignore[arg-type]
        test_images=rows,  # type: ignore[arg-type]
        test_labels=np.array([0, 1, 1, 0]),  # type: ignore[arg-type]
        class_names=["no", "yes"],
    )
    assert splits.input_shape == (3,)
    assert splits.train.images.dtype == torch.float32
    assert splits.class_names == ("no", "yes")


def test_data_set_protocol() -> None:
    train = arrays().train
    batch = train.__getitems__([5, 2, 59])
    assert batch["index"].tolist() == [5, 2, 59]
    assert batch["labels"].tolist() == [2, 2, 2]
    assert batch["image"][:, 0, 0, 0].tolist() == [5, 2, 59]
    one = train[-1]
    assert (int(one["index"]), int(one["labels"])) == (59, 2)
    with pytest.raises(IndexError):
        train[60]
    copy = pickle.loads(pickle.dumps(train))
    assert torch.equal(copy.images, train.images)
