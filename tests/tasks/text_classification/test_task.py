"""The task: what networks see, what it costs, what is told of bad input."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.tasks.text_classification.tiny import save_encoder, save_tokenizer, splits, task
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from congener.engine import FitConfig, fit
from congener.errors import DataError, RecipeError
from congener.losses import KDLoss, SPLoss
from congener.runlog import RunLog
from congener.systems import Distillation
from congener.tasks.text_classification import Splits, TextClassification, data
from congener.types import Batch, Term


class Seen(nn.Module):
    """A network that keeps what it was called with; it may have embeddings of segments."""

    def __init__(self, kinds: int = 0) -> None:
        super().__init__()
        self.given: dict[str, Tensor] = {}
        if kinds:
            self.token_type_embeddings = nn.Embedding(kinds, 1)

    def forward(self, **given: Tensor) -> Tensor:
        self.given = given
        return torch.zeros(len(given["input_ids"]), 2)


def prepared(found: TextClassification, rows: Any, split: str = "train") -> Batch:
    raw = found.collate(found.part(split).__getitems__(rows))
    return found.prepare(raw, train=True, seed=0, epoch=0)


def pairs(**options: Any) -> Splits:
    given = {
        "train_texts": ["a good film", "a bad film", "so"],
        "train_second": ["the book", "and", "a"],
        "test_texts": ["good"], "test_second": ["bad"], "train_labels": [1, 0, 1],
        "test_labels": [0],
    }  # fmt: skip
    return data.texts(**(given | options))


def test_texts_become_tokens_and_masks(tmp_path: Path) -> None:
    found = task(tmp_path)
    batch = prepared(found, [0, 1])
    # [CLS] a bad film [SEP] and [CLS] a good film and so [SEP], by their places in the vocabulary.
    assert batch["tokens"].tolist() == [[2, 11, 7, 9, 3, 0, 0], [2, 11, 5, 9, 16, 17, 3]]
    assert batch["tokens"].dtype == torch.int64
    assert batch["mask"].tolist() == [[True] * 5 + [False] * 2, [True] * 7]
    assert batch["segments"].dtype == torch.int64
    assert not batch["segments"].any()
    assert batch["labels"].tolist() == [0, 1]
    assert batch["index"].tolist() == [0, 1]


def test_padding_is_cut_to_the_longest_of_the_batch(tmp_path: Path) -> None:
    found = task(tmp_path)
    assert found.part("train").tokens.shape == (40, 11)
    assert found.max_tokens == 11
    assert prepared(found, [0])["tokens"].shape == (1, 5)
    assert prepared(found, [0, 3])["segments"].shape == (2, 11)
    assert prepared(found, [])["mask"].shape == (0, 1)


def test_long_texts_are_cut_keeping_the_last_special_token(tmp_path: Path) -> None:
    found = task(tmp_path, max_tokens=6)
    assert found.part("train").tokens[3].tolist() == [2, 11, 6, 9, 16, 3]
    assert found.part("train").length.tolist()[:4] == [5, 6, 6, 6]


def test_who_does_not_say_how_many_tokens_count_is_told_of_cuts(tmp_path: Path) -> None:
    task(tmp_path, max_tokens=None)  # nothing is cut
    long = splits()
    long.train.first[2] = "a " * 200
    with pytest.warns(UserWarning, match="1 of 40 training texts reach 128 tokens"):
        TextClassification(long, tokenizer=str(tmp_path))
    assert TextClassification(long, tokenizer=str(tmp_path), max_tokens=128).max_tokens == 128


def test_pairs_have_segments(tmp_path: Path) -> None:
    found = TextClassification(pairs(), tokenizer=str(save_tokenizer(tmp_path)), max_tokens=12)
    batch = prepared(found, [0])
    assert batch["tokens"].tolist() == [[2, 11, 5, 9, 3, 12, 10, 3]]
    assert batch["segments"].tolist() == [[0, 0, 0, 0, 0, 1, 1, 1]]
    short = TextClassification(pairs(), tokenizer=str(tmp_path), max_tokens=7)
    assert prepared(short, [0])["tokens"].tolist() == [[2, 11, 5, 3, 12, 10, 3]]


def test_a_network_is_called_as_transformers_calls_it(tmp_path: Path) -> None:
    found = TextClassification(pairs(), tokenizer=str(save_tokenizer(tmp_path)), max_tokens=12)
    batch = prepared(found, [0, 1, 2])
    wanted = {
        "input_ids": batch["tokens"],
        "attention_mask": batch["mask"].long(),
        "token_type_ids": batch["segments"],
    }
    for kinds in (0, 1, 2):
        seen = Seen(kinds)
        assert found.logits(found.call(seen, batch)).shape == (3, 2)
        given = dict(wanted)
        if kinds == 1:
            given["token_type_ids"] = torch.zeros_like(batch["segments"])
        elif not kinds:
            del given["token_type_ids"]
        assert given.keys() == seen.given.keys()
        assert all(torch.equal(value, seen.given[name]) for name, value in given.items())
        assert seen.given["attention_mask"].dtype == torch.int64


def test_gpt2_is_given_no_segments(tmp_path: Path) -> None:
    """It would look them up among its words."""
    found = TextClassification(pairs(), tokenizer=str(save_tokenizer(tmp_path)), max_tokens=12)
    torch.manual_seed(0)
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
    network = found.build_model("transformers:gpt2", **sizes).eval()
    batch = prepared(found, [0, 1, 2])
    assert batch["segments"].any()
    wanted = network(input_ids=batch["tokens"], attention_mask=batch["mask"].long()).logits
    assert torch.equal(found.call(network, batch).logits, wanted)
    other = batch | {"segments": 1 - batch["segments"]}
    assert torch.equal(found.call(network, other).logits, wanted)


def test_logits_are_a_tensor_or_in_a_record(tmp_path: Path) -> None:
    found, logits = task(tmp_path), torch.zeros(3, 2)
    assert found.logits(logits) is logits
    assert found.logits(SequenceClassifierOutput(logits=logits)) is logits
    for wrong, came in ((torch.zeros(3), r"\(3,\)"), ({"logits": logits}, "dict")):
        with pytest.raises(DataError, match=f"returned {came}"):
            found.logits(wrong)


def test_what_pads_does_not_count(tmp_path: Path) -> None:
    found = task(tmp_path)
    network = found.build_model("pretrained", model=str(save_encoder(tmp_path))).eval()
    with torch.no_grad():
        together = found.call(network, prepared(found, [0, 3]))
        apart = torch.cat([found.call(network, prepared(found, [row])) for row in (0, 3)])
    torch.testing.assert_close(together, apart)


def test_the_loss_of_classes_is_cross_entropy(tmp_path: Path) -> None:
    found = task(tmp_path, labelled=3)
    logits = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    batch = prepared(found, [0, 1, 2, 3, 4])
    assert batch["labels"].tolist() == [0, 1, 0, -100, -100]
    expected = F.cross_entropy(logits[:3], batch["labels"][:3])
    torch.testing.assert_close(found.loss(logits, batch), expected)
    torch.testing.assert_close(found.loss(logits.half(), batch), expected, rtol=1e-3, atol=1e-3)


def numbers(tmp_path: Path, **options: Any) -> TextClassification:
    return task(
        tmp_path, train_labels=[0.5 * n for n in range(40)], class_names=None,
        test_labels=torch.linspace(0, 3, 20), **options,
    )  # fmt: skip


def test_numbers_are_predicted(tmp_path: Path) -> None:
    found = numbers(tmp_path, labelled=3)
    assert found.regression
    assert found.metric == "pearson"
    assert found.class_names == ()
    assert found.labels("train") is None
    assert found.labelled is not None
    assert found.labelled.tolist() == [0, 1, 2]
    batch = prepared(found, [0, 1, 2, 3])
    assert batch["labels"].isnan().tolist() == [False, False, False, True]
    logits = torch.tensor([[1.0], [2.0], [3.0], [9.0]], requires_grad=True)
    value = found.loss(logits, batch)
    torch.testing.assert_close(value.detach(), torch.tensor((1 + 1.5**2 + 2**2) / 3))
    (gradient,) = torch.autograd.grad(value, logits)
    torch.testing.assert_close(gradient, torch.tensor([[2.0], [3.0], [4.0], [0.0]]) / 3)
    network = found.build_model("pretrained", model=str(save_encoder(tmp_path)))
    assert found.call(network, batch).shape == (4, 1)


def test_what_the_engine_may_ask(tmp_path: Path) -> None:
    found = task(tmp_path, teacher=10, pool=20, labelled=4)
    assert {name: len(part) for name, part in found.splits.items()} == {
        "train": 20, "test": 20, "teacher": 10
    }  # fmt: skip
    labels, lengths = found.labels("train"), found.lengths("train")
    assert labels is not None
    assert lengths is not None
    assert labels.tolist() == [0, 1, 0, 1] + [-100] * 16
    assert lengths.tolist() == found.part("train").length.tolist()
    assert found.labelled is not None
    assert found.labelled.tolist() == [0, 1, 2, 3]
    assert found.class_names == ("bad", "good")
    assert found.augments is False


def test_a_mask_is_for_states_of_tokens(tmp_path: Path) -> None:
    found = task(tmp_path)
    batch = prepared(found, [0, 3])
    assert torch.equal(found.mask(batch, torch.zeros(2, 11, 4)), batch["mask"])
    assert found.mask(batch, torch.zeros(2, 7, 4)) is None
    assert found.mask(batch, torch.zeros(2, 11)) is None


def test_a_recipe_names_the_data(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("text\tlabel\na good film\t1\na bad film\t0\n")
    (tmp_path / "test.tsv").write_text("text\tlabel\na fine film\t1\n")
    named = {
        "name": "table",
        "train": str(tmp_path / "train.tsv"),
        "test": str(tmp_path / "test.tsv"),
    }
    found = TextClassification(named, tokenizer=str(save_tokenizer(tmp_path)), max_tokens=9)
    assert found.class_names == ("0", "1")
    with pytest.raises(RecipeError, match=r"'tabel'.*'table'"):
        TextClassification({"name": "tabel"}, tokenizer=str(tmp_path))


def test_tokens_need_no_tokenizer_and_texts_do(tmp_path: Path) -> None:
    tokens = data.tensors(
        train_tokens=torch.tensor([[1, 2, 9], [3, 0, 0]]), train_length=torch.tensor([3, 1]),
        train_labels=[0, 1], test_tokens=torch.tensor([[4]]), test_length=torch.tensor([1]),
        test_labels=[1],
    )  # fmt: skip
    found = TextClassification(tokens)
    assert found.vocab_size == 10
    assert prepared(found, [1])["tokens"].tolist() == [[3]]
    with pytest.raises(RecipeError, match="leave `tokenizer` out"):
        TextClassification(tokens, tokenizer=str(save_tokenizer(tmp_path)))
    with pytest.raises(DataError, match="3 tokens, more than max_tokens=2"):
        TextClassification(tokens, max_tokens=2)
    with pytest.raises(RecipeError, match="need a `tokenizer`"):
        TextClassification(splits())


def test_tokens_may_be_padded_with_another_one_than_0() -> None:
    """RoBERTa begins texts with 0, and tells by its padding, 1, where a text's places begin."""
    given: dict[str, Any] = {
        "train_tokens": torch.tensor([[0, 4, 2, -1, -1], [0, 5, 6, 7, 2]]), "pad": 1,
        "train_length": torch.tensor([3, 5]), "train_labels": [0, 1],
        "test_tokens": torch.tensor([[0, 4, 2]]), "test_length": torch.tensor([3]),
        "test_labels": [0],
    }  # fmt: skip
    found = TextClassification(data.tensors(**given))
    both, alone = prepared(found, [0, 1]), prepared(found, [0])
    assert found.pad == 1
    assert both["tokens"][0].tolist() == [0, 4, 2, 1, 1]
    assert both["mask"].int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    network = found.build_model("transformers:roberta", **sizes, initializer_range=0.5).eval()
    config: Any = network.config
    assert (config.pad_token_id, config.vocab_size) == (1, 8)
    logits = found.call(network, both).logits
    assert torch.allclose(logits[:1], found.call(network, alone).logits, atol=1e-6)
    assert data.tensors(**given | {"pad": 9}).vocab_size == 10
    for wrong, told in (({"pad": -1}, "pad=-1"), ({"pad": 9, "vocab_size": 8}, "the token 9")):
        with pytest.raises(DataError, match=told):
            data.tensors(**given | wrong)


