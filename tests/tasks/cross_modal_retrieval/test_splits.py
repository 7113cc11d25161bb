"""Pairs: what a modality is, how pairs are divided, and what bad pairs get."""

from typing import Any

import numpy as np
import pytest
import torch
from tests.tasks.cross_modal_retrieval.conftest import arrays, mixed, small

from congener.engine.held import held
from congener.errors import DataError
from congener.tasks.cross_modal_retrieval import data
from congener.tasks.cross_modal_retrieval.data.splits import as_bytes, as_text, kind_of


def test_texts_survive_their_bytes() -> None:
    texts = ["", "cat", "naïve café ☕", "a\0b"]
    assert [as_text(row) for row in as_bytes(texts)] == ["", "cat", "naïve café ☕", "a b"]
    assert as_bytes([""]).shape == (1, 1)


@pytest.mark.parametrize(
    ("shape", "kind", "expected"),
    [
        ((4, 3, 8, 8), torch.uint8, "image"), ((4, 3, 8, 8), torch.float32, "image"),
        ((4, 9), torch.uint8, "text"), ((4, 9), torch.int16, "sound"),
        ((4, 9), torch.float32, "vector"),
    ],
)  # fmt: skip
def test_kinds(shape: tuple[int, ...], kind: torch.dtype, expected: str) -> None:
    assert kind_of(torch.zeros(shape, dtype=kind)) == expected


def test_a_tensor_of_no_kind() -> None:
    with pytest.raises(DataError, match=r"torch.int64 of the shape \(4, 9\); expected images"):
        kind_of(torch.zeros(4, 9, dtype=torch.int64))


def test_queries_come_first_and_do_not_search_themselves() -> None:
    test = small().test
    assert test.query.tolist() == [True] * 9 + [False] * 12
    given = arrays()
    assert torch.equal(test.pairs.first, torch.cat([given["query_first"], given["database_first"]]))
    assert torch.equal(test.pairs.labels[9:], given["database_labels"])


def test_without_a_database_the_training_pairs_are_searched_with_their_labels() -> None:
    given = {k: v for k, v in arrays().items() if not k.startswith("database")}
    splits = data.paired_tensors(**given, labelled=5, teacher="all")
    assert torch.equal(splits.test.pairs.second[9:], given["train_second"])
    assert torch.equal(splits.test.pairs.labels[9:], given["train_labels"])
    assert (splits.train.pairs.labels != -100).nonzero().flatten().tolist() == [0, 1, 2, 3, 4]
    assert splits.teacher is not None
    assert torch.equal(splits.teacher.pairs.labels, given["train_labels"])
    assert small(labelled=5).teacher is None


def test_holdout_asks_and_the_others_are_learnt_and_searched() -> None:
    splits, given = small(holdout=7, labelled=4, teacher="all"), arrays()
    assert torch.equal(splits.train.pairs.first, given["train_first"][:23])
    assert torch.equal(splits.test.pairs.first[:7], given["train_first"][23:])
    assert torch.equal(splits.test.pairs.first[7:], given["train_first"][:23])
    assert splits.test.query.tolist() == [True] * 7 + [False] * 23
    assert splits.test.pairs.labels.min() == 0
    assert splits.teacher is not None
    assert len(splits.teacher) == 23


def test_texts_of_unlike_widths_stand_under_each_other() -> None:
    splits = mixed(query_second=["a very long name of a thing", "b"])
    names = [as_text(row) for row in splits.test.pairs.second]
    assert names[:3] == ["a very long name of a thing", "b", "red rose"]


def test_batches_are_rows_in_memory() -> None:
    dataset = small().test
    found = held(dataset)
    assert found is not None
    batch = next(found.batches([torch.tensor([11, 3])]))
    assert batch["index"].tolist() == [11, 3]
    assert batch["query"].tolist() == [False, True]
    again = dataset.__getitems__([11, 3])
    assert batch.keys() == again.keys()
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert torch.equal(dataset[-1]["first"], dataset.pairs.first[20])
    assert int(dataset[-1]["index"]) == 20
    with pytest.raises(IndexError):
        dataset[21]


