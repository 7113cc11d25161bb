"""Tables of texts: CSV, TSV, JSON lines and Parquet."""

import csv
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Unpack

import torch
from torch import Tensor

from congener.errors import CongenerError, DataError, did_you_mean

from .splits import IGNORE, Division, Documents, Splits, divide, shuffled

__all__ = ["Columns", "class_names_of", "documents_of", "read_table", "table"]

Damaged = Literal["refuse", "skip"]
"""What to do with rows that lack a text, or have more or fewer columns than the first."""


class Columns(NamedTuple):
    """What the columns of a table are called, or, of a table without a header, where they are.

    Attributes:
        first: the text.
        label: the label; an empty cell, or ``None`` in JSON and Parquet: not known.
        second: of pairs, the other text.
    """

    first: str | int
    label: str | int | None
    second: str | int | None = None


def table(
    train: str | Path,
    test: str | Path,
    *,
    text: str = "text",
    label: str = "label",
    second: str | None = None,
    class_names: Sequence[str] | None = None,
    regression: bool = False,
    damaged: Damaged = "refuse",
    shuffle: bool = True,
    **division: Unpack[Division],
) -> Splits:
    """Two tables with a text and a label in each row.

    What a file is tells its ending: ``.csv`` (a value with a comma stands in quotes), ``.tsv``
    (quotes are quotes, as in GLUE), ``.jsonl`` (an object on each line) or ``.parquet``. The first
    line of CSV and TSV names the columns.

    Args:
        train: the training set.
        test: the test set.
        text: the column of texts.
        label: the column of labels; an empty cell: not known.
        second: of pairs, the column of the other texts.
        class_names: the classes in the order of their numbers; default: those that occur in
            ``train``, sorted, as numbers where they are.
        regression: labels are numbers to predict.
        damaged: what to do with rows without a text, or with more or fewer columns than the first,
            ``"refuse"`` or ``"skip"`` (with a notice).
        shuffle: whether to put ``train`` into a fixed random order before it is divided.
        **division: teacher, pool, labelled, holdout; see :func:`.divide`.

    Raises:
        DataError: a table that is missing or damaged, or rows of no use.
    """
    if regression and class_names is not None:
        raise DataError("regression=True predicts numbers and has no class_names; leave one out.")
    columns = Columns(text, label, second)
    paths = Path(train), Path(test)
    rows = [read_table(path, columns, damaged=damaged) for path in paths]
    names = None if regression else list(map(str, class_names or class_names_of(rows[0], label)))
    parts = [
        documents_of(path, some, columns, names) for path, some in zip(paths, rows, strict=True)
    ]
    learnt = shuffled(parts[0]) if shuffle else parts[0]
    return divide(paths[0].name, learnt, parts[1], class_names=names or (), **division)


Row = tuple[int, Mapping[str | int, Any]]
"""The number of a line, and its values by column."""
RAGGED = -1
"""Where a row that has more or fewer columns tells so."""


def read_table(
    path: Path, columns: Columns, *, header: bool = True, damaged: Damaged = "refuse"
) -> list[Row]:
    """The rows of a table, each with the number of its line, and by column.

    Args:
        path: the file, whose ending tells what it is.
        columns: those that must be there.
        header: whether the first line of CSV or TSV names the columns; they count from 0 if not.
        damaged: as for :func:`table`.

    Raises:
        DataError: no such file, one that is damaged, or a column that is missing.
    """
    if damaged not in ("refuse", "skip"):
        raise DataError(f"damaged={damaged!r}: expected 'refuse' or 'skip'.")
    kinds = (".csv", ".tsv", ".jsonl", ".parquet")
    if path.suffix not in kinds:
        raise DataError(f"{path} is no table of a known kind; expected one of {', '.join(kinds)}.")
    if not path.is_file():
        raise DataError(f"There is no file {path}; expected a table of texts and labels.")
    if path.suffix == ".parquet":
        rows = _parquet(path, columns)
    elif path.suffix == ".jsonl":
        rows = _json_lines(path)
    else:
        rows = _separated(path, header=header)
    wrong = {number: why for number, row in rows if (why := _wrong(row, columns))}
    if wrong and damaged == "refuse":
        number, why = next(iter(wrong.items()))
        raise DataError(f"{path}, line {number} {why}; mend it, or set damaged to 'skip'.")
    if len(wrong) == len(rows):
        why = next(iter(wrong.values()), "has nothing in it")
        raise DataError(f"{path} has no row of use: the first {why}.")
    if wrong:
        number, why = next(iter(wrong.items()))
        told = f"Left out {len(wrong)} of {len(rows)} rows of {path}: line {number} {why}, say."
        warnings.warn(told, stacklevel=4)
    return [(number, row) for number, row in rows if number not in wrong]


