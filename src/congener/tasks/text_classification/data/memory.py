"""Texts and tokens that lie in memory already."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import Tensor

from congener.errors import DataError

from .splits import IGNORE, Division, Documents, Splits, TokenDataset, divide

__all__ = ["tensors", "texts"]


def texts(
    *,
    train_texts: Sequence[str],
    train_labels: Any,
    test_texts: Sequence[str],
    test_labels: Any,
    train_second: Sequence[str] | None = None,
    test_second: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    **division: Unpack[Division],
) -> Splits:
    """Your own texts.

    Args:
        train_texts: the texts.
        train_labels: class numbers, -100 where it is not known, or floats to predict, NaN where it
            is not known; a list, tensor or numpy array.
        test_texts: like ``train_texts``.
        test_labels: like ``train_labels``.
        train_second: of pairs, the other texts.
        test_second: likewise.
        class_names: default: the numbers.
        **division: teacher, pool, labelled, holdout; see :func:`.divide`.

    Raises:
        DataError: texts or labels of no use.
    """
    if (train_second is None) != (test_second is None):
        raise DataError("Only one of the two parts has second texts; give both, or none.")
    # Lists, for a column of a data frame tells its rows by its own index.
    train, test = (
        Documents(list(first), _labels(labels), None if second is None else list(second))
        for first, labels, second in (
            (train_texts, train_labels, train_second),
            (test_texts, test_labels, test_second),
        )
    )
    names = _names(class_names, train.labels, test.labels)
    return divide("the given texts", train, test, class_names=names, **division)


def tensors(
    *,
    train_tokens: Tensor,
    train_length: Tensor,
    train_labels: Any,
    test_tokens: Tensor,
    test_length: Tensor,
    test_labels: Any,
    train_segments: Tensor | None = None,
    test_segments: Tensor | None = None,
    class_names: Sequence[str] | None = None,
    vocab_size: int | None = None,
    pad: int = 0,
    **division: Unpack[Division],
) -> Splits:
    """Your own tokens, for which no tokenizer is needed.

    Args:
        train_tokens: (texts, longest), whole numbers, padded at the right with anything.
        train_length: tokens of each text, (texts,).
        train_labels: as for :func:`texts`.
        test_tokens: like ``train_tokens``; its texts may be of another width.
        test_length: like ``train_length``.
        test_labels: like ``train_labels``.
        train_segments: which of a pair each token belongs to, like ``train_tokens``.
        test_segments: likewise.
        class_names: default: the numbers.
        vocab_size: how many tokens there are; default: the largest that occurs, and one.
        pad: the token that fills texts up, and occurs in none: BERT's 0, RoBERTa's 1.
        **division: teacher, pool, labelled, holdout; see :func:`.divide`.

    Raises:
        DataError: arrays that do not fit each other.
    """
    if pad < 0:
        raise DataError(f"pad={pad}: tokens count from 0.")
    train = _tokens(
        "The training tokens", train_tokens, train_length, train_labels, train_segments, pad
    )
    test = _tokens("The test tokens", test_tokens, test_length, test_labels, test_segments, pad)
    largest = 1 + max([pad, *(int(x.tokens.max()) for x in (train, test) if len(x))])
    if vocab_size is not None and vocab_size < largest:
        raise DataError(
            f"vocab_size={vocab_size}, but the token {largest - 1} occurs; raise it to {largest}."
        )
    names = _names(class_names, train.labels, test.labels)
    size = largest if vocab_size is None else vocab_size
    found = divide("the given tokens", train, test, class_names=names, vocab_size=size, **division)
    return replace(found, pad=pad)


def _labels(labels: Any) -> Tensor:
    try:
        found = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"Labels are class numbers, or floats to predict, one for each text ({error}); give "
            f"each class a number, and {IGNORE} or NaN where it is not known."
        ) from error
    if found.ndim != 1 or found.dtype in (torch.bool, torch.complex64, torch.complex128):
        raise DataError(
            f"Labels have the shape {tuple(found.shape)} and type {found.dtype}; expected one "
            "class number, or one float, for each text."
        )
    return found.to(torch.float32 if found.is_floating_point() else torch.int64).clone()


def _names(given: Sequence[str] | None, *labels: Tensor) -> tuple[str, ...]:
    if given is not None:
        return tuple(given)
    if any(each.is_floating_point() for each in labels):
        return ()
    largest = max((int(each.max()) for each in labels if len(each)), default=-1)
    return tuple(str(number) for number in range(largest + 1))


def _tokens(
    what: str, tokens: Tensor, length: Tensor, labels: Any, segments: Tensor | None, pad: int
) -> TokenDataset:
    tokens, length = torch.as_tensor(tokens), torch.as_tensor(length)
    segments = torch.zeros_like(tokens) if segments is None else torch.as_tensor(segments)
    for name, column, dims in (
        ("tokens", tokens, 2), ("segments", segments, 2), ("lengths", length, 1)
    ):  # fmt: skip
        if column.ndim != dims or column.is_floating_point() or column.dtype == torch.bool:
            raise DataError(
                f"{what} have {name} of type {column.dtype} and shape {tuple(column.shape)}; "
                f"expected whole numbers, {'(texts, longest)' if dims == 2 else '(texts,)'}."
            )
    found = _labels(labels)
    if not len(tokens) == len(length) == len(found) or segments.shape != tokens.shape:
        raise DataError(
            f"{what} have the shapes {tuple(tokens.shape)}, {len(length)} lengths, segments "
            f"{tuple(segments.shape)} and {len(found)} labels; each text needs one of each."
        )
    wrong = (length < 1) | (length > tokens.shape[1])
    if wrong.any():
        place = int(wrong.nonzero()[0, 0])
        raise DataError(
            f"{what} have the length {int(length[place])} at text {place}; expected 1 to "
            f"{tokens.shape[1]}, the tokens that a row holds."
        )
    tokens = tokens.masked_fill(torch.arange(tokens.shape[1]) >= length[:, None], pad)
    if len(tokens) and int(tokens.min()) < 0:
        raise DataError(f"{what} have the token {int(tokens.min())}; tokens count from 0.")
    return TokenDataset(
        tokens.to(torch.int32), length.to(torch.int64), found, segments.to(torch.int8)
    )
