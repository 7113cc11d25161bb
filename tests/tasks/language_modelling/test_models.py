"""Networks by name: from scratch, from a folder, of any kind that transformers has."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from tests.tasks.language_modelling.tiny import VOCABULARY, batch_of, llama, task

from congener.errors import RecipeError
from congener.tasks.language_modelling import LanguageModelling


def parameters(found: LanguageModelling, **options: object) -> int:
    return sum(p.numel() for p in found.build_model("llama", **options).parameters())


def test_a_llama_has_as_many_parameters_as_it_says() -> None:
    found = LanguageModelling({"name": "shuffle", "samples": 10, "test": 2})
    assert parameters(found) == 186_144
    assert parameters(found, hidden_size=48) == 46_992
    assert parameters(found, tied=False) == 186_144 + 14 * 96
    assert parameters(found, key_value_heads=2) == 186_144 - 2 * 2 * 96 * 48
    assert parameters(found, intermediate_size=96) == 186_144 - 2 * 3 * 96 * 96
    assert parameters(found, layers=1) < parameters(found)


def test_documented_taps_exist() -> None:
    found = task()
    names = dict(llama(found, layers=2).named_modules())
    assert {"model.layers.0", "model.layers.1", "model.norm"} <= names.keys()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lama", {}, "no network named 'lama'; did you mean 'llama'"),
        ("llama", {"hiden_size": 8}, "takes no argument 'hiden_size'; did you mean 'hidden_size'"),
        ("llama", {"hidden_size": 9, "heads": 2}, "hidden_size=9, layers=2, heads=2: expected"),
        ("llama", {"hidden_size": 6, "heads": 2}, "hidden_size=6, layers=2, heads=2: expected"),
        ("llama", {"layers": 0}, "layers=0"),
        ("llama", {"key_value_heads": 3}, "key_value_heads=3 does not divide heads=4"),
        ("timm:llama", {}, "no library of networks named 'timm'; known: 'transformers'"),
        ("transformers:gpt3", {}, "no causal language model named 'gpt3'; did you mean .*'gpt2'"),
        ("transformers:gpt2", {"n_hed": 2}, "has no 'n_hed'; did you mean 'n_head'"),
        ("transformers:gpt2", {"num_labels": 2}, "transformers:gpt2 has no 'num_labels'"),
        ("transformers:gpt2", {"n_head": 5}, "transformers:gpt2 does not take these values"),
        ("pretrained", {"model": "nowhere"}, "neither a folder 'nowhere' nor an installed package"),
        ("pretrained", {}, "needs the argument 'model'"),
    ],
)
def test_what_cannot_be_built_is_told(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        task().build_model(name, **options)


def test_a_network_from_a_folder_says_the_same(tmp_path: Path) -> None:
    found = task()
    network = llama(found, 3).eval()
    network.save_pretrained(tmp_path / "kept")
    read = found.build_model("pretrained", model=str(tmp_path / "kept")).eval()
    batch = batch_of(found, range(6))
    assert torch.equal(found.call(read, batch), found.call(network, batch))
    half = found.build_model("pretrained", model=str(tmp_path / "kept"), precision="bf16")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_weights_saved_in_half_precision_are_read_in_full(tmp_path: Path) -> None:
    found = task()
    llama(found).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    read = found.build_model("pretrained", model=str(tmp_path / "half"))
    assert {parameter.dtype for parameter in read.parameters()} == {torch.float32}


def test_a_folder_without_a_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match=r"folder .*empty holds no causal language model that"):
        task().build_model("pretrained", model=str(tmp_path / "empty"))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_tokens_see_only_what_is_before_them(kind: str, tmp_path: Path) -> None:
    small = {
        "bert": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
        "gpt2": {"n_embd": 8, "n_layer": 1, "n_head": 2},
        "llama": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
    }
    found = task()
    options = small[kind] | ({"is_decoder": False} if kind == "bert" else {})
    network = found.build_model(f"transformers:{kind}", **options).eval()
    fresh = deepcopy(network)
    network.config.is_decoder = False
    network.save_pretrained(tmp_path / "kept")
    read = found.build_model("pretrained", model=str(tmp_path / "kept")).eval()
    one, other = torch.tensor([[1, 2, 3]]), torch.tensor([[1, 2, 4]])
    with torch.no_grad():
        for net in (fresh, read):
            first, second = (net(input_ids=tokens).logits[0] for tokens in (one, other))
            assert first.shape == (3, VOCABULARY)
            torch.testing.assert_close(first[:2], second[:2])
            assert not torch.allclose(first[2], second[2])
