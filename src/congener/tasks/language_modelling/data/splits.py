"""Prompts and their responses as tokens in memory, and how the training texts are divided."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from congener.errors import DataError
from congener.tasks.in_memory import InMemory
from congener.tasks.parts import PartsOptions, divide_positions

__all__ = ["IGNORE", "Splits", "TextDataset", "Vocabulary", "divide", "encoded"]

IGNORE = -100

Check = Callable[[Sequence[int], Sequence[int]], bool]
"""Whether a response, without its end, is right for a prompt; both as tokens."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What tokens are.

    Attributes:
        size: how many there are; their numbers start at 0.
        eos: ends a response.
        pad: fills what is shorter; it is never looked at, and may be ``eos``.
        decode: the text that some tokens are.
        name: whose it is, for messages.
        encode: the tokens that a text by itself is, where that is known.
    """

    size: int
    eos: int
    pad: int
    decode: Callable[[Sequence[int]], str]
    name: str
    encode: Callable[[str], list[int]] | None = None

    def __post_init__(self) -> None:
        for what, token in (("end", self.eos), ("padding", self.pad)):
            if not 0 <= token < self.size:
                raise DataError(
                    f"The {what} token of {self.name} is {token}; expected one of its "
                    f"{self.size} tokens, 0 to {self.size - 1}."
                )


class TextDataset(InMemory):
    """Texts in memory; a batch is ``{"tokens", "prompt", "length", "labels", "index"}``.

    Args:
        tokens: prompts with their responses, (samples, longest), int32, then padding.
        prompt: tokens of each prompt, (samples,), int64.
        length: tokens of each prompt and response, (samples,); of a prompt alone, as ``prompt``.
        labels: ``tokens`` where they belong to a response, -100 elsewhere; default: all after the
            prompt.
    """

    def __init__(
        self, tokens: Tensor, prompt: Tensor, length: Tensor, labels: Tensor | None = None
    ) -> None:
        if labels is None:
            places = torch.arange(tokens.shape[1])
            answered = (places >= prompt[:, None]) & (places < length[:, None])
            labels = tokens.where(answered, IGNORE)
        self.tokens, self.prompt, self.length, self.labels = tokens, prompt, length, labels

    @property
    def columns(self) -> dict[str, Tensor]:
        """What a batch is made of, beside ``index``."""
        names = ("tokens", "prompt", "length", "labels")
        return {name: getattr(self, name) for name in names}

    @property
    def answered(self) -> Tensor:
        """Which prompts have a response, (samples,), bool."""
        return (self.labels != IGNORE).any(1)

    def part(self, rows: slice) -> "TextDataset":
        """Some of the samples."""
        return TextDataset(*(column[rows] for column in self.columns.values()))

    def unanswered(self, first: int, pad: int) -> "TextDataset":
        """The same, but of the samples from ``first`` on only the prompts."""
        hidden = torch.arange(len(self)) >= first
        beyond = torch.arange(self.tokens.shape[1]) >= self.prompt[:, None]
        return TextDataset(
            self.tokens.masked_fill(hidden[:, None] & beyond, pad),
            self.prompt,
            self.length.where(~hidden, self.prompt),
            self.labels.masked_fill(hidden[:, None], IGNORE),
        )


@dataclass(frozen=True, slots=True)
class Splits:
    """A data set, divided.

    Attributes:
        train: what the student sees; prompts without a response have none of their tokens labelled.
        test: what the figures are measured on.
        vocabulary: what the tokens are.
        teacher: what the teacher is trained on, where that is not ``train``.
        check: whether an answer is right, where a rule says so.
        one_answer: whether the response is the only right answer.
    """

    train: TextDataset
    test: TextDataset
    vocabulary: Vocabulary
    teacher: TextDataset | None = None
    check: Check | None = None
    one_answer: bool = False


def encoded(texts: Sequence[tuple[Sequence[int], Sequence[int]]], pad: int) -> TextDataset:
    """Pairs of a prompt and a response (empty: none), as tokens."""
    whole = [torch.tensor([*prompt, *response], dtype=torch.int32) for prompt, response in texts]
    return TextDataset(
        torch.nn.utils.rnn.pad_sequence(whole, batch_first=True, padding_value=pad),
        torch.tensor([len(prompt) for prompt, _ in texts]),
        torch.tensor([len(each) for each in whole]),
    )


def divide(
    what: str,
    train: TextDataset,
    test: TextDataset,
    vocabulary: Vocabulary,
    *,
    check: Check | None = None,
    one_answer: bool = False,
    **parts: Unpack[PartsOptions],
) -> Splits:
    """Divide the training texts as :func:`.divide_positions` says.

    Of the texts that the student sees the first ``labelled`` keep their response; of the others
    it sees the prompt.

    Args:
        what: how messages call the data set.
        train: the training set.
        test: the test set.
        vocabulary: what the tokens are.
        check: see :class:`Splits`.
        one_answer: likewise.
        **parts: teacher, pool, labelled, holdout.

    Raises:
        DataError: data or options that do not fit, saying which and why.
    """
    for part, texts in (("training", train), ("test", test)):
        _check(f"The {part} set of {what}", texts, vocabulary)
    divided = divide_positions(what, len(train), **parts)
    seen = train.part(divided.train)
    labelled = parts.get("labelled")
    if labelled is not None:
        seen = seen.unanswered(labelled, vocabulary.pad)
    taught = None if divided.teacher is None else train.part(divided.teacher)
    measured = test if divided.test is None else train.part(divided.test)
    if taught is not None and not taught.answered.any():
        raise DataError(
            f"No text of the teacher's part of {what} has a response, so it has nothing to learn; "
            "give it others."
        )
    if not measured.answered.any():
        raise DataError(
            f"No prompt of the test set of {what} has a response, so nothing can be measured on "
            "it; give some of them one."
        )
    return Splits(seen, measured, vocabulary, taught, check, one_answer)


def _check(what: str, texts: TextDataset, vocabulary: Vocabulary) -> None:
    """Refuse samples that are none."""
    shapes = {name: tuple(column.shape) for name, column in texts.columns.items()}
    tokens, prompt, length = texts.tokens, texts.prompt, texts.length
    if tokens.ndim != 2 or not (
        shapes["labels"] == shapes["tokens"]
        and shapes["prompt"] == shapes["length"] == shapes["tokens"][:1]
    ):
        raise DataError(
            f"{what} has columns of the shapes {shapes}; expected tokens and labels (samples, "
            "longest), prompt and length (samples,)."
        )
    if not len(texts):
        raise DataError(f"{what} is empty; at least one text is needed.")
    wrong = (prompt < 1) | (length < prompt) | (length > tokens.shape[1])
    if wrong.any():
        row = int(wrong.int().argmax())
        raise DataError(
            f"{what} has at row {row} a prompt of {int(prompt[row])} tokens in a text of "
            f"{int(length[row])}, in {tokens.shape[1]} columns; expected 1 ≤ prompt ≤ length ≤ "
            "columns. A text without a prompt begins with a token of its own, such as BOS."
        )
    inside = torch.arange(tokens.shape[1]) < length[:, None]
    unknown = ((tokens < 0) | (tokens >= vocabulary.size)) & inside
    if unknown.any():
        row = int(unknown.any(1).int().argmax())
        token = int(tokens[row][unknown[row]][0])
        raise DataError(
            f"{what} has the token {token} at row {row}, but {vocabulary.name} has "
            f"{vocabulary.size} tokens; encode it with the tokenizer that is named."
        )
