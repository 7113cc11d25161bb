"""The embedded data set: what is composed of notes that are known, and of the soundfont's."""

import functools
import random
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from congener.errors import CongenerError, DataError
from congener.tasks.audio_tagging.data import instruments, synthetic
from congener.tasks.audio_tagging.data.splits import Splits

RATE = 16000
STEP = 18.0
"""Hertz between notes of :func:`bank`."""
LOUD = 0.05

pytestmark = pytest.mark.filterwarnings("ignore:No labelled training clip")


@functools.cache
def bank() -> np.ndarray:
    """Note p of instrument i is a sine of a frequency of its own; one note does not exist."""
    notes = np.empty((16, 25, 2, RATE), np.float32)
    time = np.arange(RATE) / RATE
    for number in range(400):
        hertz = 400 + STEP * number
        notes[*divmod(number, 25)] = LOUD * np.sqrt(2) * np.sin(2 * np.pi * hertz * time)
    notes[3, 8] = 0
    return notes


@pytest.fixture
def sines(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Clips composed of the notes of :func:`bank`."""
    monkeypatch.setattr(synthetic, "_notes", lambda sample_rate: bank())
    synthetic._clips.cache_clear()
    yield
    synthetic._clips.cache_clear()


def heard(waveform: torch.Tensor) -> set[tuple[int, int]]:
    """The (instrument, pitch) of the sines in a clip, by its spectrum."""
    spectrum = torch.fft.rfft(waveform.double() / 32768, n=RATE * 3).abs()
    centres = torch.arange(400) * STEP + 400
    bins = (centres * 3).round().long()
    level = spectrum[bins[:, None] + torch.arange(-1, 2)].amax(1)
    return {divmod(note, 25) for note in (level > 25).nonzero().flatten().tolist()}


@pytest.mark.usefixtures("sines")
def test_tags_and_pitches_by_spectrum() -> None:
    splits = instruments(train=30, test=30)
    assert splits.tag_names[:2] == ("piano", "vibraphone")
    for part, unseen in ((splits.train, False), (splits.test, True)):
        counts = []
        for waveform, labels in zip(part.waveform, part.labels, strict=True):
            notes = heard(waveform)
            assert {i for i, _ in notes} == set(labels.nonzero().flatten().tolist())
            assert all(((48 + pitch) % 4 == 3) == unseen for _, pitch in notes)
            counts.append((int(labels.sum()), len(notes)))
        assert {tags for tags, _ in counts} == {1, 2, 3, 4}
        assert all(tags <= notes <= 3 * tags for tags, notes in counts)
        assert max(notes / tags for tags, notes in counts) > 2
    assert (3, 8) not in set().union(*map(heard, splits.train.waveform))


def test_notes_that_the_font_lacks_are_not_drawn(
    sines: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = np.zeros_like(bank())
    few[:, [0, 3]] = bank()[:, [0, 3]]
    monkeypatch.setattr(synthetic, "_notes", lambda sample_rate: few)
    splits = instruments(train=20, test=10)
    for part, pitch in ((splits.train, 0), (splits.test, 3)):
        for waveform, labels in zip(part.waveform, part.labels, strict=True):
            assert labels.any()
            assert heard(waveform) == {(i, pitch) for i in labels.nonzero().flatten().tolist()}


@pytest.mark.usefixtures("sines")
@pytest.mark.parametrize("shortest", [None, 1.0])
def test_frame_labels_of_clips_with_one_instrument(shortest: float | None) -> None:
    train = instruments(train=50, test=1, shortest=shortest).train
    assert train.frame_labels is not None
    assert train.frame_labels.shape == (50, 150, 16)
    assert torch.equal(train.frame_labels.any(1), train.labels == 1)
    alone = (train.labels.sum(1) == 1).nonzero().flatten().tolist()
    assert len(alone) > 5
    for clip in alone:
        frames = train.waveform[clip].view(150, 320).double() / 32768
        level = frames.square().mean(1).sqrt()
        active = train.frame_labels[clip, :, int(train.labels[clip].argmax())]
        assert active[level > 0.007].all()
        # Noise of at most a tenth, and an instrument 40 dB below its loudest frame.
        assert (level[~active] < 0.0065).all()
        assert active.any()
        assert not active[-(-int(train.length[clip]) // 320) :].any()


def test_notes_differ_in_place_length_and_loudness_and_end_softly() -> None:
    notes = np.ones((2, 2, RATE), np.float32)
    notes[:, 0] = 0.375
    begins, lasts, loudness = set(), [], set()
    for seed in range(60):
        track = np.zeros(RATE, np.float32)
        synthetic._play_some(track, notes, np.array([1]), np.random.default_rng(seed))
        assert np.diff(track, append=0).min() > -0.02
        begins.add(int(np.flatnonzero(track)[0]))
        lasts.append(int((track > 0).sum()))
        loudness.add(float(track.max()))
    assert len(begins) > 40
    assert 4700 < min(lasts) < 8000
    assert {0.375, 1.0} <= loudness


@pytest.mark.usefixtures("sines")
def test_lengths() -> None:
    train = instruments(train=40, test=3, seconds=2.0, shortest=0.5).train
    assert train.waveform.shape == (40, 32000)
    assert train.length.min() < 14000
    assert train.length.max() > 26000
    assert train.length.min() >= 8000
    for waveform, length in zip(train.waveform, train.length.tolist(), strict=True):
        assert not waveform[length:].any()
        assert waveform[length - 50 : length].any()
    equal = instruments(train=4, test=3, seconds=2.0).train
    assert equal.length.tolist() == [32000] * 4


@pytest.mark.usefixtures("sines")
def test_a_clip_is_a_function_of_seed_part_and_number() -> None:
    small = instruments(train=3, test=2)
    synthetic._clips.cache_clear()
    large = instruments(train=6, test=5)
    other = instruments(train=3, test=2, seed=1)
    for part in ("train", "test"):
        few, many, else_ = (getattr(splits, part) for splits in (small, large, other))
        assert torch.equal(few.waveform, many.waveform[: len(few)])
        assert torch.equal(few.labels, many.labels[: len(few)])
        assert not (few.waveform[0] == else_.waveform[0]).all()
    assert len(torch.unique(large.train.waveform, dim=0)) == 6


@pytest.mark.usefixtures("sines")
def test_generators_are_left_alone_and_ignored() -> None:
    def draw() -> tuple[Any, ...]:
        return random.random(), np.random.rand(), float(torch.rand(1))  # noqa: NPY002

    def seed() -> None:
        random.seed(3)
        np.random.seed(3)  # noqa: NPY002
        torch.manual_seed(3)

    seed()
    expected = draw()
    first = instruments(train=2, test=2)
    seed()
    synthetic._clips.cache_clear()
    again = instruments(train=2, test=2)
    assert draw() == expected
    assert torch.equal(first.train.waveform, again.train.waveform)


@pytest.mark.usefixtures("sines")
def test_a_comparison_pays_once() -> None:
    whole = instruments(train=40, test=20)
    divided = instruments(train=40, test=20, labelled=10, holdout=8)
    assert synthetic._clips.cache_info().misses == 1
    assert divided.train.waveform.data_ptr() == whole.train.waveform.data_ptr()
    assert (whole.train.labels >= 0).all()
    assert (divided.train.labels == -100).all(1).sum() == 22
    assert divided.test.ids.tolist() == list(range(32, 40))
    for part in (divided.train, divided.test):
        assert torch.equal(part.frame_labels, whole.train.frame_labels[part.ids])  # type: ignore[arg-type, index]
    assert (instruments(train=40, test=20).train.labels >= 0).all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"shortest": 4.0}, r"Clips of 4.0 to 3.0 seconds cannot be made"),
        ({"seconds": float("inf")}, r"Clips of inf to inf seconds cannot be made"),
        ({"seconds": 0.2}, r"Clips of 0.2 to 0.2 seconds cannot be made"),
        ({"shortest": float("nan")}, r"Clips of nan to 3.0 seconds"),
        ({"sample_rate": 11025}, r"sample_rate=11025 is not a positive multiple of 50"),
        ({"sample_rate": 0}, r"sample_rate=0 is not a positive multiple of 50"),
        ({"train": 0}, r"train=0 is too low; give 1 or more"),
        ({"test": -1}, r"test=-1 is too low"),
        ({"seed": -1}, r"seed=-1 is too low; give 0 or more"),
    ],
)
def test_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        instruments(**options)


@pytest.mark.parametrize("missing", ["tinysoundfont", "pretty_midi"])
def test_a_package_is_missing(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic._notes.cache_clear()
    monkeypatch.setitem(sys.modules, "tinysoundfont", None if missing == "tinysoundfont" else sys)
    if missing == "pretty_midi":
        monkeypatch.setattr(sys, "Synth", None, raising=False)
        monkeypatch.setattr(synthetic, "find_spec", lambda name: None)
    with pytest.raises(CongenerError) as caught:
        instruments(train=5, test=5)
    sentence = str(caught.value)
    assert 'pip install "congener[audio]" && pip install --no-deps tinysoundfont' in sentence
    assert "\n" not in sentence


@pytest.fixture(scope="module")
def played() -> Splits:
    return instruments(train=48, test=24)


def test_the_soundfont(played: Splits) -> None:
    assert "pretty_midi" not in sys.modules
    for part, clips in ((played.train, 48), (played.test, 24)):
        assert part.waveform.shape == (clips, 48000)
        assert part.waveform.dtype == torch.int16
        assert part.labels.shape == (clips, 16)
        assert part.labels.any(0).all()
        peak = part.waveform.abs().amax(1) / 32768
        assert peak.min() > 0.01
        assert peak.max() < 0.999


def test_notes_of_the_soundfont() -> None:
    notes = synthetic._notes(RATE)
    assert notes.shape == (16, 25, 2, 16000)
    assert notes.dtype == np.float32
    level = np.sqrt((notes.astype(np.float64) ** 2).mean(-1))
    absent = {(i, 48 + p) for i, p in np.argwhere(level.max(-1) == 0)}
    assert absent == {(12, 64)}
    loudest = level.max(-1)
    assert np.allclose(loudest[loudest > 0], LOUD, rtol=1e-4)
    softer = 20 * np.log10(level[..., 0][loudest > 0] / LOUD)
    assert (softer > -15).all()
    assert (softer < -2).all()
    for one, other in pairwise(notes.transpose(1, 0, 2, 3)):
        assert (np.abs(one - other).max(-1) > 0.01).all()


def test_no_note_depends_on_the_last() -> None:
    from tinysoundfont import Synth

    whole = synthetic._notes(RATE)
    origin = find_spec("pretty_midi").origin  # type: ignore[union-attr]
    for program, pitch in ((19, 50), (0, 70), (52, 60)):
        synth = Synth(gain=0, samplerate=RATE)
        font = synth.sfload(str(Path(origin).with_name("TimGM6mb.sf2")))  # type: ignore[arg-type]
        synth.program_select(0, font, 0, program)
        alone = synthetic._play(synth, pitch, 110, RATE)
        place = list(synthetic.PROGRAMS.values()).index(program)
        among = whole[place, pitch - 48, 1]
        scale = float((alone * among).sum() / (alone**2).sum())
        assert np.allclose(alone * scale, among, atol=1e-6)


def test_pitches_of_the_soundfont_are_those_asked_for() -> None:
    notes = synthetic._notes(RATE)
    flute = list(synthetic.PROGRAMS).index("flute")
    for pitch in (60, 64, 71):
        spectrum = np.abs(np.fft.rfft(notes[flute, pitch - 48, 1] * np.hanning(RATE)))
        strongest = np.argmax(spectrum)
        octaves = np.log2(strongest / (440 * 2 ** ((pitch - 69) / 12)))
        assert abs(octaves - round(octaves)) < 0.03
