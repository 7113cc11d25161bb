"""Anyone's sound files: what is read, and what is refused or told."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from congener.errors import DataError
from congener.tasks.audio_tagging.data import clip_folder
from congener.tasks.audio_tagging.data.sound import read_sounds

RATE = 8000


def tone(samples: int, hertz: float = 200.0, rate: int = RATE) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(samples) / rate)


def write(path: Path, values: np.ndarray, rate: int = RATE, kind: str = "PCM_16") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, values, rate, subtype=kind)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Clip k has 100 k samples of the value k / 100."""
    lines = ["file,split,tags", "a/1.wav,train,dog;music", "a/2.wav,train,", "3.wav,train,?"]
    lines += ["4.wav,test,music", "5.wav,train, dog ", '"6,x.wav",test,dog']
    for number, name in enumerate(["a/1", "a/2", "3", "4", "5", "6,x", "7"], 1):
        write(tmp_path / f"{name}.wav", np.full(100 * number, number / 100))
    (tmp_path / "annotations.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def rewrite(folder: Path, old: str, new: str) -> None:
    table = folder / "annotations.csv"
    table.write_text(table.read_text().replace(old, new))


def test_what_is_read(folder: Path) -> None:
    splits = clip_folder(folder, sample_rate=RATE)
    assert splits.tag_names == ("dog", "music")
    assert splits.sample_rate == RATE
    assert splits.train.waveform.shape == (4, 500)
    seen = {}
    for waveform, length, labels in zip(
        splits.train.waveform, splits.train.length.tolist(), splits.train.labels, strict=True
    ):
        number = length // 100
        expected = torch.zeros(500)
        expected[:length] = round(number / 100 * 32768)
        assert (waveform - expected).abs().max() <= 1
        seen[number] = labels.tolist()
    assert seen == {1: [1, 1], 2: [0, 0], 3: [-100, -100], 5: [1, 0]}
    assert splits.test.length.tolist() == [400, 600]
    assert splits.test.labels.tolist() == [[0, 1], [1, 0]]


def test_a_tag_may_be_known_where_others_are_not(folder: Path) -> None:
    rewrite(folder, "3.wav,train,?", "3.wav,train,?;dog")
    train = clip_folder(folder, sample_rate=RATE).train
    assert train.labels[train.length == 300].tolist() == [[1, -100]]


def test_train_is_in_a_fixed_random_order(tmp_path: Path) -> None:
    lines = ["split,tags,file,note"]
    for number in range(12):
        write(tmp_path / f"{number:02}.wav", np.full(20 + number, 0.1))
        lines.append(f"{'train' if number < 10 else 'test'},dog,{number:02}.wav,")
    (tmp_path / "list.csv").write_text("\ufeff" + "\r\n".join(lines))
    first = clip_folder(str(tmp_path), annotations="list.csv", sample_rate=RATE)
    again = clip_folder(tmp_path, annotations="list.csv", sample_rate=RATE, holdout=4)
    order = (first.train.length - 20).tolist()
    assert sorted(order) == list(range(10))
    assert order != list(range(10))
    assert first.train.ids.tolist() == order
    assert again.test.length.tolist() == first.train.length[6:].tolist()


def test_pcm_is_read_to_the_bit(tmp_path: Path) -> None:
    values = torch.randint(-32768, 32768, (5000,), generator=torch.Generator().manual_seed(0)).to(
        torch.int16
    )
    values[:2] = torch.tensor([-32768, 32767])
    path = write(tmp_path / "a.wav", values.numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        waveform, length = read_sounds("it", [path, path], sample_rate=RATE, resample="refuse")
    assert torch.equal(waveform, torch.stack([values, values]))
    assert length.tolist() == [5000, 5000]


def test_silence_and_a_single_sample(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.wav", np.zeros(50)), write(tmp_path / "b.wav", np.full(1, 0.25))]
    waveform, length = read_sounds("it", paths, sample_rate=RATE, resample="refuse")
    assert length.tolist() == [50, 1]
    assert not waveform[0].any()
    assert waveform[1].tolist() == [8192] + [0] * 49


def test_other_kinds_of_file(tmp_path: Path) -> None:
    values = tone(900)
    for kind, name in (("PCM_24", "a.wav"), ("FLOAT", "b.wav"), ("PCM_16", "c.flac")):
        path = write(tmp_path / name, values, kind=kind)
        waveform, _ = read_sounds("it", [path], sample_rate=RATE, resample="refuse")
        assert np.abs(waveform[0].numpy() / 32768 - values).max() < 1e-4


def test_floats_are_rounded(tmp_path: Path) -> None:
    values = np.array([0.6, 0.4, -0.6, -0.4]) / 32768
    path = write(tmp_path / "a.wav", values, kind="FLOAT")
    waveform, _ = read_sounds("it", [path], sample_rate=RATE, resample="refuse")
    assert waveform.tolist() == [[1, 0, -1, 0]]


def test_stereo_is_averaged_with_one_notice(tmp_path: Path) -> None:
    left, right = tone(400), tone(400, 900.0)
    paths = [write(tmp_path / f"{name}.wav", np.stack([left, right], 1)) for name in "ab"]
    paths.append(write(tmp_path / "c.wav", left))
    with pytest.warns(UserWarning, match="channels") as caught:
        waveform, _ = read_sounds("the bells", paths, sample_rate=RATE, resample="refuse")
    assert [str(w.message) for w in caught] == [
        "Of the bells, 2 of 3 files have several channels, which are averaged."
    ]
    assert np.abs(waveform[0].numpy() / 32768 - (left + right) / 2).max() < 1e-4


@pytest.mark.parametrize("rate", [16000, 11025, 4000])
def test_another_sample_rate_is_converted_with_one_notice(tmp_path: Path, rate: int) -> None:
    paths = [write(tmp_path / f"{n}.wav", tone(rate, rate=rate), rate) for n in range(2)]
    paths.append(write(tmp_path / "short.wav", tone(1, rate=rate), rate))
    with pytest.warns(UserWarning, match="sample rate") as caught:
        waveform, length = read_sounds("it", paths, sample_rate=RATE, resample="convert")
    assert [str(w.message) for w in caught] == [
        f"Of it, 3 of 3 files have another sample rate and are resampled to {RATE} per second."
    ]
    assert length.tolist()[:2] == [RATE, RATE]
    assert 1 <= length[2] <= 2
    inner = slice(200, -200)
    assert np.abs(waveform[0].numpy() / 32768 - tone(RATE))[inner].max() < 5e-3


def test_another_sample_rate_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(100), 44100)
    with pytest.raises(DataError, match=r"a\.wav has 44100 samples per second, not 8000; give"):
        read_sounds("it", [path], sample_rate=RATE, resample="refuse")


def test_no_sample_rate_to_convert_to_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(100))
    with pytest.raises(DataError, match="sample_rate=0 is not a number of samples per second"):
        read_sounds("it", [path], sample_rate=0, resample="convert")


def test_samples_without_a_header_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(100)).rename(tmp_path / "a.raw")
    with pytest.raises(DataError, match=r"a\.raw has no header that tells its sample rate"):
        read_sounds("it", [path], sample_rate=RATE, resample="convert")


