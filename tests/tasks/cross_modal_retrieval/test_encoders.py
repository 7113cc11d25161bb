"""Encoders: n-grams against a loop, a frozen sentence encoder, and networks by name."""

import copy
import functools
import importlib
import io
import operator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tasks.cross_modal_retrieval.conftest import mixed, small_task

from congener.errors import RecipeError
from congener.taps import Taps
from congener.tasks.cross_modal_retrieval import Coupled, CrossModalRetrieval, encoders
from congener.tasks.cross_modal_retrieval import sentences as module
from congener.tasks.cross_modal_retrieval.data.splits import as_bytes

TEXTS = ["cat", "a", "naïve café", "cat cat", ""]


def counted(text: str, buckets: int, sizes: tuple[int, ...]) -> torch.Tensor:
    """N-grams one after the other, with Python's own whole numbers."""
    row = [0.0] * buckets
    letters = b" " + text.encode() + b" "
    for size in sizes:
        for start in range(len(letters) - size + 1):
            number = 0
            for letter in letters[start : start + size]:
                number = number * 257 + letter
            row[number * 2654435769 % 2**32 * buckets // 2**32] += 1
    found = torch.tensor(row)
    return found / found.norm().clamp(min=1e-12)


@pytest.mark.parametrize("sizes", [(1,), (2,), (3,), (1, 2, 3)])
@pytest.mark.parametrize("buckets", [1, 10, 512])
def test_ngrams_against_a_loop(sizes: tuple[int, ...], buckets: int) -> None:
    found = encoders.NGrams(buckets, sizes)(as_bytes(TEXTS))
    torch.testing.assert_close(found, torch.stack([counted(t, buckets, sizes) for t in TEXTS]))


def test_ngrams_do_not_depend_on_the_padding_and_leave_the_texts() -> None:
    front, texts = encoders.NGrams(64, (2, 3)), as_bytes(TEXTS)
    wide = torch.nn.functional.pad(texts, (0, 9))
    before = wide.clone()
    assert torch.equal(front(wide), front(texts))
    assert torch.equal(wide, before)
    assert torch.equal(front(texts[1:2, :1]), front(texts[1:2]))


def test_ngrams_spread_over_the_buckets() -> None:
    """Of the trigrams of all words of three letters, each of 64 buckets gets about its share."""
    letters = torch.arange(ord("a"), ord("z") + 1, dtype=torch.uint8)
    texts = torch.cartesian_prod(letters, letters, letters)
    counts = torch.zeros(64)
    front = encoders.NGrams(64, (3,))
    for chunk in texts.split(4096):
        found = front(chunk)
        counts += (found / found.amax(1, keepdim=True)).sum(0)
    assert 0.5 * counts.mean() < counts.min()
    assert counts.max() < 2 * counts.mean()


@pytest.mark.parametrize("given", [{"buckets": 0}, {"sizes": (4,)}, {"sizes": ()}, {"sizes": (0,)}])
def test_ngrams_of_no_use(given: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="n-grams of 1, 2 or 3 bytes"):
        encoders.NGrams(**given)


ENCODERS = {"first": {"name": "cnn", "width": 8}, "second": {"name": "ngrams", "width": 64}}


def test_the_student_of_the_recipe_has_its_size_and_taps() -> None:
    given = {"train_first": torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8),
             "query_first": torch.zeros(2, 3, 32, 32, dtype=torch.uint8)}  # fmt: skip
    task = CrossModalRetrieval(mixed(**given))
    network = task.build_model("coupled", bits=32, **ENCODERS).eval()
    assert sum(p.numel() for p in network.parameters()) == 47_272
    raw = task.divided.test.__getitems__([0, 5])
    batch = task.prepare(raw, train=False, seed=0, epoch=0)
    taps = Taps(network, ["first", "second", "first.flatten", "second.counts", "second.hidden"])
    codes, seen = taps(lambda: task.call(network, batch))
    assert codes.shape == (2, 2, 32)
    assert codes.abs().max() < 1
    assert torch.equal(codes, torch.stack([seen["first"], seen["second"]], 1))
    assert seen["second.counts"].shape == (2, 512)
    assert seen["first.flatten"].ndim == seen["second.hidden"].ndim == 2


def test_every_encoder_ends_in_tanh() -> None:
    vectors = small_task().build_model("coupled", bits=5, first="mlp", second="mlp")
    pictures = CrossModalRetrieval(mixed()).build_model("coupled", bits=5, **ENCODERS)
    for network in (vectors, pictures):
        assert isinstance(network, Coupled)
        for encoder in (network.first, network.second):
            assert list(dict(encoder.named_children()))[-1] == "tanh"
            assert list(dict(encoder.named_children()))[-2] == "classifier"


