"""Tokens of the user's own."""

from collections.abc import Callable, Sequence
from typing import Unpack

import torch
from torch import Tensor

from congener.errors import DataError
from congener.tasks.parts import PartsOptions

from .splits import Check, Splits, TextDataset, Vocabulary, divide

__all__ = ["tensors"]


def tensors(
    *,
    train_tokens: Tensor,
    train_prompt: Tensor,
    train_length: Tensor,
    test_tokens: Tensor,
    test_prompt: Tensor,
    test_length: Tensor,
    vocabulary: int,
    eos: int,
    pad: int,
    check: Check | None = None,
    one_answer: bool = False,
    decode: Callable[[Sequence[int]], str] | None = None,
    **parts: Unpack[PartsOptions],
) -> Splits:
    """Your own tokens: prompts with their responses, padded on the right.

    Args:
        train_tokens: (samples, longest), integers.
        train_prompt: how many of them are the prompt, (samples,).
        train_length: how many are no padding, (samples,); of a prompt without a response, as
            ``train_prompt``. A response ends with ``eos``.
        test_tokens: like ``train_tokens``, of any width.
        test_prompt: like ``train_prompt``.
        test_length: like ``train_length``.
        vocabulary: how many tokens there are.
        eos: the token that ends a response.
        pad: the token of the padding.
        check: whether a response is right for a prompt, both as lists of tokens.
        one_answer: whether the response is the only right one.
        decode: the text of some tokens; default: their numbers.
        **parts: teacher, pool, labelled, holdout; see :func:`.divide_positions`.

    Raises:
        DataError: arrays that do not fit each other.
    """
    return divide(
        "the given arrays",
        _texts("training", train_tokens, train_prompt, train_length, pad),
        _texts("test", test_tokens, test_prompt, test_length, pad),
        Vocabulary(vocabulary, eos, pad, decode or _numbers, "the given vocabulary"),
        check=check,
        one_answer=one_answer,
        **parts,
    )


def _numbers(tokens: Sequence[int]) -> str:
    return " ".join(map(str, tokens))


def _texts(part: str, tokens: Tensor, prompt: Tensor, length: Tensor, pad: int) -> TextDataset:
    given = {"tokens": tokens, "prompt": prompt, "length": length}
    whole = {name: torch.as_tensor(column) for name, column in given.items()}
    for name, column in whole.items():
        if column.is_floating_point() or column.is_complex() or column.dtype == torch.bool:
            raise DataError(f"The {part} {name} are {column.dtype}; expected whole numbers.")
        if column.ndim != (2 if name == "tokens" else 1) or len(column) != len(tokens):
            raise DataError(
                f"The {part} {name} have the shape {tuple(column.shape)}; expected tokens "
                "(samples, longest), prompt and length (samples,)."
            )
    length = whole["length"].long()
    beyond = torch.arange(whole["tokens"].shape[1]) >= length[:, None]
    tokens = whole["tokens"].int().masked_fill(beyond, pad)  # it may hold anything there
    return TextDataset(tokens, whole["prompt"].long(), length)
