"""SONYC Urban Sound Tagging, in its original files."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Unpack

import torch

from congener.errors import DataError

from .files import read_table, shuffled
from .sound import MissingFiles, Resampling, found_files, read_sounds
from .splits import IGNORE, ClipDataset, Division, Splits, divide

__all__ = ["sonyc_ust"]

TAGS = (
    "engine",
    "machinery-impact",
    "non-machinery-impact",
    "powered-saw",
    "alert-signal",
    "music",
    "human-voice",
    "dog",
)
COLUMNS = tuple(f"{number}_{tag}_presence" for number, tag in enumerate(TAGS, 1))
CONSENSUS = "0"
"""The annotator who stands for what the data set's makers agreed on."""

Annotations = Mapping[str, Sequence[Mapping[str, str]]]


def sonyc_ust(
    root: str | Path,
    *,
    test: Literal["validate", "test"] = "validate",
    sample_rate: int = 16000,
    resample: Resampling = "convert",
    missing: MissingFiles = "refuse",
    **division: Unpack[Division],
) -> Splits:
    """SONYC-UST (Cartwright et al., DCASE 2019): ten seconds of New York City, 8 coarse tags.

    A training clip has a tag if any of its annotators heard it (the rule of the DCASE 2019
    baseline and of IUSP's peer, knowledge-distillation-ust); a test clip has the tags of annotator
    0, the consensus of the data set's makers, and clips without that are left out. A tag on which
    nobody says 0 or 1, but all -1, is not known. ``train`` is put into a fixed random order before
    it is divided.

    Args:
        root: folder of ``annotations.csv``, with the sounds in it, in ``audio/``, or in a folder
            of either that is called like the split, such as ``train/``.
        test: the split to test on; ``"test"`` exists from version 2 on.
        sample_rate: samples per second in memory; default: the peer's.
        resample: what to do with files of another one, ``"convert"`` (with a notice) or
            ``"refuse"``.
        missing: what to do with clips without a file, ``"refuse"`` or ``"skip"`` (with a notice).
        **division: teacher, pool, labelled, holdout; see :func:`.divide`.

    Raises:
        DataError: a table or a file that is missing or damaged.
    """
    table = Path(root) / "annotations.csv"
    columns = ("split", "audio_filename", "annotator_id", *COLUMNS)
    rows = read_table(table, columns, f"split, audio_filename, annotator_id, {COLUMNS[0]} and more")
    clips: dict[str, dict[str, list[dict[str, str]]]] = defaultdict(lambda: defaultdict(list))
    for number, row in enumerate(rows, 2):
        if wrong := [column for column in COLUMNS if row[column] not in ("-1", "0", "1")]:
            raise DataError(
                f"{table}, line {number}: {wrong[0]} is {row[wrong[0]]!r}; expected 1 (heard), 0 "
                "(not heard) or -1 (not annotated)."
            )
        if row["split"] == "train" or row["annotator_id"] == CONSENSUS:
            clips[row["split"]][row["audio_filename"]].append(row)
    parts = []
    for split, rule in (("train", "clip"), (test, f"clip of annotator {CONSENSUS}")):
        if not clips[split]:
            known = ", ".join(sorted({row["split"] for row in rows}))
            raise DataError(f"{table} has no {rule} in the split {split!r}; its splits: {known}.")
        parts.append(_part(Path(root), split, clips[split], sample_rate, resample, missing))
    return divide(
        "SONYC-UST",
        shuffled(parts[0]),
        parts[1],
        tag_names=TAGS,
        sample_rate=sample_rate,
        **division,
    )


def _part(
    root: Path,
    split: str,
    clips: Annotations,
    sample_rate: int,
    resample: Resampling,
    missing: MissingFiles,
) -> ClipDataset:
    files = sorted(clips)
    places = [root / "audio", root / split, root / "audio" / split, root]
    paths = found_files(f"The split {split!r} of SONYC-UST", files, places, missing)
    present = {file: path for file, path in zip(files, paths, strict=True) if path is not None}
    waveform, length = read_sounds(
        f"the split {split!r} of SONYC-UST",
        list(present.values()),
        sample_rate=sample_rate,
        resample=resample,
    )
    heard = [
        [max(int(row[column]) for row in clips[file]) for column in COLUMNS] for file in present
    ]
    labels = torch.tensor(heard, dtype=torch.int8)
    return ClipDataset(waveform, length, labels.masked_fill(labels < 0, IGNORE))
