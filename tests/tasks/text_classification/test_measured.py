"""Figures, the control without a network, and what a report shows."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score
from tests.tasks.text_classification.tiny import save_encoder, splits, task
from torch import Tensor, nn

from congener.tasks.text_classification import TextClassification, control, data
from congener.tasks.text_classification.control import tokens_as_words, whole_texts

CPU = torch.device("cpu")


def figures(found: TextClassification, logits: Tensor, labels: Tensor) -> dict[str, float]:
    metrics = found.metrics(CPU)
    for rows in (slice(0, 3), slice(3, None)):
        metrics.update(logits[rows], {"labels": labels[rows]})
    return metrics.compute()


def test_figures_of_classes(tmp_path: Path) -> None:
    found = task(tmp_path, class_names=("bad", "good", "odd"))
    logits = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, -100, 1, 0, -100])
    told, said, true = figures(found, logits, labels), logits[labels >= 0], labels[labels >= 0]
    assert told["accuracy"] == pytest.approx(accuracy_score(true, said.argmax(1)))
    assert told["macro_f1"] == pytest.approx(f1_score(true, said.argmax(1), average="macro"))
    expected = -said.log_softmax(1)[torch.arange(10), true].mean()
    assert told["cross_entropy"] == pytest.approx(float(expected), rel=1e-6)


def test_figures_of_numbers(tmp_path: Path) -> None:
    found = numbers(tmp_path)
    labels = torch.tensor([0.5, 1.0, 2.5, 0.0, math.nan, 3.0, 1.5])
    logits = torch.tensor([[0.4], [1.2], [2.0], [-0.7], [9.0], [2.9], [1.3]])
    told, known = figures(found, logits, labels), ~labels.isnan()
    x, y = logits[known, 0].numpy(), labels[known].numpy()
    assert told["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic, rel=1e-5)
    assert told["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic, rel=1e-5)
    assert told["mse"] == pytest.approx(float(np.mean((x - y) ** 2)), rel=1e-5)
    flat = figures(found, torch.ones(7, 1), labels)
    assert flat["pearson"] == flat["spearman"] == 0


def numbers(tmp_path: Path) -> TextClassification:
    return task(
        tmp_path, train_labels=[float(n % 2) for n in range(40)], class_names=None,
        test_labels=[float((n + 1) % 2) for n in range(20)],
    )  # fmt: skip


def test_the_control_reads_what_networks_read(tmp_path: Path) -> None:
    found, held = task(tmp_path, labelled=12), task(tmp_path, labelled=12, holdout=8)
    told = found.control(held)
    assert told is not None
    assert told["metric"] == "accuracy"
    assert told["value"] == 1.0  # four words tell all
    assert told["classifier"] in told["chosen_on"]
    assert all(name.endswith("of the first 11 tokens") for name in told["chosen_on"])
    ((name, value),) = told["beside"].items()
    assert name.endswith("of whole texts")
    assert value == 1.0


def test_the_control_is_chosen_on_the_slice_and_measured_on_the_test_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, held = task(tmp_path), task(tmp_path, holdout=8)
    asked: list[tuple[bool, str]] = []

    def figure(of: TextClassification, make: Any, words: Any) -> float:
        strength = make().C
        asked.append((of is found, words.__name__))
        return float(strength == 10.0) / 2 if of is held else strength / 1000

    monkeypatch.setattr(control, "_figure", figure)
    told = found.control(held)
    assert told is not None
    assert told["classifier"].startswith("TF-IDF and logistic regression, C=10,")
    assert told["value"] == 0.01
    assert list(told["beside"].values()) == [0.01]
    assert asked.count((True, "tokens_as_words")) == asked.count((True, "whole_texts")) == 1


def test_a_class_of_which_no_label_is_known_is_never_said(tmp_path: Path) -> None:
    labels = [n % 2 + 1 for n in range(40)]
    found = task(
        tmp_path, train_labels=labels, test_labels=[(n + 1) % 2 + 1 for n in range(20)],
        class_names=("odd", "bad", "good"),
    )  # fmt: skip
    told = found.control(found)
    assert told is not None
    assert told["value"] == 1.0


def test_what_lies_beyond_the_last_token_is_not_read(tmp_path: Path) -> None:
    """Where only the end of a text tells its class, whole texts do and tokens do not."""
    tail = [f"a film and so {'good' if n % 2 else 'bad'}" for n in range(40)]
    options: dict[str, Any] = {
        "train_texts": tail, "test_texts": tail[:20], "test_labels": [n % 2 for n in range(20)]
    }  # fmt: skip
    found = task(tmp_path, max_tokens=6, **options)
    assert tokens_as_words(found, "train")[0] == "a film and so"
    assert whole_texts(found, "train")[0] == "a film and so bad"
    told = found.control(task(tmp_path, max_tokens=6, holdout=8, **options))
    assert told is not None
    assert told["value"] == 0.5
    assert list(told["beside"].values()) == [1.0]


def test_pieces_of_words_are_joined_again(tmp_path: Path) -> None:
    found = task(tmp_path, train_texts=["films, book"] + ["a"] * 39)
    assert found.part("train").tokens[0].tolist()[:6] == [2, 9, 13, 15, 10, 3]
    assert tokens_as_words(found, "train")[0].split() in (
        ["films", ",", "book"],
        ["films,", "book"],
    )


def test_the_control_of_numbers_and_of_tokens(tmp_path: Path) -> None:
    found = numbers(tmp_path)
    told = found.control(found)
    assert told is not None
    assert told["metric"] == "pearson"
    assert told["value"] > 0.95
    texts = task(tmp_path).part("train")
    columns = {"tokens": texts.tokens, "length": texts.length, "labels": texts.labels}
    half = {f"{part}_{name}": each for part in ("train", "test") for name, each in columns.items()}
    tokens = TextClassification(data.tensors(**half))
    told = tokens.control(tokens)
    assert told is not None
    assert told["value"] == 1.0
    assert "beside" not in told
    assert tokens_as_words(tokens, "train")[0] == "token2 token11 token7 token9 token3"


class Says(nn.Module):
    """A network that is right of texts of an odd number, by a marker token, or always."""

    def __init__(self, right: bool) -> None:
        super().__init__()
        self.weight, self.right = nn.Parameter(torch.zeros(1)), right

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        good = ((input_ids == 5) | (input_ids == 6)).any(1)
        if not self.right:
            good = good & (input_ids == 5).any(1)  # "fine" is not understood
        return torch.stack([~good, good], 1).float() * 4


def test_texts_are_shown_that_the_student_alone_gets_wrong(tmp_path: Path) -> None:
    found = task(tmp_path)
    networks = {"teacher": Says(True), "alone": Says(False), "kd": Says(True)}
    (exhibit,) = found.exhibits(networks, {})
    assert list(exhibit.rows) == ["text", "teacher", "alone", "kd"]
    texts = exhibit.rows["text"]
    assert len(texts) == 4
    assert all(panel.caption.startswith("good: a fine film") for panel in texts)
    assert [panel.hit for panel in exhibit.rows["alone"]] == [False] * 4
    assert [panel.caption for panel in exhibit.rows["kd"]] == ["good, 98%"] * 4
    assert all(panel.hit for panel in exhibit.rows["teacher"])
    assert all(network.training for network in networks.values())


def test_long_texts_are_shown_in_part_and_pairs_whole(tmp_path: Path) -> None:
    long = splits(test_texts=["fine " * 100] * 20)
    found = TextClassification(long, tokenizer=str(tmp_path_of(tmp_path)), max_tokens=9)
    (exhibit,) = found.exhibits({"alone": Says(False)}, {})
    assert len(exhibit.rows["text"][0].caption) < 260
    assert exhibit.rows["text"][0].caption.endswith("…")
    both = task(tmp_path, train_second=["book"] * 40, test_second=["poor book"] * 20)
    (exhibit,) = both.exhibits({"alone": Says(False)}, {})
    assert exhibit.rows["text"][0].caption.endswith(" / poor book")


def tmp_path_of(folder: Path) -> Path:
    task(folder)
    return folder


def test_numbers_are_shown_where_the_student_is_furthest_off(tmp_path: Path) -> None:
    found = numbers(tmp_path)
    save_encoder(tmp_path)
    networks = {
        name: found.build_model("pretrained", model=str(tmp_path)) for name in ("alone", "kd")
    }
    (exhibit,) = found.exhibits(networks, {})
    assert all(panel.hit is None for panel in exhibit.rows["kd"])
    assert exhibit.rows["text"][0].caption[0] in "01"
