"""Networks that classify texts, by name. ``__all__`` is the list.

Beside these, ``transformers:KIND`` is a classifier of transformers with random weights; its
arguments are those of its configuration. All are called as those are, with ``input_ids``,
``attention_mask`` and ``token_type_ids``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from congener.errors import RecipeError, did_you_mean
from congener.naming import bind, resolve
from congener.tasks.encoder_layers import keep_layers
from congener.tasks.hub_folder import hub_folder, read_from_hub_folder
from congener.tasks.transformers_kinds import build_kind

__all__ = ["pretrained"]

POOLER = "pooler"


def build(name: str, arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> nn.Module:
    """The network ``name`` with ``arguments`` and, where it knows them, ``defaults``.

    Args:
        name: one of ``__all__``, or ``transformers:KIND``.
        arguments: what the caller asks for.
        defaults: ``num_classes``, ``vocab_size``, ``max_tokens`` and ``pad`` of the data.

    Raises:
        RecipeError: an unknown name or argument, or a network that the data do not fit.
    """
    library, colon, kind = name.partition(":")
    if colon:
        make = resolve("library of networks", library, {"transformers": _from_transformers})
        network: nn.Module = make(kind, arguments, defaults)
    else:
        function = resolve("network", name, {known: globals()[known] for known in __all__})
        bound = bind("network", name, function, arguments, defaults=defaults)
        network = function(**bound)
    _check_room(name, network, defaults)
    return network


class Pool(nn.Module):
    """From the states of tokens to that of a text: their mean, or the first one's."""

    def __init__(self, kind: Literal["mean", "cls"]) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Of (batch, tokens, dims) and which tokens count, (batch, tokens), the (batch, dims)."""
        if self.kind == "cls":
            return states[:, 0]
        kept = mask.unsqueeze(-1).to(states.dtype)
        return (states * kept).sum(1) / kept.sum(1).clamp(min=1)

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return self.kind


class TextClassifier(nn.Module):
    """An encoder, the state of the whole text, and a linear classifier of it."""

    def __init__(
        self, encoder: nn.Module, pool: Literal["mean", "cls"], dropout: float, classes: int
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pool = Pool(pool)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(_config(encoder).hidden_size, classes)

    @property
    def config(self) -> Any:
        """The encoder's configuration."""
        return _config(self.encoder)

    def get_input_embeddings(self) -> nn.Module:
        """The encoder's embeddings of words."""
        embeddings: nn.Module = self.encoder.get_input_embeddings()  # type: ignore[operator]
        return embeddings

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **inputs: Any
    ) -> Tensor:
        """Logits (batch, classes) of texts.

        Args:
            input_ids: tokens, (batch, tokens).
            attention_mask: which of them count, (batch, tokens); default: all.
            **inputs: what else the encoder takes, such as ``token_type_ids``.
        """
        said = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        states = said.last_hidden_state
        mask = states.new_ones(states.shape[:2]) if attention_mask is None else attention_mask
        logits: Tensor = self.head(self.dropout(self.pool(states, mask)))
        return logits


def pretrained(
    model: str | Path,
    num_classes: int,
    layers: int | Sequence[int] | None = None,
    pooling: Literal["mean", "cls"] = "mean",
    frozen: Sequence[str] = (),
    dropout: float = 0.1,
) -> nn.Module:
    """An encoder of ``transformers`` with its weights, and a new linear classifier.

    Taps: ``pool``, the state of the text, (batch, dims); ``head``, the logits; those of the
    encoder, such as ``encoder.embeddings`` and ``encoder.encoder.layer.0`` of BERT, RoBERTa,
    ELECTRA and MiniLM, or ``encoder.transformer.layer.0`` of DistilBERT, (batch, tokens, dims).
    Where layers were left out, those that are kept are counted anew.

    Args:
        model: the folder of an encoder, or an installed package that has one in its folder
            ``model``.
        num_classes: outputs; the task fills it in.
        layers: which to keep, in this order, or how many of the first; default: all.
        pooling: the text's state is the mean of its tokens', or that of the first, ``"cls"``.
        frozen: modules of the encoder that do not learn, such as ``"embeddings"``.
        dropout: probability that a number of the text's state is left out in training; 0.1, as in
            BERT's classifiers.

    Raises:
        RecipeError: no such folder, layers or modules.
    """
    if pooling not in ("mean", "cls"):
        raise RecipeError(f"pooling={pooling!r}: expected 'mean' or 'cls'.")
    if not 0 <= dropout < 1:
        raise RecipeError(f"dropout={dropout}: expected a probability from 0 to below 1.")
    encoder = _read_encoder(str(hub_folder(model)))
    if layers is not None:
        keep_layers(encoder, layers)
    network = TextClassifier(encoder, pooling, dropout, num_classes)
    known = dict(encoder.named_modules())
    for path in [frozen] if isinstance(frozen, str) else frozen:
        if not path or path not in known:
            raise RecipeError(
                f"frozen: the encoder has no module {path!r}; {did_you_mean(path, known)}"
            )
        known[path].requires_grad_(False)
    return network


def _config(network: nn.Module) -> Any:
    return getattr(network, "config", None)


def _read_encoder(folder: str) -> nn.Module:
    def read() -> nn.Module:
        from transformers import AutoModel  # takes seconds, so only when asked for

        network, told = AutoModel.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
        lacking = [name for name in told["missing_keys"] if not name.startswith(POOLER)]
        if lacking:
            raise ValueError(f"its weights lack {sorted(lacking)[0]!r}")
        if getattr(network, POOLER, None) is not None:
            setattr(network, POOLER, None)  # which no logit depends on
        found: nn.Module = network
        return found

    found: nn.Module = read_from_hub_folder("encoder", folder, read)
    return found


def _from_transformers(
    kind: str, arguments: Mapping[str, Any], defaults: Mapping[str, Any]
) -> nn.Module:
    from transformers.models.auto import modeling_auto

    fitting = {
        "num_labels": defaults["num_classes"],
        "vocab_size": defaults["vocab_size"],
        "pad_token_id": defaults["pad"],
    }
    known = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    return build_kind("classifier of texts", kind, known, arguments, lambda _: fitting)


def _check_room(name: str, network: nn.Module, defaults: Mapping[str, Any]) -> None:
    """A network must know every token, and as many places as a text has tokens."""
    words: Any = network.get_input_embeddings()  # type: ignore[operator]
    if words.num_embeddings < defaults["vocab_size"]:
        raise RecipeError(
            f"The network {name!r} knows {words.num_embeddings} tokens, but the tokenizer has "
            f"{defaults['vocab_size']}; take the tokenizer that belongs to the network, or set "
            "vocab_size."
        )
    places = _places(network)
    if places is not None and places < defaults["max_tokens"]:
        raise RecipeError(
            f"The network {name!r} knows {places} places, but texts have up to "
            f"{defaults['max_tokens']} tokens; lower the task's max_tokens."
        )


def _places(network: nn.Module) -> int | None:
    """How many places a network knows; ``None``: it has no table of them."""
    for name, module in network.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa and its kin count places from behind that of padding.
            before = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - before
    return None
