"""ImageClassification: batches, preparation, loss, metrics, and data sets of the user's own."""

import importlib
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from congener.errors import CongenerError, DataError, RecipeError
from congener.task import Task
from congener.tasks.image_classification import ImageClassification, Splits, data

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=GENERATOR)
LABELS = torch.arange(50) % 5


def pictures(augment: Any = "none", **division: Any) -> ImageClassification:
    splits = data.tensors(
        train_images=IMAGES,
        train_labels=LABELS,
        test_images=IMAGES[:20],
        test_labels=LABELS[:20],
        mean=[0.5, 0.4, 0.3],
        std=[0.2, 0.25, 0.5],
        **division,
    )
    return ImageClassification(splits, augment=augment)


class Pairs(Dataset[Any]):
    """As torchvision's data sets: (tensor, int), ``classes``, ``targets``."""

    def __init__(self, labels: list[int], classes: list[str] | None = None) -> None:
        self.targets = labels
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((1, 4, 4), float(index)), self.targets[index]


class Plain(Dataset[Any]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": torch.full((2,), float(index)), "labels": index % 2}


def test_splits_by_name_mapping_and_record(curves: Splits) -> None:
    task = ImageClassification({"name": "mnist1d", "teacher": 1000, "pool": 2000, "holdout": 500})
    assert isinstance(task, Task)
    assert {name: len(split) for name, split in task.splits.items()} == {  # type: ignore[arg-type]
        "train": 2000,
        "test": 500,
        "teacher": 1000,
    }
    assert set(ImageClassification(curves).splits) == {"train", "test"}
    assert task.class_names == tuple("0123456789")
    assert (task.metric, task.higher_is_better, task.ignore_label) == ("accuracy", True, -100)


def test_labelled_positions_where_others_have_no_label() -> None:
    found = pictures(teacher=10, pool=30, labelled=7).labelled
    assert found is not None
    assert found.tolist() == list(range(7))
    assert pictures().labelled is None
    assert pictures(labelled=0).labelled is None


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"data": "mnist1"}, RecipeError, r"no data set named 'mnist1'; did you mean 'mnist1d'"),
        ({"data": {"seed": 1}}, RecipeError, r"The data set is a mapping without a 'name'"),
        ({"data": {"name": "mnist1d", "techer": 5}}, RecipeError, r"did you mean 'teacher'"),
        ({"data": {"name": "cifar10"}}, RecipeError, r"'cifar10' needs the argument 'root'"),
        ({"augment": "shfit"}, RecipeError, r"no augmentation named 'shfit'; did you mean 'shift'"),
        (
            {"augment": {"name": "shift", "size": 3}},
            RecipeError,
            r"'size'; known: 'pad'",
        ),
        ({"augment": {"name": "shift", "seed": 3}}, RecipeError, r"takes no argument 'seed'"),
        ({"data": {"name": "mnist1d", "teacher": "x"}}, RecipeError, r"'teacher' of the data set"),
        ({"augment": {"name": "shift", "pad": "x"}}, RecipeError, r"'pad' .*'x'"),
        (
            {"augment": {"name": "crop_flip", "pad": 8, "mode": "reflect"}},
            RecipeError,
            r"does not work on",
        ),
        ({"augment": {"name": "crop_flip", "mode": "wrap"}}, DataError, r"mode='wrap'"),
    ],
)
def test_refused(options: dict[str, Any], error: type, sentence: str) -> None:
    images = pictures()
    given = Splits(
        images.splits["train"],  # type: ignore[arg-type]
        images.splits["test"],  # type: ignore[arg-type]
        images.class_names,  # type: ignore[arg-type]
        (0.0,) * 3,
        (1.0,) * 3,
        (3, 8, 8),
    )
    with pytest.raises(error, match=sentence):
        ImageClassification(**({"data": given} | options))


def test_curves_are_not_augmented(curves: Splits) -> None:
    with pytest.raises(DataError, match="use augment='none' for this data"):
        ImageClassification(curves, augment="shift")


def test_build_model_fills_in(curves: Splits) -> None:
    task = ImageClassification(curves)
    for name in ("mlp", "cnn1d"):
        network = task.build_model(name)
        assert network(torch.zeros(2, 1, 40)).shape == (2, 10)
    assert task.build_model("mlp", num_classes=3, hidden=[5])(torch.zeros(2, 1, 40)).shape == (2, 3)
    images = pictures()
    for name in ("mlp", "small_cnn", "resnet8x4"):
        assert images.build_model(name)(torch.zeros(2, 3, 8, 8)).shape == (2, 5)
    with pytest.raises(RecipeError, match="did you mean"):
        task.build_model("mlpp")


