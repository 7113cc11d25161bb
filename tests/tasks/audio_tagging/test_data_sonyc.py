"""SONYC-UST: small files in the original format."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from congener.errors import DataError
from congener.tasks.audio_tagging.data import sonyc_ust

COARSE = [
    "1_engine",
    "2_machinery-impact",
    "3_non-machinery-impact",
    "4_powered-saw",
    "5_alert-signal",
    "6_music",
    "7_human-voice",
    "8_dog",
]
FINE = ["1-1_small-sounding-engine", "7-X_other-unknown-human-voice"]
HEADER = [
    "split",
    "sensor_id",
    "audio_filename",
    "annotator_id",
    *(f"{tag}_presence" for tag in FINE),
    *(f"{tag}_presence" for tag in COARSE),
    *(f"{tag}_proximity" for tag in FINE),
]
ROWS = [
    # split, file, annotator, coarse tags
    ("train", "00_000066.wav", 1, "10000000"),
    ("train", "00_000066.wav", 7, "10000010"),
    ("train", "00_000066.wav", 9, "00000000"),
    ("train", "12_000001.wav", 3, "00000000"),
    ("train", "12_000001.wav", 0, "01000000"),
    ("train", "05_000200.wav", -2, "x1xxxxxx"),
    ("train", "05_000200.wav", 4, "x0xx1xx0"),
    ("train", "30_000300.wav", 4, "11111111"),
    ("validate", "01_000500.wav", 2, "11111111"),
    ("validate", "01_000500.wav", 0, "00000001"),
    ("validate", "01_000500.wav", -1, "1xxxxxxx"),
    ("validate", "02_000600.wav", 6, "10000000"),
    ("test", "03_000700.wav", 0, "00000100"),
]
TRAIN = {
    66: [1, 0, 0, 0, 0, 0, 1, 0],
    1: [0, 1, 0, 0, 0, 0, 0, 0],
    200: [-100, 1, -100, -100, 1, -100, -100, 0],
    300: [1] * 8,
}


def write_table(root: Path, rows: list[Any] = ROWS) -> None:
    with (root / "annotations.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for split, name, annotator, tags in rows:
            values = ["-1" if tag == "x" else tag for tag in tags]
            writer.writerow(
                [split, name[:2], name, annotator, "1", "-1", *values, "near", "notsure"]
            )


def write_sounds(root: Path, layout: str) -> None:
    """The file number n has 100 + n samples, at the rate of the original files."""
    for split, name, *_ in ROWS:
        path = root / layout.format(split=split) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = 100 + int(name[3:9])
        soundfile.write(path, np.full(samples, 0.25), 48000)


def load(root: Path, **options: Any) -> Any:
    return sonyc_ust(root, **({"sample_rate": 48000} | options))


@pytest.mark.parametrize("layout", ["{split}", "audio", "audio/{split}", "."])
def test_labels_by_the_rules(tmp_path: Path, layout: str) -> None:
    write_table(tmp_path)
    write_sounds(tmp_path, layout)
    soundfile.write(tmp_path / layout.format(split="train") / "99_9.wav", np.zeros(9), 48000)
    splits = load(tmp_path)
    assert splits.tag_names == (
        "engine",
        "machinery-impact",
        "non-machinery-impact",
        "powered-saw",
        "alert-signal",
        "music",
        "human-voice",
        "dog",
    )
    numbers = (splits.train.length - 100).tolist()
    assert dict(zip(numbers, splits.train.labels.tolist(), strict=True)) == TRAIN
    assert splits.test.length.tolist() == [600]
    assert splits.test.labels.tolist() == [[0, 0, 0, 0, 0, 0, 0, 1]]


def test_the_test_split(tmp_path: Path) -> None:
    write_table(tmp_path)
    write_sounds(tmp_path, "audio")
    splits = load(tmp_path, test="test")
    assert splits.test.labels.tolist() == [[0, 0, 0, 0, 0, 1, 0, 0]]
    write_table(tmp_path, [row for row in ROWS if row[0] != "test"])
    with pytest.raises(
        DataError, match=r"no clip of annotator 0 in the split 'test'; its splits: train, val"
    ):
        load(tmp_path, test="test")


def test_files_are_resampled_by_default(tmp_path: Path) -> None:
    write_table(tmp_path)
    write_sounds(tmp_path, "{split}")
    with pytest.warns(UserWarning, match="the split '(train|validate)' of SONYC-UST") as caught:
        splits = sonyc_ust(tmp_path)
    assert len(caught) == 2
    assert splits.sample_rate == 16000
    numbers = [3 * length - 100 for length in splits.train.length.tolist()]
    expected = dict(zip(numbers, splits.train.labels.tolist(), strict=True))
    assert {min(TRAIN, key=lambda n: abs(n - k)): v for k, v in expected.items()} == TRAIN
    with pytest.raises(DataError, match="has 48000 samples per second, not 16000"):
        sonyc_ust(tmp_path, resample="refuse")


def test_a_missing_sound(tmp_path: Path) -> None:
    write_table(tmp_path)
    write_sounds(tmp_path, "{split}")
    (tmp_path / "train" / "12_000001.wav").unlink()
    with pytest.raises(
        DataError, match=r"'train' of SONYC-UST names 4 files, of which 1 cannot be found"
    ):
        load(tmp_path)
    with pytest.warns(UserWarning, match=r"such as '12_000001\.wav': such clips are left out"):
        splits = load(tmp_path, missing="skip")
    assert sorted((splits.train.length - 100).tolist()) == [66, 200, 300]


def test_division(tmp_path: Path) -> None:
    write_table(tmp_path)
    write_sounds(tmp_path, "audio")
    splits = load(tmp_path, holdout=1, labelled=2)
    assert (len(splits.train), len(splits.test)) == (3, 1)
    assert (splits.train.labels == -100).all(1).sum() == 1


def test_wrong_tables(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no file .*; expected a table"):
        load(tmp_path)
    write_table(tmp_path, [(*ROWS[0][:3], "2" + ROWS[0][3][1:]), *ROWS[1:]])
    with pytest.raises(DataError, match=r"line 2: 1_engine_presence is '2'; expected 1 \(heard\)"):
        load(tmp_path)
    write_table(tmp_path, [row for row in ROWS if row[0] != "train"])
    with pytest.raises(DataError, match="no clip in the split 'train'; its splits: test, validate"):
        load(tmp_path)
    table = tmp_path / "annotations.csv"
    table.write_text(table.read_text().replace("8_dog_presence", "8_dog"))
    with pytest.raises(DataError, match="has no column '8_dog_presence'"):
        load(tmp_path)