def _wrong(row: Mapping[str | int, Any], columns: Columns) -> str:
    """Why a row is of no use; empty where it is."""
    if RAGGED in row:
        return str(row[RAGGED])
    if lacking := [column for column in columns if column is not None and column not in row]:
        near = did_you_mean(str(lacking[0]), [str(each) for each in row])
        return f"has no column {lacking[0]!r} ({near.rstrip('.')})"
    texts = [row[column] for column in (columns.first, columns.second) if column is not None]
    good = all(isinstance(text, str) and text.strip() for text in texts)
    return "" if good else "has no text"


def _separated(path: Path, *, header: bool) -> list[Row]:
    limit = csv.field_size_limit(1 << 30)  # a text may be longer than csv expects
    try:
        if path.suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(file, strict=True)
                lines = [(reader.line_num, line) for line in reader if line]
        else:  # a line is a line, whatever quotes are in it
            with path.open(encoding="utf-8-sig", newline="\n") as file:
                kept = (line.rstrip("\r\n") for line in file)
                lines = [(n, line.split("\t")) for n, line in enumerate(kept, 1) if line]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a table ({error}); write it anew.") from error
    finally:
        csv.field_size_limit(limit)
    if not lines:
        return []
    names: Sequence[str | int] = lines.pop(0)[1] if header else range(len(lines[0][1]))
    return [(number, _by_name(names, line)) for number, line in lines]


def _by_name(names: Sequence[str | int], line: Sequence[str]) -> Mapping[str | int, Any]:
    if len(line) == len(names):
        return dict(zip(names, line, strict=True))
    return {RAGGED: f"has {len(line)} columns, but the first line has {len(names)}"}


def _json_lines(path: Path) -> list[Row]:
    rows: list[Row] = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text file ({error.reason}); expected UTF-8.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number} is no JSON ({error.msg}); mend it.") from error
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {number} holds a {type(row).__name__}; expected an object with a "
                "value for each column."
            )
        rows.append((number, row))
    return rows


def _parquet(path: Path, columns: Columns) -> list[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise CongenerError(
            f"To read {path} takes the package {error.name!r}; install it with: "
            'pip install "congener[text]"'
        ) from error
    try:
        known = parquet.read_schema(path).names
        asked = [column for column in columns if column is not None]
        found = parquet.read_table(path, columns=[each for each in asked if each in known])
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet ({error}); write it anew.") from error
    if lacking := [str(column) for column in asked if column not in known]:
        raise DataError(f"{path} has no column {lacking[0]!r}; {did_you_mean(lacking[0], known)}")
    return list(enumerate(found.to_pylist(), 1))


def class_names_of(rows: Iterable[Row], label: str | int | None) -> list[str]:
    """All classes that occur, sorted: as numbers, if all are."""
    names = {name for _, row in rows if (name := _cell(row, label)) is not None}
    if all(name.lstrip("-").isdecimal() for name in names):
        return sorted(names, key=int)
    return sorted(names)


def documents_of(
    path: Path, rows: Sequence[Row], columns: Columns, names: Sequence[str] | None
) -> Documents:
    """The texts of a table with their labels.

    Args:
        path: whose they are, for the errors.
        rows: as :func:`read_table` gives them.
        columns: which columns they are in.
        names: of the classes; ``None``: labels are numbers to predict.

    Raises:
        DataError: a label that is no class, or no number.
    """
    first = [str(row[columns.first]) for _, row in rows]
    second = None
    if columns.second is not None:
        second = [str(row[columns.second]) for _, row in rows]
    cells = [(number, _cell(row, columns.label)) for number, row in rows]
    return Documents(first, _labels(path, cells, names), second)


def _cell(row: Mapping[str | int, Any], label: str | int | None) -> str | None:
    """A label as text; ``None`` where it is not known."""
    value = None if label is None else row[label]
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # so does JSON write a class that Python holds as a float
    elif value != value:  # NaN, as some tables write what is missing
        value = None
    text = "" if value is None else str(value).strip()
    return text or None


def _labels(
    path: Path, cells: Sequence[tuple[int, str | None]], names: Sequence[str] | None
) -> Tensor:
    if names is None:
        return torch.tensor([_number(path, *cell) for cell in cells], dtype=torch.float32)
    numbers = {name: number for number, name in enumerate(names)}
    for line, cell in cells:
        if cell is not None and cell not in numbers:
            raise DataError(
                f"{path}, line {line}: the label {cell!r} is none of the {len(names)} classes; "
                f"{did_you_mean(cell, names)}"
            )
    found = [IGNORE if cell is None else numbers[cell] for _, cell in cells]
    return torch.tensor(found, dtype=torch.int64)


def _number(path: Path, line: int, cell: str | None) -> float:
    try:
        return torch.nan if cell is None else float(cell)
    except ValueError as error:
        raise DataError(
            f"{path}, line {line}: the label {cell!r} is no number, as regression needs; mend it, "
            "or predict classes."
        ) from error
