"""Data that needs no file: mixtures of played notes, and arrays of the user's own."""

import functools
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from congener.errors import CongenerError, DataError

from .splits import ClipDataset, Division, Splits, divide

__all__ = ["instruments", "tensors"]

Floats = NDArray[np.float32]

PROGRAMS = {
    "piano": 0,
    "vibraphone": 11,
    "organ": 19,
    "accordion": 21,
    "guitar": 24,
    "bass": 33,
    "violin": 40,
    "cello": 42,
    "harp": 46,
    "choir": 52,
    "trumpet": 56,
    "trombone": 57,
    "saxophone": 65,
    "oboe": 68,
    "clarinet": 71,
    "flute": 73,
}
"""The tags, and the number of each one's General MIDI program."""
PITCHES = range(48, 73)
VELOCITIES = (64, 110)
FRAMES_PER_SECOND = 50
LEVEL = 0.05
"""Root mean square of the louder velocity of a note, before its gain; full scale is 1."""


def instruments(
    *,
    train: int = 4000,
    test: int = 1000,
    seconds: float = 3.0,
    shortest: float | None = None,
    seed: int = 0,
    sample_rate: int = 16000,
    **division: Unpack[Division],
) -> Splits:
    """Mixtures of notes of 16 instruments, played from a soundfont; the tags are who plays.

    A clip has 1 to 4 instruments at -12 to 0 dB, each with 1 to 3 notes of 0.3 to 1 s anywhere in
    the clip, at one of two velocities, and white noise. Test clips play pitches that training
    clips never do: of MIDI's 48 to 72, those of which p mod 4 is 3. All choices are ours. A clip
    is a function of (seed, part, number), so a smaller set is the beginning of a larger one. In
    ``frame_labels``, an instrument sounds in a frame of 20 ms if that is within 40 dB of its
    loudest one in the clip.

    Nothing is read but the soundfont TimGM6mb that the package ``pretty_midi`` brings. The last
    two sets stay in memory, so do not write into what you get.

    Args:
        train: training clips.
        test: test clips.
        seconds: of a clip.
        shortest: of clips of different lengths, the least, in seconds; default: all are equal.
        seed: of the clips.
        sample_rate: samples per second, a multiple of 50.
        **division: teacher, pool, labelled, holdout; see :func:`.divide`.

    Raises:
        CongenerError: a package is missing.
        DataError: lengths, counts or options that do not fit.
    """
    least = seconds if shortest is None else shortest
    if not 0.3 <= least <= seconds < math.inf:
        raise DataError(
            f"Clips of {least} to {seconds} seconds cannot be made; give shortest <= seconds, both "
            "0.3 (a note) or more."
        )
    if sample_rate % FRAMES_PER_SECOND or sample_rate < 1:
        raise DataError(
            f"sample_rate={sample_rate} is not a positive multiple of {FRAMES_PER_SECOND}, the "
            "frames per second."
        )
    for option, value, low in (("train", train, 1), ("test", test, 1), ("seed", seed, 0)):
        if value < low:
            raise DataError(f"{option}={value} is too low; give {low} or more.")
    made = _clips(train, test, seconds, least, seed, sample_rate)
    return divide(
        "the instruments",
        *(clips.part(slice(None)) for clips in made),
        tag_names=tuple(PROGRAMS),
        sample_rate=sample_rate,
        **division,
    )


