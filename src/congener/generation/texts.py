"""Texts in the making: what every way of writing them keeps, checks and returns."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from congener.errors import DataError, ShapeError
from congener.ops.keyed_random import keyed_uniform
from congener.ops.vocabulary import common_prefix

__all__ = [
    "STUDENT",
    "TEACHER",
    "Texts",
    "Written",
    "check_top_k",
    "common_vocabulary",
    "context_of",
    "resting",
    "vocabulary_of",
]

STUDENT, TEACHER = 0, 1
"""Whose random numbers a draw takes."""


@dataclass
class Written:
    """What was written after each prompt of a batch.

    Attributes:
        tokens: the new tokens, with ``pad`` after the end of a text.
        length: how many there are, an end-of-text token and a stop sequence included.
        finished: whether the text came to its end, rather than to the limit of its length.
        proposed: which tokens the student wrote itself.
        logits: the teacher's raw logits for each token, over the common vocabulary, those of a text
            behind those of the text before it; None where they were not asked for.
        calls: forward passes, by network.
    """

    tokens: Int[Tensor, "batch longest"]
    length: Int[Tensor, " batch"]
    finished: Bool[Tensor, " batch"]
    proposed: Bool[Tensor, "batch longest"]
    logits: Float[Tensor, "tokens vocab"] | None = None
    calls: Mapping[str, int] = field(default_factory=dict)


class Texts:
    """The texts of a batch while they are written.

    Args:
        prompt: (batch, longest), right-padded.
        prompt_length: (batch,).
        index: sample ids, (batch,).
        seed: of the run.
        step: of training; another step gives other texts.
        max_new_tokens: no text becomes longer.
        eos: id that ends a text; None: none does.
        pad: id that fills up.
        stop: sequences of ids of which each ends a text.
        context: how many tokens the networks can read; texts end there. None: any number.
        vocabulary: how many ids there are.

    Raises:
        ShapeError: tensors whose shapes do not fit each other.
        DataError: a prompt that is empty, or leaves no room for a token; an unknown id.
        ValueError: a negative limit, or an empty stop sequence.
    """

    def __init__(self, prompt: Tensor, prompt_length: Tensor, *, index: Tensor, seed: int,
                 step: int, max_new_tokens: int, eos: int | None, pad: int,
                 stop: Sequence[Sequence[int]], context: int | None, vocabulary: int,
                 ) -> None:  # fmt: skip
        _check_prompt(prompt, prompt_length, index, vocabulary)
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens must be at least 0, not {max_new_tokens}.")
        if not all(len(words) for words in stop):
            raise ValueError("A stop sequence must have at least one token; leave it out.")
        batch, longest = prompt.shape
        columns = torch.arange(longest, device=prompt.device)
        self.prompt_length = prompt_length.long()
        self.eos, self.pad, self.vocabulary = eos, pad, vocabulary
        self.stop = [torch.tensor(list(words), device=prompt.device) for words in stop]
        self.length = self.prompt_length.clone()
        self.limit = _limits(self.prompt_length, max_new_tokens, context)
        self.finished = torch.zeros_like(self.length, dtype=torch.bool)
        # Drafts may reach beyond the limit, by less than another text.
        self.tokens = self.prompt_length.new_zeros(batch, longest + 2 * max_new_tokens)
        self.tokens[:, :longest] = prompt.where(columns < prompt_length[:, None], 0)
        self._proposed = torch.zeros_like(self.tokens, dtype=torch.bool)
        self._said: list[tuple[Tensor, Tensor, Tensor]] = []  # logits of tokens, their rows, places
        draws = keyed_uniform(index, seed=seed, epoch=step, count=2 * max_new_tokens)
        self._uniform = draws.view(batch, max_new_tokens, 2)

    def unfinished(self, rows: Tensor | None = None) -> Tensor:
        """Which rows are to be written on: places in ``rows``, or in the batch."""
        going = ~self.finished & (self.length < self.limit)
        return (going if rows is None else going[rows]).nonzero().squeeze(-1)

    def last(self, rows: Tensor) -> Tensor:
        """The last token of each of these rows, (rows,)."""
        return self.tokens[rows, self.length[rows] - 1]

    def places(self, rows: Tensor, count: int) -> Tensor:
        """The columns of ``tokens`` where the next ones of each row belong, (rows, count)."""
        return self.length[rows, None] + torch.arange(count, device=rows.device)

    def positions(self, rows: Tensor, count: int) -> Tensor:
        """Columns from the last token's on, (rows, count), within what a network can read."""
        return torch.minimum(self.places(rows, count), self.limit[rows, None]) - 1

    def uniform(self, rows: Tensor, places: Tensor, role: int) -> Tensor:
        """Random numbers of the tokens in columns; any number beyond the limit."""
        new = places - self.prompt_length[rows]
        return self._uniform[rows, new.clamp(max=self._uniform.shape[1] - 1), role]

    def ends(self, rows: Tensor, places: Tensor) -> Tensor:
        """Whether a text ends with the token in a column, (rows, n) of columns (rows, n)."""
        tokens = self.tokens[rows]
        ended = tokens.gather(1, places) == (-1 if self.eos is None else self.eos)
        for words in self.stop:
            back = torch.arange(1 - len(words), 1, device=places.device)
            sought = places[..., None] + back
            found = tokens.gather(1, sought.clamp(min=0).flatten(1)).view_as(sought) == words
            ended |= (found & (sought >= self.prompt_length[rows, None, None])).all(-1)
        return ended

    def commit(self, rows: Tensor, count: Tensor, own: Tensor, logits: Tensor | None) -> Tensor:
        """Take the next tokens, which were noted in ``tokens``, up to an end or the limit.

        Args:
            rows: (rows,).
            count: how many of the noted ones may be taken, (rows,), at least 1.
            own: which are the student's, (rows, n).
            logits: the teacher's, (rows, n, vocab), if they are kept.

        Returns:
            how many were taken, (rows,).
        """
        places = self.places(rows, own.shape[1])
        ended = self.ends(rows, places)
        until_end = torch.where(ended.any(1), ended.int().argmax(1) + 1, own.shape[1])
        taken = torch.stack([count, until_end, self.limit[rows] - self.length[rows]]).amin(0)
        self._proposed[rows[:, None], places] = own
        self.finished[rows] = ended.gather(1, taken[:, None] - 1).squeeze(1)
        self.length[rows] += taken
        if logits is not None:
            self._keep(rows, places, logits)
        return taken

    def _keep(self, rows: Tensor, places: Tensor, logits: Tensor) -> None:
        row, noted = (places < self.length[rows, None]).nonzero(as_tuple=True)
        at = rows[row]
        self._said.append((logits[row, noted], at, places[row, noted] - self.prompt_length[at]))

    def written(self, calls: Mapping[str, int], *, keep_logits: bool = False) -> Written:
        """What was written, by so many forward passes; also where there was nothing to write."""
        length = self.length - self.prompt_length
        longest = int(length.max()) if len(length) else 0
        steps = torch.arange(longest, device=length.device)
        inside, columns = steps < length[:, None], self.prompt_length[:, None] + steps
        return Written(
            tokens=self.tokens.gather(1, columns).where(inside, self.pad),
            length=length,
            finished=self.finished,
            proposed=self._proposed.gather(1, columns) & inside,
            logits=self._logits(length) if keep_logits else None,
            calls={"student": 0, "teacher": 0} | dict(calls),
        )

    def _logits(self, length: Tensor) -> Tensor:
        """What was kept, text by text."""
        start, dtype = length.cumsum(0) - length, None
        if self._said:
            dtype = self._said[0][0].dtype
        whole = torch.zeros(int(length.sum()), self.vocabulary, dtype=dtype, device=length.device)
        while self._said:  # each is let go at once: they are large
            logits, rows, places = self._said.pop()
            whole[start[rows] + places] = logits
        return whole


