"""Sound files of one data set, read into memory at one sample rate."""

import struct
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import soundfile
import torch
import torchaudio.functional
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from congener.errors import DataError

from .splits import check_sample_rate

__all__ = ["MissingFiles", "Resampling", "found_files", "read_sounds"]

Resampling = Literal["convert", "refuse"]
MissingFiles = Literal["refuse", "skip"]


def found_files(
    what: str, files: Sequence[str], places: Sequence[Path], missing: MissingFiles
) -> list[Path | None]:
    """Where each named file lies; ``None`` for one that is nowhere, if that is allowed.

    Args:
        what: where the names come from, for messages.
        files: names.
        places: folders, the first that has a file counts.
        missing: ``"refuse"``, or ``"skip"`` with a notice.

    Raises:
        DataError: a file is missing.
    """
    paths = [
        next((place / file for place in places if (place / file).is_file()), None) for file in files
    ]
    absent = [file for file, path in zip(files, paths, strict=True) if path is None]
    if not absent:
        return paths
    sentence = (
        f"{what} names {len(files)} files, of which {len(absent)} cannot be found in "
        f"{' or '.join(map(str, places))}, such as {absent[0]!r}"
    )
    if missing == "refuse" or len(absent) == len(files):
        raise DataError(f"{sentence}; fetch them, or leave such clips out with missing='skip'.")
    warnings.warn(f"{sentence}: such clips are left out.", stacklevel=3)
    return paths


def read_sounds(
    what: str, paths: Sequence[Path], *, sample_rate: int, resample: Resampling
) -> tuple[Tensor, Tensor]:
    """Waveforms, (clips, samples) int16, followed by zeros, and their lengths, (clips,).

    Channels are averaged; another sample rate is converted or refused; what goes beyond full scale
    is clipped. Of each of these there is one notice, whatever the number of files.

    Args:
        what: how messages call the data set.
        paths: wav files, or of another kind that libsndfile reads, such as flac.
        sample_rate: wanted, samples per second.
        resample: what to do with files of another one, ``"convert"`` or ``"refuse"``.

    Raises:
        DataError: a file that cannot be read, is cut off, has no samples or has NaN; or another
            sample rate, if that is refused.
    """
    check_sample_rate(sample_rate)
    notices: Counter[str] = Counter()
    clips = [_read(path, sample_rate, resample, notices) for path in paths]
    for notice, count in notices.items():
        warnings.warn(f"Of {what}, {count} of {len(paths)} files {notice}.", stacklevel=3)
    length = torch.tensor([len(clip) for clip in clips])
    return pad_sequence(clips, batch_first=True), length


def _read(path: Path, sample_rate: int, resample: Resampling, notices: Counter[str]) -> Tensor:
    _check_whole(path)
    try:
        values, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise DataError(
            f"{path} cannot be read as sound ({error.error_string}); fix or delete it."
        ) from error
    except TypeError as error:  # what soundfile makes of the ending .raw
        raise DataError(
            f"{path} has no header that tells its sample rate; write it as wav or flac."
        ) from error
    sound = torch.from_numpy(values)
    if not len(sound):
        raise DataError(f"{path} has no samples; fix or delete it.")
    if not sound.isfinite().all():
        raise DataError(f"{path} has samples that are NaN or infinite; fix or delete it.")
    if sound.abs().max() > 1:
        notices["go beyond full scale and are clipped; scale them to [-1, 1] if it is audible"] += 1
    if sound.shape[1] > 1:
        notices["have several channels, which are averaged"] += 1
    mono = sound.mean(1)
    if rate != sample_rate:
        if resample == "refuse":
            raise DataError(
                f"{path} has {rate} samples per second, not {sample_rate}; give sample_rate={rate} "
                "if all have, or resample='convert'."
            )
        notices[f"have another sample rate and are resampled to {sample_rate} per second"] += 1
        mono = torchaudio.functional.resample(mono, rate, sample_rate)
    return (mono * 32768).round().clamp(-32768, 32767).to(torch.int16)


def _check_whole(path: Path) -> None:
    """Refuse a wav file that is shorter than it says; libsndfile would read what is there."""
    with path.open("rb") as file:
        head = file.read(8)
    if len(head) < 8 or head[:4] != b"RIFF":
        return
    announced = struct.unpack("<I", head[4:])[0]
    streamed = announced == 0xFFFFFFFF  # written to a pipe, when the end was not yet known
    if not streamed and announced + 8 > path.stat().st_size:
        raise DataError(
            f"{path} holds {path.stat().st_size} bytes, but its header announces {announced + 8}; "
            "the file is truncated, fetch it again."
        )
