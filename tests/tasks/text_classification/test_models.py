"""Networks from a folder, cut to some of their layers, and those of transformers."""

from pathlib import Path

import pytest
import torch
from tests.tasks.text_classification.tiny import save_encoder, task
from torch import nn
from transformers import AutoModel, BertConfig, BertForSequenceClassification, DistilBertConfig

from congener.errors import RecipeError
from congener.taps import Taps
from congener.tasks.hub_folder import quiet_transformers
from congener.tasks.text_classification import TextClassification


@pytest.fixture
def found(tmp_path: Path) -> TextClassification:
    save_encoder(tmp_path)
    return task(tmp_path)


def test_an_encoder_keeps_its_weights(found: TextClassification, tmp_path: Path) -> None:
    network = found.build_model("pretrained", model=str(tmp_path)).eval()
    plain = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    ids, mask = torch.tensor([[2, 5, 3, 0], [2, 6, 7, 3]]), torch.ones(2, 4, dtype=torch.bool)
    mask[0, 3] = False
    with torch.no_grad():
        states = plain(input_ids=ids, attention_mask=mask).last_hidden_state
        mean = torch.stack([states[0, :3].mean(0), states[1].mean(0)])
        torch.testing.assert_close(network(ids, mask), network.head(mean))
        first = found.build_model("pretrained", model=str(tmp_path), pooling="cls").eval()
        torch.testing.assert_close(first(ids, mask), first.head(states[:, 0]))
    assert network.head.out_features == 2
    assert not any("pooler" in name for name, _ in network.named_parameters())


def test_layers_are_kept_in_the_order_given(found: TextClassification, tmp_path: Path) -> None:
    whole = found.build_model("pretrained", model=str(tmp_path))
    for layers, kept in (([0, 3], [0, 3]), (2, [0, 1]), ([3, 1], [3, 1]), (None, [0, 1, 2, 3])):
        cut = found.build_model("pretrained", model=str(tmp_path), layers=layers)
        blocks = cut.encoder.encoder.layer
        assert len(blocks) == cut.config.num_hidden_layers == len(kept)
        for block, place in zip(blocks, kept, strict=True):
            theirs = whole.encoder.encoder.layer[place].state_dict()
            assert all(
                torch.equal(value, theirs[name]) for name, value in block.state_dict().items()
            )


def test_taps_read_layers_pool_and_logits(found: TextClassification, tmp_path: Path) -> None:
    network = found.build_model("pretrained", model=str(tmp_path), layers=[0, 3])
    batch = found.prepare(found.part("train").__getitems__([0, 1, 2]), train=False, seed=0, epoch=0)
    paths = ["encoder.embeddings", "encoder.encoder.layer.1", "pool", "head"]
    result, seen = Taps(network, paths)(lambda: found.call(network, batch))
    assert [tuple(seen[path].shape) for path in paths] == [(3, 9, 16), (3, 9, 16), (3, 16), (3, 2)]
    assert torch.equal(seen["head"], result)


def test_frozen_modules_do_not_learn(found: TextClassification, tmp_path: Path) -> None:
    network = found.build_model(
        "pretrained", model=str(tmp_path), frozen=["embeddings", "encoder.layer.0"]
    )
    still = {name for name, each in network.named_parameters() if not each.requires_grad}
    assert still == {
        name for name, _ in network.named_parameters()
        if name.startswith(("encoder.embeddings.", "encoder.encoder.layer.0."))
    }  # fmt: skip
    with pytest.raises(RecipeError, match=r"no module 'embedings'.*'embeddings'"):
        found.build_model("pretrained", model=str(tmp_path), frozen=["embedings"])


def test_the_state_of_a_text_is_dropped_in_training(
    found: TextClassification, tmp_path: Path
) -> None:
    ids = torch.tensor([[2, 5, 3], [2, 6, 3]])
    for share in (0.0, 0.5):
        network = found.build_model("pretrained", model=str(tmp_path), dropout=share).eval()
        network.dropout.train()
        torch.manual_seed(0)
        assert torch.equal(network(ids), network(ids)) == (not share)


@pytest.mark.parametrize("layers", [0, 5, [0, 4], [0, 0], [], [-1]])
def test_layers_outside_the_encoder(
    layers: int | list[int], found: TextClassification, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"of an encoder of 4: give a number from 1 to 4"):
        found.build_model("pretrained", model=str(tmp_path), layers=layers)