@contextmanager
def resting(*models: nn.Module) -> Iterator[None]:
    """Networks in evaluation mode and without gradient; each module's mode returns afterwards."""
    training = [module for model in models for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def vocabulary_of(model: nn.Module, vocabulary: int | None = None) -> int:
    """How many ids a language model knows; of these, those of its tokenizer, where it is known.

    Raises:
        ShapeError: the tokenizer has more.
        TypeError: it does not say so as the causal language models of transformers do.
    """
    size = getattr(_text_config(model), "vocab_size", None)
    if not isinstance(size, int):
        raise TypeError(
            f"{type(model).__name__} has no config.vocab_size; give a causal language model of "
            "transformers, or a module with such a config and such a forward."
        )
    return size if vocabulary is None else _known(vocabulary, size)


def context_of(*models: nn.Module) -> int | None:
    """How many tokens all of these networks can read; None where none says."""
    sizes = (getattr(_text_config(each), "max_position_embeddings", None) for each in models)
    return min((size for size in sizes if isinstance(size, int) and size > 0), default=None)


def common_vocabulary(student: nn.Module, teacher: nn.Module, vocabulary: int | None) -> int:
    """How many ids two language models write with: those of their tokenizer, where it is known.

    Args:
        student: the one.
        teacher: the other.
        vocabulary: ids of the tokenizer; None: what the networks share, but for padding.

    Raises:
        ShapeError: a network that does not know all of them, or sizes that differ by more than
            padding.
    """
    sizes = vocabulary_of(student), vocabulary_of(teacher)
    return common_prefix(*sizes) if vocabulary is None else _known(vocabulary, min(sizes))


def _known(vocabulary: int, size: int) -> int:
    if vocabulary > size:
        raise ShapeError(
            f"The tokenizer has {vocabulary} ids and a network that is to write only {size}; take "
            "the tokenizer that belongs to the networks."
        )
    return vocabulary


def check_top_k(top_k: int) -> None:
    """K of the teacher's most probable tokens must not be negative.

    Raises:
        ValueError: it is.
    """
    if top_k < 0:
        raise ValueError(f"top_k must be at least 0, not {top_k}; 0 lets only the teacher write.")


def _text_config(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    text_config = getattr(config, "get_text_config", lambda: config)
    return text_config()


def _limits(prompt_length: Tensor, max_new_tokens: int, context: int | None) -> Tensor:
    """How long each prompt and its text may become together."""
    limit = prompt_length + max_new_tokens
    if context is None or not len(limit) or not max_new_tokens:
        return limit
    if (longest := int(prompt_length.max())) >= context:
        raise DataError(
            f"A prompt of {longest} tokens leaves no room to write in a context of {context} "
            f"tokens; cut or leave out prompts of {context} tokens and more."
        )
    return limit.clamp(max=context)


def _check_prompt(prompt: Tensor, prompt_length: Tensor, index: Tensor, vocabulary: int) -> None:
    if prompt.dim() != 2 or not prompt_length.shape == index.shape == prompt.shape[:1]:
        raise ShapeError(
            f"prompt {tuple(prompt.shape)} must be (batch, longest), and prompt_length "
            f"{tuple(prompt_length.shape)} and index {tuple(index.shape)} (batch,)."
        )
    if not prompt.numel():
        if len(prompt):
            raise DataError("A prompt must have at least one token; begin it with a start token.")
        return
    low, high = prompt_length.min(), prompt_length.max()
    if low < 1 or high > prompt.shape[1]:
        raise DataError(
            f"prompt_length must lie in 1…{prompt.shape[1]}, not {low if low < 1 else high}; an "
            "empty prompt needs a start token."
        )
    inside = torch.arange(prompt.shape[1], device=prompt.device) < prompt_length[:, None]
    unknown = inside & ((prompt < 0) | (prompt >= vocabulary))
    if unknown.any():
        raise DataError(
            f"A prompt has the token {prompt[unknown][0].item()}, but the vocabulary has "
            f"{vocabulary} ids; use the tokenizer that belongs to the network."
        )