def test_a_tokenizer_that_is_none_or_cannot(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="neither a folder 'nowhere' nor"):
        TextClassification(splits(), tokenizer="nowhere")
    save_encoder(tmp_path / "encoder")
    with pytest.raises(RecipeError, match="holds no tokenizer"):
        TextClassification(splits(), tokenizer=str(tmp_path / "encoder"))
    with pytest.raises(RecipeError, match="max_tokens=0"):
        TextClassification(splits(), tokenizer=str(tmp_path / "encoder"), max_tokens=0)
    with pytest.raises((RecipeError, DataError), match="max_tokens=1"):
        task(tmp_path / "tokenizer", max_tokens=1)


def test_samples_that_do_not_stack(tmp_path: Path) -> None:
    found = task(tmp_path)
    one = found.part("train")[0]
    assert found.collate([one, one])["tokens"].shape == (2, 11)
    with pytest.raises(DataError, match="padded at the right"):
        found.collate([one, one | {"tokens": torch.zeros(3)}])
    with pytest.raises(DataError, match="no 'length'"):
        found.collate([{"tokens": torch.zeros(3)}])


def test_a_cut_student_learns_from_its_teacher(tmp_path: Path) -> None:
    found = task(tmp_path, labelled=8)
    save_encoder(tmp_path)
    torch.manual_seed(0)
    teacher = found.build_model("pretrained", model=str(tmp_path), dropout=0)
    student = found.build_model(
        "pretrained", model=str(tmp_path), layers=[0, 3], frozen=["embeddings"]
    )
    frozen = student.encoder.embeddings.word_embeddings.weight.clone()
    config = FitConfig(steps=30, batch_size=10, lr=1e-2, log_every=1, threads=1, device="cpu")
    terms = [Term(KDLoss()), Term(SPLoss(), 0.01, "pool", "pool")]
    system = Distillation(student, teacher, terms, task=found, task_weight=0.0)
    train, totals = found.part("train"), []

    def keep(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            totals.append(event["total"])

    result = fit(
        system, found, config, train=train, test=found.part("test"), log=RunLog(None, (keep,))
    )
    assert sum(totals[-5:]) < 0.5 * sum(totals[:5])
    assert set(result.metrics) == {"accuracy", "macro_f1", "cross_entropy"}
    assert torch.equal(student.encoder.embeddings.word_embeddings.weight, frozen)
