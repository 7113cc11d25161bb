"""Anyone's sound files with a table of their tags."""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from congener.errors import DataError

from .sound import MissingFiles, Resampling, found_files, read_sounds
from .splits import IGNORE, ClipDataset, Division, Splits, divide

__all__ = ["clip_folder", "read_table", "shuffled"]


def clip_folder(
    root: str | Path,
    *,
    annotations: str = "annotations.csv",
    sample_rate: int = 16000,
    resample: Resampling = "convert",
    missing: MissingFiles = "refuse",
    **division: Unpack[Division],
) -> Splits:
    """Sound files of any length in a folder, and a table that says what is heard in each.

    The table has the columns ``file`` (relative to the folder), ``split`` (``train`` or ``test``)
    and ``tags``, several of them separated by ``;``. No tag means that none is heard, ``?`` that
    the others are not known. The tags are all that occur, in alphabetical order. Files that the
    table does not name are ignored. ``train`` is put into a fixed random order before it is
    divided.

    Args:
        root: the folder.
        annotations: the table's name in it.
        sample_rate: samples per second in memory.
        resample: what to do with files of another one, ``"convert"`` (with a notice) or
            ``"refuse"``.
        missing: what to do with clips without a file, ``"refuse"`` or ``"skip"`` (with a notice).
        **division: teacher, pool, labelled, holdout; see :func:`.divide`.

    Raises:
        DataError: a table or a file that is missing or damaged, or data of no use.
    """
    table = Path(root) / annotations
    rows = read_table(table, ("file", "split", "tags"), "file,split,tags")
    files = [row["file"] for row in rows]
    for number, row in enumerate(rows, 2):
        if row["split"] not in ("train", "test"):
            raise DataError(
                f"{table}, line {number}: the split is {row['split']!r}; expected train or test."
            )
    often = [file for file, count in Counter(files).items() if count > 1]
    if often:
        raise DataError(f"{table} names the file {often[0]!r} twice; give each clip one line.")
    paths = found_files(str(table), files, [Path(root)], missing)
    tags = [{tag.strip() for tag in row["tags"].split(";")} - {""} for row in rows]
    names = sorted(set().union(*tags) - {"?"})
    if not names:
        raise DataError(f"{table} has no tag at all; name those of a clip in its column tags.")
    labels = torch.tensor([_labels(of, names) for of in tags], dtype=torch.int8)
    parts = []
    for split in ("train", "test"):
        mine = [
            (path, of)
            for row, path, of in zip(rows, paths, labels, strict=True)
            if row["split"] == split and path is not None
        ]
        if not mine:
            raise DataError(f"{table} has no clip of the split {split!r}; at least one is needed.")
        waveform, length = read_sounds(
            f"the split {split!r} of {root}",
            [path for path, _ in mine],
            sample_rate=sample_rate,
            resample=resample,
        )
        parts.append(ClipDataset(waveform, length, torch.stack([of for _, of in mine])))
    return divide(
        str(root),
        shuffled(parts[0]),
        parts[1],
        tag_names=names,
        sample_rate=sample_rate,
        **division,
    )


def _labels(tags: set[str], names: Sequence[str]) -> list[int]:
    absent = IGNORE if "?" in tags else 0
    return [1 if name in tags else absent for name in names]


def read_table(path: Path, columns: Sequence[str], header: str) -> list[dict[str, str]]:
    """The lines of a csv file with a header, by column.

    Args:
        path: the file.
        columns: those that must be there.
        header: what to show of the expected first line.

    Raises:
        DataError: no such file, one that is not csv, a column that is missing, or no lines.
    """
    if not path.is_file():
        raise DataError(f"There is no file {path}; expected a table with the columns {header}.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            found = reader.fieldnames or []
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a table ({error}); write it anew.") from error
    if lacking := [column for column in columns if column not in found]:
        raise DataError(
            f"{path} has no column {lacking[0]!r}, only {', '.join(found) or 'none'}; expected "
            f"{header}."
        )
    for number, row in enumerate(rows, 2):
        if any(row[column] is None for column in columns) or None in row:
            raise DataError(
                f"{path}, line {number} has not as many columns as the first; put a comma between "
                "columns, and quotes around a value that has one."
            )
    if not rows:
        raise DataError(f"{path} has no lines below its header; at least one clip is needed.")
    return rows


def shuffled(clips: ClipDataset) -> ClipDataset:
    """The clips in a fixed random order, for files are listed by where they come from."""
    order: Tensor = torch.randperm(len(clips), generator=torch.Generator().manual_seed(0))
    return clips.part(order)