MLP: dict[str, Any] = {"first": "mlp", "second": "mlp"}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"bits": 4, **MLP, "third": 1}, "takes no argument 'third'.*It takes: bits, first, second"),
    ({"bits": 4, "first": "mlp"}, "needs the argument 'second'"),
    (MLP, "needs the argument 'bits'"),
    ({"bits": 0, **MLP}, "bits=0: a code has one bit"),
    ({"bits": 4, "first": "mpl", "second": "mlp"}, "no encoder named 'mpl'; did you mean 'mlp'"),
    ({"bits": 4, "first": {"width": 3}, "second": "mlp"}, "`first` names no encoder"),
    ({"bits": 4, "first": {"name": "mlp", "widht": 3}, "second": "mlp"}, "did you mean 'width'"),
    ({"bits": 4, "first": {"name": "mlp", "width": "wide"}, "second": "mlp"}, "a whole number"),
    ({"bits": 4, "first": "mlp", "second": {"name": "mlp", "bits": 8}}, "`bits` beside `second`"),
    (
        {"bits": 4, "first": "mlp", "second": "ngrams"},
        "the second modality .* 'vector'; take 'mlp'",
    ),
    ({"bits": 4, "first": {"name": "mlp", "width": -3}, "second": "mlp"}, "cannot be built with"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_networks(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        small_task().build_model("coupled", **arguments)


def test_an_unknown_network() -> None:
    with pytest.raises(RecipeError, match="'couple'; did you mean 'coupled'"):
        small_task().build_model("couple")


def test_a_network_for_sounds() -> None:
    pytest.importorskip("torchaudio")
    waves = (torch.randn(8, 2000, generator=torch.Generator().manual_seed(0)) * 3000).to(
        torch.int16
    )
    waves[:, 1200:] = 0
    given = {"train_first": waves[:6], "query_first": waves[6:], "sample_rate": 8000}
    task = CrossModalRetrieval(mixed(**given))
    network = task.build_model(
        "coupled", bits=6, first={"name": "sound", "bands": 10, "width": 4}, second="ngrams"
    ).eval()
    batch = task.prepare(dict(task.divided.test.columns), train=False, seed=0, epoch=0)
    assert batch["first"].abs().max() < 1
    codes = task.call(network, batch)
    assert codes.shape == (8, 2, 6)
    assert codes.isfinite().all()
    control = task.control(task)
    assert control is not None


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers, 8 numbers wide, that knows letters, with its tokenizer."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghij",
        *(f"##{c}" for c in "abcdefghij"),
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=140, hidden_dropout_prob=0.5,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_sentences_are_means_over_tokens(tiny_bert: Path) -> None:
    transformers = importlib.import_module("transformers")
    found = module.Sentences(str(tiny_bert)).train()(as_bytes(["abc", "j", "abc"]))
    assert not found.requires_grad
    network = transformers.AutoModel.from_pretrained(tiny_bert).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_bert)
    for row, text in zip(found, ["abc", "j", "abc"], strict=True):
        with torch.no_grad():
            states = network(**tokenizer([text], return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(row, torch.nn.functional.normalize(states.mean(0), dim=0))


def test_a_text_is_encoded_once(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    real = module._Encoder._encode

    def spy(self: Any, texts: list[str]) -> torch.Tensor:
        asked.append(texts)
        return real(self, texts)

    monkeypatch.setattr(module._Encoder, "_encode", spy)
    monkeypatch.setattr(module, "AT_ONCE", 2)
    front = module.Sentences(str(tiny_bert))
    asked.clear()
    texts = as_bytes(["ad", "be", "ad", "cf"])
    first = front(texts)
    assert sorted(functools.reduce(operator.iadd, asked, [])) == ["ad", "be", "cf"]
    assert [len(some) for some in asked] == [2, 1]
    asked.clear()
    assert torch.equal(copy.deepcopy(front)(texts), first)
    assert not asked


def test_the_frozen_encoder_is_no_part_of_the_network(tiny_bert: Path) -> None:
    task = CrossModalRetrieval(mixed())
    network = task.build_model(
        "coupled",
        bits=6,
        first="cnn",
        second={"name": "sentence", "model": str(tiny_bert), "width": 5},
    )
    names = [name for name in network.state_dict() if name.startswith("second")]
    assert names == ["second.hidden.0.0.weight", "second.hidden.0.0.bias",
                     "second.classifier.weight", "second.classifier.bias"]  # fmt: skip
    assert network.state_dict()["second.hidden.0.0.weight"].shape == (5, 8)
    buffer = io.BytesIO()
    torch.save(copy.deepcopy(network), buffer)
    assert buffer.tell() < 100_000


def test_there_is_no_such_encoder(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="neither a folder 'no_such_thing' nor an installed"):
        encoders.sentence(4, model="no_such_thing")
    with pytest.raises(RecipeError, match="neither a folder 'torch'"):
        encoders.sentence(4, model="torch")
    with pytest.raises(RecipeError, match="neither a folder"):
        encoders.sentence(4, model="../nowhere")
    pytest.importorskip("transformers")
    with pytest.raises(RecipeError, match="holds no encoder"):
        encoders.sentence(4, model=str(tmp_path))


def test_the_list_of_encoders_is_complete() -> None:
    from congener.tasks.cross_modal_retrieval.models import TAKES

    assert sorted(encoders.__all__) == sorted(TAKES)