def test_a_folder_without_an_encoder(found: TextClassification, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match="holds no encoder that transformers can read"):
        found.build_model("pretrained", model=str(tmp_path / "empty"))
    with pytest.raises(RecipeError, match="neither a folder 'nowhere'"):
        found.build_model("pretrained", model="nowhere")


def test_weights_that_lack_some_are_refused(found: TextClassification, tmp_path: Path) -> None:
    save_encoder(tmp_path / "more", layers=2)
    config = tmp_path / "more" / "config.json"
    config.write_text(
        config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3')
    )
    with pytest.raises(RecipeError, match=r"weights lack '(bert\.)?encoder.layer.2"):
        found.build_model("pretrained", model=str(tmp_path / "more"))


def test_the_encoder_of_a_classifier_is_taken(found: TextClassification, tmp_path: Path) -> None:
    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        vocab_size=18,
    )  # fmt: skip
    classifier = BertForSequenceClassification(config)
    with quiet_transformers():
        classifier.half().save_pretrained(tmp_path / "classifier")
    network = found.build_model("pretrained", model=str(tmp_path / "classifier"))
    assert {each.dtype for each in network.parameters()} == {torch.float32}
    words = network.get_input_embeddings()
    assert isinstance(words, nn.Embedding)
    torch.testing.assert_close(words.weight.half(), classifier.bert.get_input_embeddings().weight)


def test_wrong_words(found: TextClassification, tmp_path: Path) -> None:
    for options, told in (
        ({"pooling": "max"}, "'pooling'.*'max'"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"layer": 2}, "'layer'.*'layers'"),
    ):
        with pytest.raises(RecipeError, match=told):
            found.build_model("pretrained", model=str(tmp_path), **options)


def test_a_vocabulary_or_places_too_few(found: TextClassification, tmp_path: Path) -> None:
    save_encoder(tmp_path / "few", vocab_size=17)
    with pytest.raises(RecipeError, match=r"knows 17 tokens, but the tokenizer has 18"):
        found.build_model("pretrained", model=str(tmp_path / "few"))
    with pytest.raises(RecipeError, match=r"knows 10 places, but texts have up to 11"):
        found.build_model("transformers:bert", **SIZES, max_position_embeddings=10)
    # RoBERTa counts its places from 2.
    with pytest.raises(RecipeError, match=r"knows 10 places, but texts have up to 11"):
        found.build_model(
            "transformers:roberta", **SIZES, pad_token_id=1, max_position_embeddings=12
        )


SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert"])
def test_classifiers_of_transformers(kind: str, found: TextClassification) -> None:
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2} if kind == "distilbert" else SIZES
    network = found.build_model(f"transformers:{kind}", **sizes).eval()
    batch = found.prepare(found.part("train").__getitems__([0, 3]), train=False, seed=0, epoch=0)
    assert network.config.vocab_size == 18
    with torch.no_grad():
        logits = found.logits(found.call(network, batch))
    assert logits.shape == (2, 2)
    assert logits.isfinite().all()


def test_distilbert_can_be_cut(found: TextClassification, tmp_path: Path) -> None:
    config = DistilBertConfig(dim=16, n_layers=3, n_heads=2, hidden_dim=8, vocab_size=18)
    with quiet_transformers():
        AutoModel.from_config(config).save_pretrained(tmp_path / "distilled")
    network = found.build_model("pretrained", model=str(tmp_path / "distilled"), layers=[0, 2])
    assert len(network.encoder.transformer.layer) == 2
    batch = found.prepare(found.part("train").__getitems__([0, 3]), train=False, seed=0, epoch=0)
    assert found.call(network, batch).shape == (2, 2)


def test_unknown_kinds_and_options(found: TextClassification) -> None:
    for name, options, told in (
        ("transformers:brt", {}, "no classifier of texts named 'brt'.*'bert'"),
        ("timm:bert", {}, "library of networks.*'timm'"),
        ("transformers:bert", {"hiden_size": 4}, "no 'hiden_size'.*'hidden_size'"),
        ("transformers:bert", {"hidden_size": 15}, "does not take these values"),
    ):
        with pytest.raises(RecipeError, match=told):
            found.build_model(name, **options)
