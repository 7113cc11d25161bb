"""How a training set is divided, by position, among teacher, student and tuning: for every pack."""

from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from congener.errors import DataError

__all__ = ["Parts", "PartsOptions", "divide_positions", "kept_labels"]


class PartsOptions(TypedDict, total=False):
    """How a training set is divided; every loader takes these options."""

    teacher: int | None
    pool: int | None
    labelled: int | None
    holdout: int | None


class Parts(NamedTuple):
    """Disjoint stretches of a training set.

    Attributes:
        teacher: what the teacher is trained on; ``None``: what the student sees.
        train: what the student sees.
        test: what figures are measured on, for tuning; ``None``: the test set.
    """

    teacher: slice | None
    train: slice
    test: slice | None


def divide_positions(
    what: str,
    count: int,
    *,
    teacher: int | None = None,
    pool: int | None = None,
    labelled: int | None = None,
    holdout: int | None = None,
) -> Parts:
    """Divide a training set of n samples, in its own order, into disjoint parts.

    ======================================  =====================================================
    samples                                 use
    ======================================  =====================================================
    0 … teacher-1                           split ``teacher``: the teacher's training set
    teacher … teacher+pool-1                split ``train``: what the student sees
    n-holdout … n-1                         split ``test``, instead of the test set, for tuning
    ======================================  =====================================================

    Args:
        what: how messages call the data set.
        count: n.
        teacher: default: no split of its own, the teacher learns from ``train``.
        pool: default: all that ``teacher`` and ``holdout`` leave.
        labelled: how many samples of the pool keep their label; only checked here.
        holdout: default: none, ``test`` is the test set.

    Raises:
        DataError: an option that is no number, or more samples than there are.
    """
    options = {"teacher": teacher, "pool": pool, "labelled": labelled, "holdout": holdout}
    for option, value in options.items():
        least = 0 if option == "labelled" else 1
        if value is not None and (not isinstance(value, int) or value < least):
            raise DataError(f"{option}={value!r} is not a number of samples; leave it out.")
    start = teacher or 0
    end = count - (holdout or 0)
    stop = end if pool is None else start + pool
    if stop > end or stop <= start:
        raise DataError(
            f"{what} has {count} training samples, too few for teacher={start} + "
            f"pool={'at least 1' if pool is None else pool} + holdout={holdout or 0}; lower one."
        )
    if labelled is not None and labelled > stop - start:
        raise DataError(
            f"labelled={labelled} is more than the {stop - start} samples the student sees; "
            "lower labelled or enlarge pool."
        )
    return Parts(
        teacher=None if teacher is None else slice(0, start),
        train=slice(start, stop),
        test=None if holdout is None else slice(end, count),
    )


def kept_labels(present: Tensor, unknown: Tensor, labelled: int, *, seed: int) -> Tensor:
    """The positions of so many samples that keep their labels, (labelled,).

    They are the first of a fixed random order in which the first sample of every class comes before
    all others, and those without a label come last.

    Args:
        present: which classes each sample has, (samples, classes).
        unknown: which samples have no label, (samples,).
        labelled: how many keep theirs.
        seed: of the order.
    """
    order = torch.randperm(len(present), generator=torch.Generator().manual_seed(seed))
    there = present[order]
    leads = (there & (there.cumsum(0) == 1)).any(1)
    return order[torch.argsort(~leads + unknown[order].int(), stable=True)[:labelled]]