def test_beyond_full_scale_is_clipped_with_a_notice(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", 4 * tone(400), kind="FLOAT")
    with pytest.warns(UserWarning, match="1 of 1 files go beyond full scale and are clipped"):
        waveform, _ = read_sounds("it", [path], sample_rate=RATE, resample="refuse")
    assert (int(waveform.min()), int(waveform.max())) == (-32768, 32767)


def test_damaged_files(folder: Path) -> None:
    path = folder / "a" / "1.wav"
    good = path.read_bytes()
    cases = {
        good[:-7]: r"1\.wav holds 237 bytes, but its header announces 244; the file is truncated",
        good[:30]: r"holds 30 bytes, but its header announces 244",
        b"": r"1\.wav cannot be read as sound",
        b"RIFF": r"1\.wav cannot be read as sound",
        b"not a sound at all": r"1\.wav cannot be read as sound",
    }
    for content, sentence in cases.items():
        path.write_bytes(content)
        with pytest.raises(DataError, match=sentence) as caught:
            clip_folder(folder, sample_rate=RATE)
        assert "\n" not in str(caught.value)
    write(path, np.zeros(0))
    with pytest.raises(DataError, match=r"1\.wav has no samples"):
        clip_folder(folder, sample_rate=RATE)
    for value in (np.nan, np.inf):
        write(path, np.array([0.0, value, 0.0]), kind="FLOAT")
        with pytest.raises(DataError, match=r"1\.wav has samples that are NaN or infinite"):
            clip_folder(folder, sample_rate=RATE)


def test_a_file_written_to_a_pipe_is_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(60))
    content = bytearray(path.read_bytes())
    content[4:8] = b"\xff" * 4
    path.write_bytes(content)
    _, length = read_sounds("it", [path], sample_rate=RATE, resample="refuse")
    assert length.tolist() == [60]


