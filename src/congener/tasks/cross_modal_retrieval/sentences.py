"""A frozen encoder of sentences, which runs once for each text."""

import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from congener.tasks.hub_folder import hub_folder, read_from_hub_folder

from .data.splits import as_text

__all__ = ["Sentences"]

LONGEST, AT_ONCE = 128, 64
"""Tokens of a text that count, and texts that are encoded together."""


class Sentences(nn.Module):
    """The mean over the tokens of what a frozen encoder says, of length 1, as MiniLM's users do.

    The encoder is no submodule: it neither learns, nor moves with the network, nor is it saved or
    copied with it. It stays on the CPU, one for all networks that name it, and encodes a text once.

    Args:
        model: a folder of a ``transformers`` encoder and its tokenizer, or an installed package
            that has one in its folder ``model``.

    Attributes:
        dims: of an embedding.

    Raises:
        CongenerError: the package ``transformers`` is missing.
        RecipeError: no such folder or package, or one without an encoder.
    """

    def __init__(self, model: str | Path) -> None:
        super().__init__()
        self.model = str(hub_folder(model))
        self.dims = _encoder(self.model).dims

    def forward(self, texts: Tensor) -> Tensor:
        """Of zero-padded bytes (batch, bytes), the embeddings (batch, dims), a constant."""
        return _encoder(self.model).embed([as_text(row) for row in texts.cpu()]).to(texts.device)

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"model={Path(self.model).name!r}, dims={self.dims}"


class _Encoder:
    """What a folder holds, and what it said so far."""

    def __init__(self, tokenizer: Any, network: nn.Module) -> None:
        self._tokenizer, self._network = tokenizer, network.eval().requires_grad_(False)
        self._said: dict[str, Tensor] = {}
        self.dims = self._encode([""]).shape[1]

    def embed(self, texts: list[str]) -> Tensor:
        new = [text for text in dict.fromkeys(texts) if text not in self._said]
        for start in range(0, len(new), AT_ONCE):
            some = new[start : start + AT_ONCE]
            self._said |= zip(some, self._encode(some), strict=True)
        return torch.stack([self._said[text] for text in texts])

    @torch.no_grad()
    def _encode(self, texts: list[str]) -> Tensor:
        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
        )
        with torch.autocast("cpu", enabled=False):
            states = self._network(**tokens).last_hidden_state.float()
        kept = tokens["attention_mask"].unsqueeze(-1).to(states.dtype)
        return F.normalize((states * kept).sum(1) / kept.sum(1).clamp(min=1))


@functools.cache
def _encoder(folder: str) -> _Encoder:
    def read() -> _Encoder:
        from transformers import AutoModel, AutoTokenizer  # takes seconds, so only when asked for

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return _Encoder(tokenizer, AutoModel.from_pretrained(folder, local_files_only=True))

    encoder: _Encoder = read_from_hub_folder("encoder with its tokenizer", folder, read)
    return encoder