def test_collate() -> None:
    task = pictures()
    train: Any = task.splits["train"]
    ready = train.__getitems__([4, 1])
    assert task.collate(ready) == ready
    one_by_one = task.collate([train[4], train[1]])
    assert one_by_one["index"].tolist() == [4, 1]
    assert torch.equal(one_by_one["image"], ready["image"])
    pairs = task.collate([(IMAGES[3], 7), (IMAGES[4], 8)])
    assert set(pairs) == {"image", "labels"}
    assert pairs["labels"].tolist() == [7, 8]
    assert pairs["labels"].dtype == torch.int64
    mappings = task.collate([Plain()[1], Plain()[2]])
    assert mappings["image"].tolist() == [[1.0, 1.0], [2.0, 2.0]]
    loader = DataLoader(train, batch_size=20, collate_fn=task.collate)
    assert [len(batch["labels"]) for batch in loader] == [20, 20, 10]


@pytest.mark.parametrize(
    ("samples", "sentence"),
    [
        ([(object(), 1)], r"cannot be stacked into a batch; expected \(tensor, int\)"),
        ([(torch.zeros(2), 1), (torch.zeros(3), 1)], r"cannot be stacked .* one shape"),
        ([(torch.zeros(2), 1, 5)], r"has 3 parts; expected \(image, label\)"),
        ([{"image": torch.zeros(2), "target": 1}], r"has no 'labels', only \['image', 'target'\]"),
    ],
)
def test_collate_refuses(samples: list[Any], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        pictures().collate(samples)


def test_prepare_normalises() -> None:
    task = pictures()
    batch = task.collate(task.splits["train"].__getitems__([0, 9]))  # type: ignore[attr-defined]
    made = task.prepare(batch, train=False, seed=0, epoch=0)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.5])
    expected = (IMAGES[[0, 9]] / 255 - mean[:, None, None]) / std[:, None, None]
    assert torch.allclose(made["image"], expected, atol=1e-6)
    assert batch["image"].dtype == torch.uint8  # the batch given is left as it was
    assert made["labels"] is batch["labels"]


def test_prepare_augments_training_only_and_by_key() -> None:
    task = pictures({"name": "crop_flip", "pad": 2})
    plain = pictures()
    batch = task.collate(task.splits["train"].__getitems__(list(range(50))))  # type: ignore[attr-defined]
    still = task.prepare(batch, train=False, seed=0, epoch=0)["image"]
    assert torch.equal(still, plain.prepare(batch, train=True, seed=0, epoch=0)["image"])
    moved = task.prepare(batch, train=True, seed=0, epoch=0)["image"]
    assert not torch.equal(moved, still)
    part = {key: value[[30, 2]] for key, value in batch.items()}
    assert torch.equal(task.prepare(part, train=True, seed=0, epoch=0)["image"], moved[[30, 2]])
    assert not torch.equal(task.prepare(batch, train=True, seed=0, epoch=1)["image"], moved)
    assert not torch.equal(task.prepare(batch, train=True, seed=1, epoch=0)["image"], moved)


def test_padding_is_black_before_normalising() -> None:
    task = pictures({"name": "shift", "pad": 7})
    batch = task.collate(task.splits["train"].__getitems__(list(range(50))))  # type: ignore[attr-defined]
    made = task.prepare(batch, train=True, seed=0, epoch=0)["image"]
    assert made[:, 0].min() == pytest.approx(-0.5 / 0.2)


def test_call_and_logits() -> None:
    task = pictures()
    logits = torch.randn(2, 5)
    assert task.call(lambda images: images * 2, {"image": torch.ones(1)}) == 2  # type: ignore[arg-type]
    assert task.logits(logits) is logits
    assert task.logits(SimpleNamespace(logits=logits)) is logits
    with pytest.raises(DataError, match="returned tuple; expected a tensor of logits"):
        task.logits((logits,))


def test_loss_is_the_mean_over_labelled_samples() -> None:
    task = pictures()
    logits = torch.randn(6, 5, requires_grad=True, generator=GENERATOR)
    labels = torch.tensor([0, -100, 3, 4, -100, 1])
    loss = task.loss(logits, {"labels": labels})
    kept = [i for i in range(6) if labels[i] >= 0]
    rows = logits.detach()
    plain = sum(float(rows[i].logsumexp(0) - rows[i, labels[i]]) for i in kept) / len(kept)
    assert float(loss.detach()) == pytest.approx(plain)
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad[[1, 4]] == 0).all()
    half = task.loss(logits.detach().bfloat16(), {"labels": labels})
    assert half.dtype == torch.float32


