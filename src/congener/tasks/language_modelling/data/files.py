"""Instructions and their responses in files of lines, each a JSON object."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Unpack

from jinja2 import TemplateError

from congener.errors import DataError
from congener.tasks.hub_folder import hub_folder, pad_of, read_tokenizer
from congener.tasks.parts import PartsOptions

from .splits import Splits, TextDataset, Vocabulary, divide, encoded

__all__ = ["instructions"]


def instructions(
    train: str | Path,
    test: str | Path,
    *,
    tokenizer: str | Path,
    prompt: str = "prompt",
    response: str = "response",
    messages: str | None = None,
    max_tokens: int = 512,
    one_answer: bool = False,
    **parts: Unpack[PartsOptions],
) -> Splits:
    """Prompts and responses in JSON lines; or conversations, by the tokenizer's chat template.

    Prompt and response are encoded apart, so that no token belongs to both, and a network that is
    asked a prompt sees what it was trained on. The response ends with the tokenizer's end token. A
    line whose response is missing or null is a prompt alone; an empty response is its end. A
    response that contains the end token itself is refused.

    A text of more than ``max_tokens`` loses the rest of its response, and with it the end; a prompt
    that leaves no room for a token of its response is refused.

    Args:
        train: the file of the training set.
        test: of the test set.
        tokenizer: a folder as ``save_pretrained`` writes it, or an installed package that has one
            in its folder ``model``.
        prompt: the key of the prompt.
        response: the key of the response.
        messages: the key of a conversation instead: a list of ``{"role", "content"}``, whose last
            message is the response if its role is ``assistant``; what is before it is the prompt.
        max_tokens: of a text; ours: 512.
        one_answer: whether a response is the only right one.
        **parts: teacher, pool, labelled, holdout; see :func:`.divide_positions`.

    Raises:
        DataError: a file that is missing or damaged, naming the line.
    """
    words = _Words(read_tokenizer(hub_folder(tokenizer)), tokenizer, max_tokens)
    keys = _Keys(prompt, response, messages)
    learnt, measured = (_read(Path(path), words, keys) for path in (train, test))
    return divide(str(train), learnt, measured, words.vocabulary(), one_answer=one_answer, **parts)


class _Keys(NamedTuple):
    """What the fields of a line are called."""

    prompt: str
    response: str
    messages: str | None


class _Words:
    """A tokenizer, and how texts become tokens."""

    def __init__(self, tokenizer: Any, name: str | Path, max_tokens: int) -> None:
        self.tokenizer, self.name, self.max_tokens = tokenizer, name, max_tokens
        if tokenizer.eos_token_id is None:
            raise DataError(
                f"The tokenizer {name} has no end token (eos_token), so no response could end; "
                "give it one and save it again."
            )
        self.eos = int(tokenizer.eos_token_id)

    def vocabulary(self) -> Vocabulary:
        """The tokens that there are."""
        size = 1 + max(self.tokenizer.get_vocab().values())  # there may be holes
        return Vocabulary(
            size, self.eos, pad_of(self.tokenizer),
            self.tokenizer.decode, f"the tokenizer {Path(self.name).name}", self._plain,
        )  # fmt: skip

    def pair(self, prompt: str, response: str | None) -> tuple[list[int], list[int]]:
        """A prompt and its response; the tokenizer's own start of a text comes first."""
        start = self.tokenizer(prompt).input_ids
        if start[-1:] == [self.eos]:
            start = start[:-1]  # a tokenizer that ends every text
        self._check_end(response)
        return start, self._ended(response)

    def conversation(self, messages: list[Any]) -> tuple[list[int], list[int]]:
        """A conversation up to its last message, and that message."""

        def written(some: list[Any], *, answer_next: bool) -> str:
            text: str = self.tokenizer.apply_chat_template(
                some, tokenize=False, add_generation_prompt=answer_next
            )
            return text

        answered = messages[-1]["role"] == "assistant"
        before = messages[:-1] if answered else messages
        self._check_end(messages[-1]["content"] if answered else None)
        prompt = written(before, answer_next=True)
        whole = written(messages, answer_next=False) if answered else prompt
        if not whole.startswith(prompt):
            raise ValueError(
                "the chat template writes the prompt otherwise once there is a response, so where "
                "the response begins is not known; give prompt and response as text"
            )
        response = whole.removeprefix(prompt).partition(self.tokenizer.eos_token)[0]
        return self._plain(prompt), self._ended(response if answered else None)

    def _check_end(self, response: Any) -> None:
        """Texts end at the end token, and what is behind it would be lost."""
        if self.tokenizer.eos_token in str(response):
            raise ValueError(
                f"the response contains the end token {self.tokenizer.eos_token!r}, which is added "
                "to it; take it out of the text"
            )

    def _plain(self, text: str) -> list[int]:
        tokens: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return tokens

    def _ended(self, response: str | None) -> list[int]:
        return [] if response is None else [*self._plain(response), self.eos]


def _read(path: Path, words: _Words, keys: _Keys) -> TextDataset:
    texts = []
    for number, line in _lines(path):
        try:
            prompt, response = _pair(line, words, keys)
        except (KeyError, TypeError, ValueError, IndexError, TemplateError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise DataError(f"{path}, line {number}: {reason}.") from error
        if not prompt:
            raise DataError(
                f"{path}, line {number}: the prompt is empty, so nothing is there from which to "
                "predict the first token; write something, or take a tokenizer that begins texts "
                "with a token of its own."
            )
        room = words.max_tokens - len(prompt)
        if room < 1:
            raise DataError(
                f"{path}, line {number}: the prompt has {len(prompt)} tokens, which leaves no room "
                f"for a response in max_tokens={words.max_tokens}; raise it or shorten the prompt."
            )
        texts.append((prompt, response[:room]))
    if not texts:
        raise DataError(f"{path} has no line; expected a JSON object in each.")
    return encoded(texts, pad_of(words.tokenizer))


def _lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path}: {error}.") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}, is no JSON: {error}.") from error
        if not isinstance(found, dict):
            raise DataError(f"{path}, line {number}, is no JSON object, but {line[:40]!r}.")
        yield number, found


def _pair(line: Mapping[str, Any], words: _Words, keys: _Keys) -> tuple[list[int], list[int]]:
    """The tokens of a line."""
    key = keys.prompt if keys.messages is None else keys.messages
    if key not in line:
        raise ValueError(f"there is no {key!r}, only {', '.join(map(repr, line)) or 'nothing'}")
    if keys.messages is not None:
        messages = line[key]
        fits = isinstance(messages, list) and messages
        if not fits or not all(
            isinstance(m, dict) and {"role", "content"} <= {*m} for m in messages
        ):
            raise ValueError(f"{key!r} is no list of messages, each with 'role' and 'content'")
        return words.conversation(messages)
    prompt, response = line[key], line.get(keys.response)
    for name, text in ((key, prompt), (keys.response, response)):
        if not isinstance(text, str) and not (name == keys.response and text is None):
            raise ValueError(f"{name!r} is {text!r}, which is no text")
    return words.pair(prompt, response)
