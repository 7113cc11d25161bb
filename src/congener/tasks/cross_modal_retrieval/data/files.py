"""NUS-WIDE in its original text files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from congener.errors import DataError

from .splits import Division, Pairs, Splits, divide

__all__ = ["nus_wide"]

_FEATURES = ("CH", "CM55", "CORR", "EDH", "WT")


def nus_wide(
    root: str | Path,
    *,
    features: Sequence[str] = _FEATURES,
    concepts: int | None = None,
    train: int | None = None,
    queries: int | None = 2000,
    **division: Unpack[Division],
) -> Splits:
    """NUS-WIDE (Chua et al., CIVR 2009): descriptors of Flickr images and 1,000 tags, 81 concepts.

    Images are alike if they share a concept. The files in ``root``, or in folders of it, are
    ``Concepts81.txt``, ``Labels_CONCEPT_Train.txt``, ``Train_Tags1k.dat``,
    ``Train_Normalized_CH.dat`` and ``BoW_Train_int.dat``, and the same with ``Test``. The 161,789
    training images are learnt from and searched, of the 107,859 test images some ask; images
    without any of the concepts are left out, as is usual.

    Args:
        root: the folder in which the original archives were unpacked.
        features: which descriptors make the first modality, one after the other: ``CH``, ``CM55``,
            ``CORR``, ``EDH``, ``WT``, ``BoW``; default: all but the last, 634 numbers.
        concepts: how many concepts count, the most frequent in training; default: all.
        train: how many training images, at random but always the same; default: all.
        queries: how many test images ask, likewise; ``None``: all. Default: ours, 2,000.
        **division: labelled, holdout; see :func:`divide`.

    Raises:
        DataError: files that are missing or damaged, or that differ in their number of lines.
    """
    base = Path(root)
    names = [line.strip() for line in _find(base, "Concepts81.txt").read_text().splitlines()]
    names = [name for name in names if name]
    if concepts is not None and not 2 <= concepts <= len(names):
        raise DataError(f"concepts={concepts}: expected 2 to {len(names)}.")
    learnt, asked = (_read(base, part, names, features) for part in ("Train", "Test"))
    frequent = learnt.labels.sum(0, dtype=torch.int64).argsort(descending=True, stable=True)
    chosen = frequent[:concepts].sort().values
    return divide(
        "NUS-WIDE",
        _some(learnt, chosen, train),
        _some(asked, chosen, queries),
        label_names=[names[place] for place in chosen],
        **division,
    )


def _read(base: Path, part: str, names: Sequence[str], features: Sequence[str]) -> Pairs:
    paths = [_find(base, f"Labels_{name}_{part}.txt") for name in names]
    labels = np.concatenate([_table(path, np.int8) for path in paths], 1)
    files = {"BoW": f"BoW_{part}_int.dat"}
    first = [_find(base, files.get(name, f"{part}_Normalized_{name}.dat")) for name in features]
    tags = _find(base, f"{part}_Tags1k.dat")
    tables = {path: _table(path, np.float32) for path in (*first, tags)}
    for path, table in tables.items():
        if len(table) != len(labels):
            raise DataError(
                f"{path} has {len(table)} lines, but {paths[0]} has {len(labels)}; the files of a "
                "part have a line for each image."
            )
    descriptors = np.concatenate([tables[path] for path in first], 1)
    columns = (descriptors, tables[tags], labels)
    return Pairs(*(torch.from_numpy(column) for column in columns))


def _table(
    path: Path, kind: "type[np.generic]"
) -> "np.ndarray[tuple[int, ...], np.dtype[np.generic]]":
    """Numbers in lines, separated by white space."""
    try:
        return np.loadtxt(path, dtype=kind, ndmin=2)
    except ValueError as error:
        raise DataError(f"{path} is no table of numbers ({error}); fetch it again.") from error


def _find(base: Path, name: str) -> Path:
    """A file in a folder or below it."""
    found = next(iter(sorted(base.rglob(name))), None)
    if found is None:
        raise DataError(
            f"There is no file {name} in {base} or its folders; unpack the archives of NUS-WIDE "
            "there (low-level features, tags, ground truth, concept list)."
        )
    return found


def _some(pairs: Pairs, concepts: Tensor, count: int | None) -> Pairs:
    """Some of the items that have one of the concepts, at random but always the same."""
    labels = pairs.labels[:, concepts]
    rows = labels.any(1).nonzero().flatten()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    rows = rows[order[:count]]
    return Pairs(pairs.first[rows], pairs.second[rows], labels[rows])