def multi_hot(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int8)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"train_second": torch.zeros(29, 5)}, "30 items in its first modality, 29 in its second"),
    ({"train_labels": torch.zeros(29)[:29].long()}, "and 29 labels"),
    ({"query_first": torch.full((9, 6), torch.nan)}, "query set .* NaN or infinite .* first mod"),
    ({"train_first": torch.full((30, 6), torch.inf)}, "first at item 0"),
    ({"train_labels": torch.zeros(30, dtype=torch.int64)}, "label 0, so that each is like each"),
    ({"train_labels": torch.tensor([1] + [-100] * 29)}, "label 1, so that each is like each"),
    ({"train_labels": torch.arange(30).neg()}, "the label -1 at item 1; number the classes"),
    ({"train_labels": torch.arange(30.0)}, "of type torch.float32; expected whole numbers"),
    ({"train_labels": torch.zeros(30, 2, 2).long()}, r"labels of torch.int64 of the shape"),
    ({"train_labels": multi_hot([[1, 0], [1, 1]] * 15), "query_labels": multi_hot([[1, 0]] * 9),
      "database_labels": multi_hot([[1, 0]] * 12)}, "label 0, so that each is like each"),
    ({"train_labels": multi_hot([[1]] * 30)}, "1 classes; to tell items apart takes two"),
    ({"train_labels": multi_hot([[1, 0], [0, 2]] * 15)}, r"the label \[0, 2\] at item 1"),
    ({"train_labels": multi_hot([[1, 0], [0, -100]] * 15)}, r"the label \[0, -100\] at item 1"),
    ({"query_first": torch.zeros(9, 7)}, r"first modality of the query set .*\(7,\).*\(6,\)"),
    ({"query_first": torch.zeros(9, 6, dtype=torch.uint8)}, "item has torch.uint8"),
    ({"train_first": torch.zeros(30, 0), "query_first": torch.zeros(9, 0)}, "without any value"),
    ({"database_second": None}, "one modality only"),
    ({"query_first": torch.zeros(0, 6), "query_second": torch.zeros(0, 5),
      "query_labels": torch.zeros(0).long()}, "query set .* is empty"),
    ({"labelled": 31}, "labelled=31 is more than the 30 training pairs"),
    ({"labelled": 1}, "label 0, so that each is like each"),
    ({"train_labels": (torch.arange(30) >= 20).long(), "holdout": 10}, "label 0, so that each is"),
    ({"train_labels": torch.full((30, 2), 256)}, r"labels of torch.int64 of the shape \(30, 2\)"),
    ({"train_second": ["a", None] * 15}, "Text 1 is None; expected a string"),
    ({"train_second": [None, "a"] * 15}, "Text 0 is None; expected a string"),
    ({part + "_second": torch.zeros(count, 5, dtype=torch.int16)
      for part, count in (("train", 30), ("query", 9), ("database", 12))}, "`sample_rate`"),
    ({"teacher": "some"}, "teacher='some': expected 'all'"),
    ({"labelled": -1}, "labelled=-1 is not a number of pairs"),
    ({"holdout": 0}, "holdout=0 is not a number"),
    ({"holdout": 29}, "leaves fewer than 2 of the 30"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_pairs_get_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        data.paired_tensors(**arrays() | changes)


def test_two_labelled_classes_are_enough() -> None:
    labels = torch.tensor([4, 7] + [-100] * 28)
    assert len(data.paired_tensors(**arrays() | {"train_labels": labels}).train) == 30
    many = multi_hot([[1, 0], [0, 1]] * 15)
    given = arrays() | {
        "train_labels": many,
        "query_labels": many[:9],
        "database_labels": many[:12],
    }
    assert data.paired_tensors(**given).train.pairs.labels.dtype == torch.int8


def test_numpy_arrays_and_doubles() -> None:
    given = {k: np.asarray(v, dtype=np.float64 if v.is_floating_point() else None)
             for k, v in arrays().items()}  # fmt: skip
    splits = data.paired_tensors(**given)  # type: ignore[arg-type]
    assert splits.train.pairs.first.dtype == torch.float32
    assert torch.equal(splits.train.pairs.labels, small().train.pairs.labels)
