"""Pairs of the user's own."""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from congener.errors import DataError

from .splits import IGNORE, Division, Pairs, Splits, as_bytes, divide

__all__ = ["paired_tensors"]

Items = Tensor | Sequence[str]


def paired_tensors(
    *,
    train_first: Items,
    train_second: Items,
    query_first: Items,
    query_second: Items,
    train_labels: Tensor | None = None,
    query_labels: Tensor | None = None,
    database_first: Items | None = None,
    database_second: Items | None = None,
    database_labels: Tensor | None = None,
    label_names: Sequence[str] = (),
    sample_rate: int | None = None,
    **division: Unpack[Division],
) -> Splits:
    """Your own pairs: images, texts, sounds or vectors; see :func:`kind_of`.

    Args:
        train_first: tensor or numpy array, or a list of texts.
        train_second: of the same items, in the other modality.
        query_first: of the items that ask.
        query_second: likewise.
        train_labels: class numbers, or 0 and 1 of each class; -100 where they are not known.
            Default: known of none, for the task's ``pairs: aligned``.
        query_labels: likewise.
        database_first: what is searched; default: the training pairs.
        database_second: likewise.
        database_labels: likewise.
        label_names: one name for each class.
        sample_rate: of sounds, samples per second.
        **division: labelled, holdout; see :func:`divide`.

    Raises:
        DataError: arrays that do not fit each other.
    """
    train = _pairs(train_first, train_second, train_labels)
    queries = _pairs(query_first, query_second, query_labels)
    database = None
    if database_first is not None and database_second is not None:
        database = _pairs(database_first, database_second, database_labels)
    elif database_first is not None or database_second is not None:
        raise DataError("The database has one modality only; give both, or none.")
    return divide(
        "the given arrays",
        train,
        queries,
        database=database,
        label_names=label_names,
        sample_rate=sample_rate,
        **division,
    )


def _pairs(first: Items, second: Items, labels: Tensor | None) -> Pairs:
    one, other = _items(first), _items(second)
    if labels is None:
        return Pairs(one, other, torch.full((len(one),), IGNORE))
    given = torch.as_tensor(labels)
    if given.is_floating_point() or given.is_complex():
        raise DataError(f"Labels are of type {given.dtype}; expected whole numbers.")
    small = given.to(torch.int8)  # other numbers than 0, 1 and -100 must not become these
    return Pairs(
        one, other, small if given.ndim == 2 and bool((small == given).all()) else given.long()
    )


def _items(given: Items) -> Tensor:
    if not isinstance(given, Tensor) and any(isinstance(each, str) for each in given):
        return as_bytes(given)
    items = torch.as_tensor(given)
    return items.to(torch.float32) if items.is_floating_point() else items
