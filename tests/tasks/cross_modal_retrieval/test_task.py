"""CrossModalRetrieval: preparation, the loss, what it shows, and its controls."""

import importlib
import math
import sys
from typing import Any

import pytest
import torch
from tests.tasks.cross_modal_retrieval.conftest import arrays, mixed, small, small_task
from torch import Tensor

from congener.errors import CongenerError, DataError, RecipeError
from congener.losses import mm_hashing_loss
from congener.tasks.cross_modal_retrieval import CrossModalRetrieval, data
from congener.tasks.cross_modal_retrieval.index import hamming, pack_codes
from congener.types import Batch


def ready(task: CrossModalRetrieval, split: str = "train", count: int = 8) -> Batch:
    dataset: Any = task.splits[split]
    return task.prepare(dataset.__getitems__(range(count)), train=False, seed=0, epoch=0)


def some_codes(count: int = 8, bits: int = 8) -> Tensor:
    return torch.tanh(torch.randn(count, 2, bits, generator=torch.Generator().manual_seed(1)))


def test_vectors_are_standardised_by_the_training_set() -> None:
    given = arrays()
    given["train_first"][:, 2] = 7.0  # no deviation
    task = CrossModalRetrieval(data.paired_tensors(**given))
    first = ready(task, count=30)["first"]
    torch.testing.assert_close(first.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    expected = torch.tensor([1, 1, 0, 1, 1, 1.0])
    torch.testing.assert_close(first.std(0, correction=0), expected, atol=1e-5, rtol=0)
    test = ready(task, "test", 9)["first"]
    mean, std = given["train_first"].mean(0), given["train_first"].std(0, correction=0)
    std[2] = 1
    torch.testing.assert_close(test, (given["query_first"] - mean) / std, atol=1e-5, rtol=1e-5)


def test_pictures_are_standardised_by_channel_and_texts_left_alone() -> None:
    task = CrossModalRetrieval(mixed())
    batch = ready(task, count=6)
    assert batch["second"].dtype == torch.uint8
    pictures = batch["first"]
    torch.testing.assert_close(pictures.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    spread = pictures.std((0, 2, 3), correction=0)
    torch.testing.assert_close(spread, torch.tensor([1.0, 0.0, 1.0]), atol=1e-5, rtol=0)
    assert list(task.scales()) == ["first"]


def test_preparing_leaves_the_batch_as_it_was() -> None:
    task = small_task()
    dataset: Any = task.splits["train"]
    raw = dataset.__getitems__([0, 1])
    before = {name: value.clone() for name, value in raw.items()}
    task.prepare(raw, train=True, seed=0, epoch=0)
    assert all(torch.equal(raw[name], value) for name, value in before.items())


def test_the_loss_is_that_of_the_labelled_pairs() -> None:
    task = CrossModalRetrieval(small(labelled=5), first_weight=0.25, second_weight=0.5,
                               negative_weight=2.0, margin=3.0)  # fmt: skip
    codes, batch = some_codes(), ready(task)
    assert batch["labels"].tolist() == [0, 1, 2, 0, 1, -100, -100, -100]
    expected = mm_hashing_loss(
        codes[:5, 0], codes[:5, 1], batch["labels"][:5], margin=3.0, first_margin=3.0,
        second_margin=3.0, first_weight=0.25, second_weight=0.5, negative_weight=2.0,
    )  # fmt: skip
    torch.testing.assert_close(task.loss(codes, batch), expected)


def test_the_default_margin_is_a_quarter_of_the_bits_and_only_the_common_term_counts() -> None:
    codes, task = some_codes(bits=9), small_task()
    batch = ready(task)
    expected = mm_hashing_loss(
        codes[:, 0], codes[:, 1], batch["labels"], margin=3.0, first_weight=0, second_weight=0
    )
    torch.testing.assert_close(task.loss(codes, batch), expected)


def test_aligned_pairs_ask_for_no_label() -> None:
    given = {k: v for k, v in arrays().items() if not k.endswith("labels")}
    splits = data.paired_tensors(**given)
    with pytest.raises(DataError, match=r"No training pair has a label.*set pairs to 'aligned'"):
        CrossModalRetrieval(splits)
    task = CrossModalRetrieval(splits, pairs="aligned", margin=2.0)
    assert task.labelled is None
    codes, batch = some_codes(), ready(task)
    expected = mm_hashing_loss(
        codes[:, 0], codes[:, 1], torch.arange(8), first_weight=0, second_weight=0
    )
    torch.testing.assert_close(task.loss(codes, batch), expected)
    assert torch.equal(task.asking(), task.divided.test.query)
    assert not task.asking().all()
    assert task.searched().all()


def test_multi_hot_labels() -> None:
    labels = torch.nn.functional.one_hot(torch.arange(30) % 3).to(torch.int8)
    labels[:, 0] |= labels[:, 1] * (torch.arange(30) % 2).to(torch.int8)
    given = arrays() | {
        "train_labels": labels,
        "query_labels": labels[:9],
        "database_labels": labels[:12],
    }
    task = CrossModalRetrieval(data.paired_tensors(**given, labelled=6))
    assert task.labels("train") is None
    assert task.labelled is not None
    assert task.labelled.tolist() == list(range(6))
    codes, batch = some_codes(), ready(task)
    alike = (batch["labels"][:6].float() @ batch["labels"][:6].float().T) > 0
    distance = torch.cdist(codes[:6, 0].double(), codes[:6, 1].double())
    expected = 0.5 * distance[alike].square().mean()
    expected = expected + 0.5 * (8**0.5 - distance[~alike]).relu().square().mean()
    torch.testing.assert_close(task.loss(codes, batch).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("margin", [2 * math.sqrt(8), 9.0, -0.5, math.nan])
def test_a_margin_that_fits_no_code(margin: float) -> None:
    task = small_task(margin=margin)
    with pytest.raises(RecipeError, match=r"fits no codes of 8 bits.*5\.66"):
        task.loss(some_codes(), ready(task))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": "labelled"}, "pairs='labelled': expected 'labels' or 'aligned'"),
        ({"first_weight": -1.0}, "first_weight=-1.0"),
        ({"second_weight": math.inf}, "second_weight=inf"),
        ({"negative_weight": math.nan}, "negative_weight=nan"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        small_task(**options)


def test_data_by_name() -> None:
    with pytest.raises(RecipeError, match="no data set named 'emoji_name'; did you mean"):
        CrossModalRetrieval("emoji_name")
    with pytest.raises(RecipeError, match="without a 'name'"):
        CrossModalRetrieval({"root": "x"})
    with pytest.raises(RecipeError, match="takes no argument 'rot'; did you mean 'root'"):
        CrossModalRetrieval({"name": "nus_wide", "rot": "x"})
    with pytest.raises(DataError, match="Concepts81"):
        CrossModalRetrieval({"name": "nus_wide", "root": "/nowhere", "labelled": 3})


def test_queries_or_a_database_without_labels() -> None:
    given = arrays()
    unknown = torch.full((9,), -100)
    with pytest.raises(DataError, match="No query has a label"):
        CrossModalRetrieval(data.paired_tensors(**given | {"query_labels": unknown}))
    with pytest.raises(DataError, match="No item of the database has a label"):
        CrossModalRetrieval(
            data.paired_tensors(**given | {"database_labels": unknown.repeat(2)[:12]})
        )


def test_a_network_of_another_kind() -> None:
    with pytest.raises(DataError, match=r"returned \(8, 10\); expected the codes of both"):
        small_task().logits(torch.zeros(8, 10))
    with pytest.raises(DataError, match="returned tuple"):
        small_task().logits((torch.zeros(8, 4), torch.zeros(8, 4)))


def test_labels_of_a_split() -> None:
    task = small_task()
    found = task.labels("train")
    assert found is not None
    assert found.tolist() == (torch.arange(30) % 3).tolist()
    assert task.class_names == ()
    assert not task.augments


def nets(task: CrossModalRetrieval, encoders: dict[str, Any], bits: int = 8) -> dict[str, Any]:
    found = {}
    for seed, name in enumerate(("teacher", "alone")):
        torch.manual_seed(seed)
        found[name] = task.build_model("coupled", bits=bits, **encoders).eval()
    return found


def test_exhibits_show_the_nearest_with_hits() -> None:
    task = CrossModalRetrieval(mixed())
    networks = nets(task, {"first": "cnn", "second": "ngrams"}, bits=16)
    pictures, names = task.exhibits(networks, {"teacher": None, "alone": None})
    assert list(pictures.rows) == ["query", "teacher", "alone"]
    (query,) = pictures.rows["query"]
    assert query.picture is not None
    assert query.picture.shape == (8, 8, 3)
    assert query.picture[0, 0].tolist() == [0, 0, 220]
    assert (query.caption, query.hit) == ("blue y (cold)", None)
    assert all(panel.picture is None for panel in pictures.rows["alone"])
    assert len(pictures.rows["alone"]) == 6
    assert names.rows["query"][0].picture is None
    assert all(panel.picture is not None for panel in names.rows["teacher"])
    for exhibit in (pictures, names):
        for row in ("teacher", "alone"):
            for panel in exhibit.rows[row]:
                assert panel.hit == panel.caption.endswith("(cold)")
                assert panel.kind == "image"
    batch = task.prepare(dict(task.divided.test.columns), train=False, seed=0, epoch=0)
    with torch.no_grad():
        packed = pack_codes(networks["alone"](batch["first"], batch["second"]))
    distance = hamming(packed[1:2, 0], packed[2:, 1])[0]
    order = distance.argsort(stable=True).tolist()
    texts = ["red rose", "blue sky", "red wine", "blue sea", "red car", "blue eye"]
    shown = [panel.caption.rpartition(" (")[0] for panel in pictures.rows["alone"]]
    assert shown == [texts[place] for place in order]


def test_exhibits_of_vectors_and_of_aligned_pairs() -> None:
    given = {k: v for k, v in arrays().items() if not k.endswith("labels")}
    task = CrossModalRetrieval(data.paired_tensors(**given), pairs="aligned")
    networks = nets(task, {"first": "mlp", "second": "mlp"})
    shown = task.exhibits(networks, {})
    asked = shown[0].rows["query"][0].caption
    assert len(shown[0].rows["teacher"]) == 10
    assert shown[0].title.startswith("What one vector of the first modality finds")
    hits = [panel.hit for panel in shown[0].rows["teacher"]]
    captions = [panel.caption for panel in shown[0].rows["teacher"]]
    assert hits == [caption == asked for caption in captions]
    assert "is the query itself" in shown[0].text


def test_the_query_shown_is_the_median_by_hits() -> None:
    given = arrays(queries=15, database=40)
    given["query_first"] = torch.randn(15, 6, generator=torch.Generator().manual_seed(3))
    task = CrossModalRetrieval(data.paired_tensors(**given))
    networks = nets(task, {"first": "mlp", "second": "mlp"})
    batch = task.prepare(dict(task.divided.test.columns), train=False, seed=0, epoch=0)
    labels, hits = batch["labels"], [0] * 15
    for network in networks.values():
        with torch.no_grad():
            bits = network(batch["first"], batch["second"]) > 0
        for query in range(15):
            distance = (bits[query, 0] != bits[15:, 1]).sum(1).tolist()
            nearest = sorted(range(40), key=lambda place: distance[place])[:10]
            hits[query] += sum(int(labels[15 + place] == labels[query]) for place in nearest)
    assert len(set(hits)) > 4
    shown = task.exhibits(networks, {})[0]
    (query,) = shown.rows["query"]
    found = int(query.caption.split()[1])
    assert found == sorted(range(15), key=lambda place: hits[place])[7]
    assert sum(bool(p.hit) for name in networks for p in shown.rows[name]) == hits[found]


def test_pictures_of_floats_are_shown_from_least_to_greatest() -> None:
    pictures = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0)) - 3
    task = CrossModalRetrieval(mixed(train_first=pictures[:6], query_first=pictures[6:]))
    shown = task.exhibits(nets(task, {"first": "mlp", "second": "ngrams"}), {})
    picture = shown[0].rows["query"][0].picture
    assert picture is not None
    assert (picture.min(), picture.max(), picture.dtype) == (0, 255, torch.uint8)


def test_controls_are_chosen_on_the_slice() -> None:
    task, held = small_task(), CrossModalRetrieval(small(holdout=9))
    found = task.control(held)
    assert found is not None
    assert found["metric"] == "map"
    assert {"CCA, 8 bits", "logistic regression, C=1"} <= set(found["chosen_on"])
    assert found["chosen_on"][found["classifier"]] == max(found["chosen_on"].values())
    assert found["value"] > 0.9  # the classes are apart
    again = task.control(held)
    assert again == found


def test_controls_of_many_labels_of_texts_and_of_aligned_pairs() -> None:
    labels = torch.nn.functional.one_hot(torch.arange(30) % 3).to(torch.int8)
    given = arrays() | {
        "train_labels": labels,
        "query_labels": labels[:9],
        "database_labels": labels[:12],
    }
    task = CrossModalRetrieval(data.paired_tensors(**given, labelled=12))
    found = task.control(task)
    assert found is not None
    assert found["value"] > 0.9
    task = CrossModalRetrieval(mixed())
    found = task.control(task)
    assert found is not None
    assert found["value"] == 1
    aligned = CrossModalRetrieval(mixed(), pairs="aligned")
    found = aligned.control(aligned)
    assert found is not None
    assert all(name.startswith("CCA") for name in found["chosen_on"])


@pytest.mark.parametrize("package", ["faiss", "torchmetrics", "torchvision"])
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    name = "congener.tasks.cross_modal_retrieval"
    monkeypatch.delitem(sys.modules, name)
    with pytest.raises(CongenerError, match=f"{package}.*pip install .congener.retrieval."):
        importlib.import_module(name)


def test_a_missing_package_for_controls_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(CongenerError, match=r"pip install .congener.bench."):
        small_task().control(small_task())