def test_loss_without_any_label_is_zero_with_a_graph() -> None:
    logits = torch.full((3, 5), 1e4, requires_grad=True)
    loss = pictures().loss(logits, {"labels": torch.full((3,), -100)})
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_metrics_equal_a_plain_count() -> None:
    task = pictures()
    logits = torch.randn(64, 5, generator=GENERATOR)
    labels = torch.randint(0, 5, (64,), generator=GENERATOR)
    labels[::7] = -100
    metrics = task.metrics(torch.device("cpu"))
    for rows in torch.arange(64).split(13):
        record = SimpleNamespace(logits=logits[rows])
        metrics.update(record, {"labels": labels[rows]})
    metrics.update(logits[:4], {"labels": torch.full((4,), -100)})
    kept = [i for i in range(64) if labels[i] >= 0]
    right = [i for i in kept if int(logits[i].argmax()) == int(labels[i])]
    recalls = [
        sum(int(labels[i]) == c for i in right) / sum(int(labels[i]) == c for i in kept)
        for c in range(5)
    ]
    figures = metrics.compute()
    assert set(figures) == {"accuracy", "macro_accuracy", "cross_entropy"}
    assert figures["accuracy"] == pytest.approx(len(right) / len(kept))
    assert figures["macro_accuracy"] == pytest.approx(sum(recalls) / 5)
    assert figures["cross_entropy"] == pytest.approx(float(F.cross_entropy(logits, labels)))
    assert all(type(value) is float for value in figures.values())
    assert task.metrics(torch.device("cpu")) is not metrics


def test_a_diverged_network_shows() -> None:
    metrics = pictures().metrics(torch.device("cpu"))
    metrics.update(torch.full((4, 5), torch.nan), {"labels": torch.arange(4)})
    metrics.update(torch.zeros(4, 5), {"labels": torch.arange(4)})
    assert math.isnan(metrics.compute()["cross_entropy"])


def test_own_data_sets() -> None:
    task = ImageClassification.from_datasets(Pairs([0, 1, 2, 1]), Pairs([2, 0]))
    assert task.class_names == ("0", "1", "2")
    assert task.input_shape == (1, 4, 4)
    batch = task.collate([task.splits["train"][i] for i in (3, 1)])
    made = task.prepare(batch, train=True, seed=0, epoch=0)
    assert made["image"][:, 0, 0, 0].tolist() == [3.0, 1.0]  # no second normalisation
    assert task.build_model("mlp")(made["image"]).shape == (2, 3)
    named = ImageClassification.from_datasets(Pairs([0, 1], ["cat", "dog", "eel"]), Pairs([1]))
    assert named.class_names == ("cat", "dog", "eel")
    subset = Subset(Pairs([0, 1, 0, 3], list("abcd")), [0, 1, 2])
    assert ImageClassification.from_datasets(subset, subset).class_names == tuple("abcd")
    stacked = TensorDataset(torch.zeros(4, 1, 4, 4), torch.tensor([0, 1, -100, 3]))
    assert len(ImageClassification.from_datasets(stacked, stacked).class_names) == 4
    asked = ImageClassification.from_datasets(Plain(), Plain(), num_classes=2)
    assert (asked.class_names, asked.input_shape) == (("0", "1"), (2,))
    both = ImageClassification.from_datasets(
        Plain(), Plain(), num_classes=2, class_names=["even", "odd"]
    )
    assert both.class_names == ("even", "odd")


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])


class Objects(Pairs):
    def __getitem__(self, index: int) -> Any:
        return object(), 0


@pytest.mark.parametrize(
    ("train", "options", "sentence"),
    [
        (Plain(), {}, r"number of classes cannot be told .*; pass num_classes"),
        (Pairs([]), {}, r"The training set is empty"),
        (Stream(), {}, r"training set has no length or no index; use a map-style Dataset"),
        (Pairs([0, 1, 5]), {"num_classes": 3}, r"label 5 at sample 2, outside the range 0 to 2"),
        (Pairs([0, 1, -1]), {"num_classes": 3}, r"label -1 at sample 2"),
        (Pairs([1, 1]), {"num_classes": 3}, r"has only one class"),
        (Pairs([0, 0]), {}, r"has only one class"),
        (
            Pairs([0, 1]),
            {"class_names": ["a"], "num_classes": 2},
            r"1 class names for num_classes=2",
        ),
        (Objects([0, 1]), {}, r"first image is of type object; .*ToTensor"),
    ],
)
def test_own_data_sets_refused(train: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        ImageClassification.from_datasets(train, Pairs([0]), **options)


def test_unlabelled_test_samples_of_own_data_are_named() -> None:
    with pytest.raises(DataError, match=r"The test set has the label 9 at sample 1"):
        ImageClassification.from_datasets(Pairs([0, 1]), Pairs([0, 9]))


@pytest.mark.parametrize("missing", ["torchvision", "torchmetrics"])
def test_missing_extra_names_the_install_line(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = "congener.tasks.image_classification"
    for loaded in [name for name in sys.modules if name.startswith(pack)]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        CongenerError, match=rf"'{missing}'; install it with: pip install \"congener"
    ):
        importlib.import_module(pack)


@pytest.mark.parametrize(("module", "ask"), [("mnist1d", "data"), ("timm", "model")])
def test_missing_lazy_library(
    module: str, ask: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for loaded in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    task = pictures()
    with pytest.raises(CongenerError, match=r'needs the package .*congener\[image\]"'):
        ImageClassification("mnist1d") if ask == "data" else task.build_model("timm:resnet18")
