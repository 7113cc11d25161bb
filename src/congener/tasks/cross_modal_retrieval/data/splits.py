"""Pairs in memory, and how they are divided into what is learnt from and what is searched."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from congener.errors import DataError
from congener.tasks.in_memory import InMemory

__all__ = [
    "IGNORE",
    "Division",
    "Kind",
    "PairDataset",
    "Pairs",
    "Splits",
    "as_bytes",
    "as_text",
    "divide",
    "kind_of",
    "known_rows",
]

IGNORE = -100
Kind = Literal["image", "text", "sound", "vector"]
"""What a modality is; :func:`kind_of` tells it by the tensor."""


class Pairs(NamedTuple):
    """Items in two modalities, and their labels.

    Attributes:
        first: of each item, what :func:`kind_of` lists.
        second: likewise, of the same items.
        labels: class numbers (items,), int64, or 0 and 1 of each class (items, classes), int8; -100
            (all of the row) where they are not known.
    """

    first: Tensor
    second: Tensor
    labels: Tensor


def kind_of(items: Tensor, what: str = "A modality") -> Kind:
    """What a modality is: its type and shape tell.

    =======================================  ==========
    tensor                                   kind
    =======================================  ==========
    uint8 or float32 (items, 3, h, w)        ``image``
    uint8 (items, bytes), zero-padded UTF-8  ``text``
    int16 (items, samples), zero-padded      ``sound``
    float32 (items, features)                ``vector``
    =======================================  ==========

    Raises:
        DataError: none of these.
    """
    kinds: dict[tuple[torch.dtype, int], Kind] = {
        (torch.uint8, 4): "image",
        (torch.float32, 4): "image",
        (torch.uint8, 2): "text",
        (torch.int16, 2): "sound",
        (torch.float32, 2): "vector",
    }
    found = kinds.get((items.dtype, items.ndim))
    if found is None:
        raise DataError(
            f"{what} is {items.dtype} of the shape {tuple(items.shape)}; expected images (items, "
            "3, height, width) of uint8 or float32, texts (items, bytes) of uint8, sounds (items, "
            "samples) of int16, or vectors (items, features) of float32."
        )
    return found


def as_bytes(texts: Sequence[str]) -> Tensor:
    """Texts as zero-padded UTF-8, (texts, bytes), uint8.

    Raises:
        DataError: one that is no string.

    >>> as_bytes(["cat", "é"])
    tensor([[ 99,  97, 116],
            [195, 169,   0]], dtype=torch.uint8)
    """
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"Text {place} is {text!r}; expected a string, '' where there is none.")
    encoded = [text.replace("\0", " ").encode() for text in texts]
    rows = [torch.tensor(list(each), dtype=torch.uint8) for each in encoded]
    width = max(1, *(len(row) for row in rows))
    return torch.stack([F.pad(row, (0, width - len(row))) for row in rows])


def as_text(row: Tensor) -> str:
    """What one row of :func:`as_bytes` says."""
    return bytes(row.tolist()).rstrip(b"\0").decode(errors="replace")


def known_rows(labels: Tensor) -> Tensor:
    """Which items have a label, (items,), bool."""
    return (labels != IGNORE).reshape(len(labels), -1).all(1)


class PairDataset(InMemory):
    """Pairs in memory; a whole batch is one indexing operation.

    A batch is ``{"first", "second", "labels", "query", "index"}``.

    Attributes:
        query: which items ask, (items,), bool; the others are the database that is searched.
    """

    def __init__(self, pairs: Pairs, query: Tensor | None = None) -> None:
        self.pairs = pairs
        self.query = torch.zeros(len(pairs.labels), dtype=torch.bool) if query is None else query

    @property
    def columns(self) -> dict[str, Tensor]:
        """What a batch is made of, beside ``index``."""
        return {**self.pairs._asdict(), "query": self.query}


@dataclass(frozen=True, slots=True)
class Splits:
    """Pairs, divided.

    Attributes:
        train: what the student learns from; items without a label carry -100.
        test: the queries and the database.
        label_names: one name for each class, where they are known.
        teacher: what the teacher learns from, where that is not ``train``.
        sample_rate: of sounds, samples per second.
    """

    train: PairDataset
    test: PairDataset
    label_names: tuple[str, ...] = ()
    teacher: PairDataset | None = None
    sample_rate: int | None = None


class Division(TypedDict, total=False):
    """How pairs are divided; every loader takes these options. See :func:`divide`."""

    labelled: int | None
    teacher: Literal["all"] | None
    holdout: int | None


def divide(
    what: str,
    train: Pairs,
    queries: Pairs,
    *,
    database: Pairs | None = None,
    label_names: Sequence[str] = (),
    sample_rate: int | None = None,
    labelled: int | None = None,
    teacher: Literal["all"] | None = None,
    holdout: int | None = None,
) -> Splits:
    """Divide n training pairs, in their own order, and make the test set.

    Args:
        what: how messages call the data set.
        train: what is learnt from.
        queries: the items that ask, each in one modality for items of the other.
        database: what they search, with its labels, by which hits are judged; default: the training
            pairs, as is usual in hashing.
        label_names: one name for each class.
        sample_rate: of sounds, samples per second.
        labelled: how many training pairs keep their label, the first ones. Default: all.
        teacher: ``"all"``: the teacher learns from the same pairs with all their labels. Default:
            it learns from what the student sees.
        holdout: the last so many training pairs ask instead of ``queries``, for tuning; the
            training pairs before them are what is learnt from and searched.

    Raises:
        DataError: data or options that do not fit, saying which and why.
    """
    for name, pairs in (("training", train), ("query", queries), ("database", database)):
        if pairs is not None:
            _check(f"The {name} set of {what}", pairs)
    for name, pairs in (("query", queries), ("database", database)):
        if pairs is not None:
            _check_alike(what, train, name, pairs)
    if sample_rate is None and "sound" in map(kind_of, (train.first, train.second)):
        raise DataError(f"{what} has sounds; say how many samples a second has, `sample_rate`.")
    if teacher not in (None, "all"):
        raise DataError(f"teacher={teacher!r}: expected 'all', or leave it out.")
    count = len(train.labels)
    for option, value, least in (("labelled", labelled, 0), ("holdout", holdout, 1)):
        if value is not None and (not isinstance(value, int) or value < least):
            raise DataError(f"{option}={value!r} is not a number of pairs; leave it out.")
    if holdout is not None and holdout > count - 2:
        raise DataError(
            f"holdout={holdout} leaves fewer than 2 of the {count} training pairs of {what}; "
            "lower it."
        )
    if holdout is not None:
        queries, database = _rows(train, slice(count - holdout, None)), None
        train = _rows(train, slice(0, count - holdout))
    if labelled is not None and labelled > len(train.labels):
        raise DataError(
            f"labelled={labelled} is more than the {len(train.labels)} training pairs of {what}; "
            "lower it."
        )
    searched = train if database is None else database
    query = torch.arange(len(queries.labels) + len(searched.labels)) < len(queries.labels)
    test = PairDataset(Pairs(*map(_under, queries, searched)), query)
    whole = PairDataset(train) if teacher == "all" else None
    if labelled is not None:
        labels = train.labels.clone()
        labels[labelled:] = IGNORE
        train = train._replace(labels=labels)
    _check_classes(what, train.labels)
    return Splits(PairDataset(train), test, tuple(label_names), whole, sample_rate)


def _rows(pairs: Pairs, rows: slice) -> Pairs:
    return Pairs(*(column[rows] for column in pairs))


def _under(upper: Tensor, lower: Tensor) -> Tensor:
    """One column under another; texts and sounds are padded to one width."""
    if upper.ndim == 2 and upper.dtype in (torch.uint8, torch.int16):
        width = max(upper.shape[1], lower.shape[1])
        upper, lower = (F.pad(each, (0, width - each.shape[1])) for each in (upper, lower))
    return torch.cat([upper, lower])


def _check(what: str, pairs: Pairs) -> None:
    first, second, labels = pairs
    if not len(first) == len(second) == len(labels):
        raise DataError(
            f"{what} has {len(first)} items in its first modality, {len(second)} in its second, "
            f"and {len(labels)} labels; an item has one of each ({IGNORE} where its label is not "
            "known)."
        )
    if not len(labels):
        raise DataError(f"{what} is empty; at least one pair is needed.")
    for name, items in (("first", first), ("second", second)):
        kind_of(items, f"{what}, {name} modality,")
        if not items[0].numel():
            raise DataError(f"{what} has items without any value in its {name} modality.")
        if items.is_floating_point() and not items.isfinite().all():
            row = int((~items.isfinite()).flatten(1).any(1).nonzero()[0, 0])
            raise DataError(
                f"{what} has NaN or infinite values in its {name} modality, first at item {row}; "
                "clean or drop such items."
            )
    if (labels.dtype, labels.ndim) not in {(torch.int64, 1), (torch.int8, 2)}:
        raise DataError(
            f"{what} has labels of {labels.dtype} of the shape {tuple(labels.shape)}; expected "
            "class numbers (items,) of int64, or 0 and 1 of each class (items, classes) of int8."
        )
    if labels.ndim == 2 and labels.shape[1] < 2:
        raise DataError(
            f"{what} has {labels.shape[1]} classes; to tell items apart takes two classes or more."
        )
    known = known_rows(labels)
    most = 1 if labels.ndim == 2 else int(labels.max())
    wrong = ~known & (labels != IGNORE).reshape(len(labels), -1).any(1)
    wrong |= known & ((labels < 0) | (labels > most)).reshape(len(labels), -1).any(1)
    if wrong.any():
        row = int(wrong.nonzero()[0, 0])
        raise DataError(
            f"{what} has the label {labels[row].tolist()} at item {row}; number the classes from 0 "
            f"or mark each with 0 or 1, and give {IGNORE} (to all of them) where an item's label "
            "is not known."
        )


def _check_alike(what: str, train: Pairs, name: str, pairs: Pairs) -> None:
    """Queries and database must be of the kinds and the widths that are learnt from."""
    for side in ("first", "second", "labels"):
        one, other = getattr(train, side), getattr(pairs, side)
        padded = one.ndim == 2 and one.dtype in (torch.uint8, torch.int16)
        alike = one.dtype == other.dtype and one.ndim == other.ndim
        if not alike or not (padded or one.shape[1:] == other.shape[1:]):
            called = "labels" if side == "labels" else f"{side} modality"
            raise DataError(
                f"The {called} of the {name} set of {what}: an item has {other.dtype} of the shape "
                f"{tuple(other.shape[1:])}, but in training {one.dtype} of "
                f"{tuple(one.shape[1:])}; make them the same."
            )


def _check_classes(what: str, labels: Tensor) -> None:
    """Where all items are alike, there is nothing to tell apart."""
    known = labels[known_rows(labels)]
    if not len(known):
        return
    one_hot = known if known.ndim == 2 else (known == known[0]).unsqueeze(1)
    shared = one_hot.all(0).nonzero().flatten()
    if len(shared):
        label = int(shared[0]) if known.ndim == 2 else int(known[0])
        raise DataError(
            f"All labelled training pairs of {what} have the label {label}, so that each is like "
            "each; to tell items apart takes two classes or more."
        )
