"""Networks by name; each is a function of keyword arguments. ``__all__`` is the list.

Beside these, ``transformers:KIND`` is a causal language model of that kind of ``transformers``,
such as ``gpt2``, with random weights; its arguments are those of its configuration.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from congener.errors import CongenerError, DataError, RecipeError
from congener.naming import bind, resolve
from congener.taps import bare
from congener.tasks.hub_folder import hub_folder, read_from_hub_folder
from congener.tasks.transformers_kinds import build_kind

from .data.splits import Vocabulary

__all__ = ["llama", "pretrained"]


def build(
    name: str, arguments: Mapping[str, Any], vocabulary: Vocabulary, longest: int
) -> nn.Module:
    """The network ``name``, for texts of so many tokens at most.

    Raises:
        RecipeError: an unknown name or argument, or numbers that no network can have.
        DataError: a network that does not fit the vocabulary or the texts.
    """
    library, colon, kind = name.partition(":")
    known: dict[str, Callable[..., nn.Module]] = {"llama": llama, "pretrained": pretrained}
    if colon:
        make = resolve("library of networks", library, {"transformers": _from_transformers})
        network: nn.Module = make(kind, arguments, vocabulary)
    else:
        function = resolve("network", name, known)
        defaults = {"vocabulary_size": vocabulary.size, "longest": longest}
        bound = bind("network", name, function, arguments, defaults=defaults)
        try:
            network = function(**bound)
        except CongenerError:
            raise
        except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
            shown = ", ".join(f"{key}={value!r}" for key, value in bound.items())
            raise RecipeError(
                f"The network {name!r} cannot be built with {shown}: {error}."
            ) from error
    check_network(network, vocabulary, longest)
    return network


def check_network(network: nn.Module, vocabulary: Vocabulary, tokens: int) -> None:
    """Refuse a network that does not know all tokens, or reads fewer than a text has.

    Raises:
        DataError: naming both numbers.
    """
    config, kind = getattr(bare(network), "config", None), type(bare(network)).__name__
    known = getattr(config, "vocab_size", None)
    if isinstance(known, int) and known < vocabulary.size:
        raise DataError(
            f"The network ({kind}) knows {known} tokens, but {vocabulary.name} has "
            f"{vocabulary.size}; take a network made for it, or the tokenizer of the network."
        )
    most = getattr(config, "max_position_embeddings", None)
    if isinstance(most, int) and 0 < most < tokens:
        raise DataError(
            f"A text has {tokens} tokens, more than the {most} that the network ({kind}) reads; "
            "lower max_tokens of the data, or take another network."
        )


def llama(
    vocabulary_size: int,
    longest: int = 2048,
    hidden_size: int = 96,
    layers: int = 2,
    heads: int = 4,
    key_value_heads: int | None = None,
    intermediate_size: int | None = None,
    tied: bool = True,
) -> nn.Module:
    """A small Llama with random weights, as in ``transformers``.

    With the 14 tokens of the puzzles: 186,144 parameters; with ``hidden_size=48`` 46,992.

    Args:
        vocabulary_size: how many tokens it knows.
        longest: how many of them a text may have, 2048 or more.
        hidden_size: of a token's vector; ours: 96.
        layers: ours: 2.
        heads: of attention; ours: 4.
        key_value_heads: default: as ``heads``.
        intermediate_size: of the feed-forward layers; default: twice ``hidden_size``, ours.
        tied: whether the last layer has the weights of the first.

    Taps: ``model.layers.0``, ``model.layers.1``, …: (batch, tokens, hidden_size); ``model.norm``:
    the last of them, normalised.
    """
    from transformers import LlamaConfig, LlamaForCausalLM  # takes seconds, so only when asked for

    if min(hidden_size, layers, heads) < 1 or hidden_size % heads or hidden_size // heads % 2:
        raise RecipeError(
            f"hidden_size={hidden_size}, layers={layers}, heads={heads}: expected a hidden_size "
            "that is an even number for each head, and a layer or more."
        )
    shared = key_value_heads or heads
    if shared < 1 or heads % shared:
        raise RecipeError(
            f"key_value_heads={key_value_heads} does not divide heads={heads}; leave it out."
        )
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        intermediate_size=intermediate_size or 2 * hidden_size,
        max_position_embeddings=max(2048, longest),
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


def pretrained(model: str | Path, precision: Literal["fp32", "bf16"] = "fp32") -> nn.Module:
    """A causal language model with the weights that a folder holds.

    Args:
        model: a folder as ``save_pretrained`` writes it, or an installed package that has one in
            its folder ``model``.
        precision: of the weights in memory. ``bf16`` takes half of it, which suits a teacher; the
            small updates of a student are lost in it.

    Taps: as in ``transformers``, such as ``model.layers.0`` or ``transformer.h.0``.
    """
    folder = hub_folder(model)

    def read() -> nn.Module:
        from transformers import AutoConfig, AutoModelForCausalLM

        config = _causal(AutoConfig.from_pretrained(folder, local_files_only=True))
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        network: nn.Module = AutoModelForCausalLM.from_pretrained(
            folder, config=config, local_files_only=True, dtype=dtype
        )
        return network

    found: nn.Module = read_from_hub_folder("causal language model", folder, read)
    return found


def _from_transformers(
    kind: str, arguments: Mapping[str, Any], vocabulary: Vocabulary
) -> nn.Module:
    """A causal language model by its kind, with random weights."""
    from transformers.models.auto import modeling_auto  # takes seconds, so only when asked for

    own = {
        "vocab_size": vocabulary.size,
        "eos_token_id": vocabulary.eos,
        "pad_token_id": vocabulary.pad,
        "bos_token_id": None,
    }

    def fitting(options: Mapping[str, Any]) -> Mapping[str, Any]:
        return own | ({"is_decoder": True} if "is_decoder" in options else {})

    asked = {key: value for key, value in arguments.items() if key != "is_decoder"}
    known = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return build_kind("causal language model", kind, known, asked, fitting)


def _causal(config: Any) -> Any:
    """A configuration by which tokens see only what is before them, where it can say so."""
    if hasattr(config, "is_decoder"):
        config.is_decoder = True
    return config