def test_an_annotation_without_a_file(folder: Path) -> None:
    (folder / "3.wav").unlink()
    with pytest.raises(DataError) as caught:
        clip_folder(folder, sample_rate=RATE)
    assert str(caught.value) == (
        f"{folder / 'annotations.csv'} names 6 files, of which 1 cannot be found in {folder}, such "
        "as '3.wav'; fetch them, or leave such clips out with missing='skip'."
    )
    with pytest.warns(UserWarning, match="such as '3.wav': such clips are left out"):
        splits = clip_folder(folder, sample_rate=RATE, missing="skip")
    assert sorted(splits.train.length.tolist()) == [100, 200, 500]
    for name in ("4", "6,x"):
        (folder / f"{name}.wav").unlink()
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(DataError, match="has no clip of the split 'test'"),
    ):
        clip_folder(folder, sample_rate=RATE, missing="skip")
    for path in folder.rglob("*.wav"):
        path.unlink()
    with pytest.raises(DataError, match="of which 6 cannot be found in"):
        clip_folder(folder, sample_rate=RATE, missing="skip")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "file,split",
            "name,split",
            r"has no column 'file', only name, split, tags; expected file",
        ),
        ("3.wav,train,?", "3.wav,train", r"annotations\.csv, line 4 has not as many columns"),
        ("3.wav,train,?", "3.wav,train,a,b", r"line 4 has not as many columns as the first"),
        ("3.wav,train,?", "3.wav,dev,?", r"line 4: the split is 'dev'; expected train or test"),
        ("3.wav,train", "4.wav,train", r"names the file '4\.wav' twice"),
        ("test", "train", r"has no clip of the split 'test'"),
        ("train", "test", r"has no clip of the split 'train'"),
    ],
)
def test_a_wrong_table(folder: Path, old: str, new: str, sentence: str) -> None:
    rewrite(folder, old, new)
    with pytest.raises(DataError, match=sentence) as caught:
        clip_folder(folder, sample_rate=RATE)
    assert "\n" not in str(caught.value)


def test_no_table_or_an_empty_one(folder: Path) -> None:
    table = folder / "annotations.csv"
    table.write_text("file,split,tags\n3.wav,train,\n4.wav,test,?\n")
    with pytest.raises(DataError, match="has no tag at all"):
        clip_folder(folder)
    table.write_text("file,split,tags\n")
    with pytest.raises(DataError, match="has no lines below its header"):
        clip_folder(folder)
    table.write_text("")
    with pytest.raises(DataError, match="has no column 'file', only none"):
        clip_folder(folder)
    table.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as a table"):
        clip_folder(folder)
    table.unlink()
    with pytest.raises(DataError, match=r"There is no file .*annotations\.csv; expected a table"):
        clip_folder(folder)


def test_a_tag_of_test_clips_alone(folder: Path) -> None:
    rewrite(folder, "4.wav,test,music", "4.wav,test,cat")
    with pytest.warns(UserWarning, match=f"No labelled training clip of {folder} has the tag cat"):
        splits = clip_folder(folder, sample_rate=RATE)
    assert splits.tag_names == ("cat", "dog", "music")