@functools.lru_cache(maxsize=2)
def _clips(
    train: int, test: int, seconds: float, shortest: float, seed: int, sample_rate: int
) -> tuple[ClipDataset, ClipDataset]:
    notes = _notes(sample_rate)
    span = round(shortest * sample_rate), round(seconds * sample_rate)
    frames = math.ceil(span[1] / (sample_rate // FRAMES_PER_SECOND))
    audible = notes.any(axis=(2, 3))
    unseen = np.array([pitch % 4 == 3 for pitch in PITCHES])
    parts = []
    for part, (clips, allowed) in enumerate(((train, audible & ~unseen), (test, audible & unseen))):
        waveform = np.zeros((clips, span[1]), np.int16)
        length = np.zeros(clips, np.int64)
        active = np.zeros((clips, frames, len(notes)), np.bool_)
        for clip in range(clips):
            draw = np.random.default_rng((seed, part, clip))
            length[clip] = draw.integers(span[0], span[1], endpoint=True)
            _fill(waveform[clip, : length[clip]], active[clip], notes, allowed, draw)
        labels = torch.from_numpy(active.any(1)).to(torch.int8)
        sounds, lengths, when = map(torch.from_numpy, (waveform, length, active))
        parts.append(ClipDataset(sounds, lengths, labels, frame_labels=when))
    return parts[0], parts[1]


@functools.lru_cache(maxsize=1)
def _notes(sample_rate: int) -> Floats:
    """Every note, (instruments, pitches, velocities, samples); zero where the font has none."""
    # Found, not imported, for it imports much that this does not need.
    found = find_spec("pretty_midi")
    try:
        from tinysoundfont import Synth
    except ImportError:
        found = None
    if found is None or found.origin is None:
        raise CongenerError(
            "The instruments need a soundfont, of the package 'pretty_midi', and what plays it, "
            "'tinysoundfont'; install them with: pip install \"congener[audio]\" && "
            "pip install --no-deps tinysoundfont"
        )
    synth = Synth(gain=0, samplerate=sample_rate)
    font = synth.sfload(str(Path(found.origin).with_name("TimGM6mb.sf2")))
    sounds: list[Floats] = []
    for program in PROGRAMS.values():
        synth.program_select(0, font, 0, program)
        sounds.extend(_play(synth, p, v, sample_rate) for p in PITCHES for v in VELOCITIES)
    notes = np.stack(sounds).reshape(len(PROGRAMS), len(PITCHES), len(VELOCITIES), -1)
    level = np.sqrt(np.mean(notes**2, axis=-1, keepdims=True)).max(axis=-2, keepdims=True)
    scaled: Floats = np.divide(LEVEL * notes, level, out=0 * notes, where=level > 1e-5)
    return scaled


def _play(synth: Any, pitch: int, velocity: int, sample_rate: int) -> Floats:
    """A second of a note, in one channel."""
    synth.noteon(0, pitch, velocity)
    stereo = np.frombuffer(bytes(synth.generate(sample_rate)), np.float32).reshape(-1, 2)
    synth.sounds_off(0)
    synth.generate(sample_rate // 10)  # until it is still, so that no note depends on the last
    mono: Floats = stereo.mean(1)
    return mono


def _fill(
    waveform: NDArray[np.int16],
    active: NDArray[np.bool_],
    notes: Floats,
    allowed: NDArray[np.bool_],
    draw: np.random.Generator,
) -> None:
    """Compose a clip into a waveform, (samples,), and what sounds when, (frames, instruments)."""
    hop = notes.shape[-1] // FRAMES_PER_SECOND
    noise = LEVEL * 10 ** (draw.uniform(-40, -20) / 20)
    mixture = noise * draw.standard_normal(len(waveform), np.float32)
    for instrument in draw.choice(len(notes), size=draw.integers(1, 5), replace=False):
        gain = 10 ** (draw.uniform(-12, 0) / 20)
        pitches = np.flatnonzero(allowed[instrument])
        track = np.zeros(len(active) * hop, np.float32)
        _play_some(track[: len(waveform)], notes[instrument], pitches, draw)
        mixture += gain * track[: len(waveform)]
        energy = np.square(track).reshape(-1, hop).sum(1)
        active[:, instrument] = energy > 1e-4 * energy.max()
    waveform[:] = np.clip(np.rint(mixture * 32768), -32768, 32767)


def _play_some(
    track: Floats, notes: Floats, pitches: NDArray[np.intp], draw: np.random.Generator
) -> None:
    """Add one to three of the notes, (pitches, velocities, samples), to a silent track."""
    second = notes.shape[-1]
    fade = np.linspace(1, 0, second // FRAMES_PER_SECOND, dtype=np.float32)
    for _ in range(draw.integers(1, 4)):
        lasts = min(round(draw.uniform(0.3, 1.0) * second), len(track))
        start = draw.integers(len(track) - lasts, endpoint=True)
        sound = notes[draw.choice(pitches), draw.integers(len(VELOCITIES)), :lasts].copy()
        sound[-len(fade) :] *= fade
        track[start : start + lasts] += sound


def tensors(
    *,
    train_waveform: Tensor,
    train_labels: Tensor,
    test_waveform: Tensor,
    test_labels: Tensor,
    sample_rate: int,
    train_length: Tensor | None = None,
    test_length: Tensor | None = None,
    tag_names: Sequence[str] | None = None,
    **division: Unpack[Division],
) -> Splits:
    """Your own arrays.

    Args:
        train_waveform: (clips, samples), int16, or floats in [-1, 1]; tensor or numpy array.
        train_labels: (clips, tags): 1 heard, 0 not heard, -100 not known.
        test_waveform: like ``train_waveform``; clips may be of another length.
        test_labels: like ``train_labels``.
        sample_rate: samples per second.
        train_length: valid samples of each clip, (clips,); what follows them counts as silence.
            Default: all.
        test_length: likewise.
        tag_names: default: the numbers.
        **division: teacher, pool, labelled, holdout; see :func:`.divide`.

    Raises:
        DataError: arrays that do not fit each other.
    """
    train = _arrays("The training arrays", train_waveform, train_length, train_labels)
    test = _arrays("The test arrays", test_waveform, test_length, test_labels)
    names = tag_names or [str(tag) for tag in range(train.labels.shape[1])]
    return divide(
        "the given arrays", train, test, tag_names=names, sample_rate=sample_rate, **division
    )


def _arrays(what: str, waveform: Tensor, length: Tensor | None, labels: Tensor) -> ClipDataset:
    waveform, labels = torch.as_tensor(waveform), torch.as_tensor(labels)
    if waveform.ndim != 2 or labels.ndim != 2 or not waveform.shape[1]:
        raise DataError(
            f"{what} have the shapes {tuple(waveform.shape)} and {tuple(labels.shape)}; expected "
            "(clips, samples) waveforms and (clips, tags) labels."
        )
    if waveform.dtype != torch.int16:
        if not waveform.is_floating_point():
            raise DataError(
                f"{what} have waveforms of type {waveform.dtype}; expected int16 or floats."
            )
        waveform = waveform.to(torch.float32)
        largest = float(waveform.abs().max()) if len(waveform) else 0.0
        if not largest <= 1:  # so is NaN
            raise DataError(
                f"{what} have samples up to {largest}, but floats must lie in [-1, 1]; clean and "
                "scale them first."
            )
    given = torch.full((len(waveform),), waveform.shape[1]) if length is None else length
    length = torch.as_tensor(given)
    if length.ndim != 1 or length.is_floating_point() or length.is_complex():
        raise DataError(
            f"{what} have lengths of type {length.dtype} and shape {tuple(length.shape)}; expected "
            "(clips,) numbers of samples."
        )
    if len(length) == len(waveform):
        valid = torch.arange(waveform.shape[1]) < length[:, None]
        waveform = waveform.masked_fill(~valid, 0)
    kept = labels.to(torch.int8)
    if not torch.equal(kept.to(labels.dtype), labels):
        raise DataError(
            f"{what} have labels other than 1 (heard), 0 (not heard) and -100 (not known); "
            "write those."
        )
    return ClipDataset(waveform, length.to(torch.int64), kept)
