"""The log-mel front end: torchaudio's spectrogram, framing, ends of clips, and bad numbers."""

import math

import pytest
import torch
import torchaudio
from torch import Tensor

from congener.errors import RecipeError
from congener.tasks.audio_tagging import LogMel

RATE = 16000


def noise(clips: int, samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(clips, samples, generator=torch.Generator().manual_seed(seed))


def by_hand(waveform: Tensor, front_end: LogMel, bands: int) -> Tensor:
    """Frame by frame, bin by bin, in float64, from the definitions."""
    window, hop, fourier = 400, 160, 512
    hann = 0.5 - 0.5 * torch.cos(2 * math.pi * torch.arange(window, dtype=torch.float64) / window)
    angles = torch.arange(257)[:, None] * torch.arange(window) * (2 * math.pi / fourier)
    turns = torch.polar(torch.ones((), dtype=torch.float64), -angles.double())

    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    edges = [mel(125) + i * (mel(7500) - mel(125)) / (bands + 1) for i in range(bands + 2)]
    hertz = [700 * (10 ** (edge / 2595) - 1) for edge in edges]
    rows = []
    for frame in range(-(-len(waveform) // hop)):
        start = frame * hop + hop // 2 - window // 2
        piece = torch.tensor(
            [float(waveform[i]) if 0 <= i < len(waveform) else 0.0
             for i in range(start, start + window)], dtype=torch.float64,
        )  # fmt: skip
        magnitude = (turns @ (piece * hann).to(torch.complex128)).abs()
        row = []
        for band in range(bands):
            low, centre, high = hertz[band : band + 3]
            f = torch.arange(257, dtype=torch.float64) * RATE / fourier
            rise, fall = (f - low) / (centre - low), (high - f) / (high - centre)
            row.append(float((torch.minimum(rise, fall).clamp(min=0) * magnitude).sum()))
        rows.append(row)
    return torch.log((torch.tensor(rows) + 0.01) / 0.01)


def test_it_is_the_definition() -> None:
    waveform = noise(1, 1000)
    front_end = LogMel(RATE, 20)
    found = front_end(waveform, torch.tensor([1000]))
    assert found.shape == (1, 1, 7, 20)
    torch.testing.assert_close(
        found[0, 0], by_hand(waveform[0], front_end, 20), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(("window", "hop", "fourier"), [(0.025, 0.01, 512), (0.032, 0.02, 512)])
def test_it_is_torchaudio_with_the_edges_padded(window: float, hop: float, fourier: int) -> None:
    waveform, step = noise(3, 8000), round(hop * RATE)
    theirs = torchaudio.transforms.MelSpectrogram(
        RATE, fourier, round(window * RATE), step, 125.0, 7500.0, n_mels=40, power=1.0, center=False
    )
    edge = (fourier - step) // 2
    expected = (theirs(torch.nn.functional.pad(waveform, (edge, edge))).mT * 100 + 1).log()
    found = LogMel(RATE, 40, window=window, hop=hop)(waveform, torch.full((3,), 8000))
    assert found.shape == (3, 1, 8000 // step, 40)
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-4, atol=1e-4)


def test_a_tone_lies_in_its_band_and_frame() -> None:
    """1 kHz from 0.5 s to 0.6 s: the band whose centre is nearest, the frames 50 to 59."""
    times = torch.arange(RATE) / RATE
    tone = torch.sin(2 * math.pi * 1000 * times) * ((times >= 0.5) & (times < 0.6))
    found = LogMel(RATE, 64)(tone[None], torch.tensor([RATE]))[0, 0]
    edges = torch.linspace(2595 * math.log10(1 + 125 / 700), 2595 * math.log10(1 + 7500 / 700), 66)
    centres = 700 * (10 ** (edges[1:-1] / 2595) - 1)
    assert int(found[55].argmax()) == int((centres - 1000).abs().argmin())
    loud = found.amax(1)
    assert bool((loud[50:60] > 5).all())
    assert loud[48] == 0
    assert loud[61] == 0
    assert not found[:48].any()


def test_silence_and_what_follows_a_clip_are_zero() -> None:
    front_end = LogMel(RATE, 20)
    assert not front_end(torch.zeros(2, 500), torch.tensor([500, 1])).any()
    waveform, length = noise(3, 3200), torch.tensor([3200, 1700, 1])
    found = front_end(waveform, length)
    assert found.shape == (3, 1, 20, 20)
    assert found[0, 0].any(1).all()
    assert found[1, 0].any(1).tolist() == [True] * 11 + [False] * 9
    assert found[2, 0].any(1).tolist() == [True] + [False] * 19


def test_what_follows_a_clip_is_not_heard() -> None:
    """Neither in the frames that are past its end nor in the last ones, whose window is."""
    front_end, length = LogMel(RATE, 20), torch.tensor([1650, 80])
    waveform = noise(2, 3200)
    silent = waveform * (torch.arange(3200) < length[:, None])
    assert torch.equal(front_end(waveform, length), front_end(silent, length))
    short = front_end(waveform[:1, :1650], length[:1])
    assert short.shape == (1, 1, 11, 20)
    torch.testing.assert_close(front_end(waveform, length)[:1, :, :11], short)


def test_frames_are_counted_by_their_first_sample() -> None:
    front_end = LogMel(RATE, 20)
    length = torch.tensor([0, 1, 160, 161, 320, 960])
    past = front_end.past(length, 6)
    assert (~past).sum(1).tolist() == [1, 1, 1, 2, 2, 6]
    assert (past == past.sort(dim=1).values).all()


def test_a_clip_shorter_than_a_frame_has_one() -> None:
    found = LogMel(RATE, 20)(torch.ones(1, 3), torch.tensor([3]))
    assert found.shape == (1, 1, 1, 20)
    assert found.isfinite().all()


def test_it_computes_in_float32_under_autocast_and_saves_nothing() -> None:
    front_end = LogMel(RATE, 20)
    waveform, length = noise(1, 1600), torch.tensor([1600])
    with torch.autocast("cpu", torch.bfloat16):
        found = front_end(waveform, length)
    assert found.dtype == torch.float32
    assert torch.equal(found, front_end(waveform, length))
    assert torch.equal(found, front_end(waveform.double(), length))
    assert not front_end.state_dict()
    assert not list(front_end.parameters())
    assert "bands=20" in repr(front_end)


def test_the_highest_band_ends_at_half_the_sample_rate() -> None:
    ours = LogMel(8000, 20)(noise(1, 4000), torch.tensor([4000]))
    assert torch.equal(ours, LogMel(8000, 20, high=4000.0)(noise(1, 4000), torch.tensor([4000])))
    assert not torch.equal(
        ours, LogMel(8000, 20, high=3000.0)(noise(1, 4000), torch.tensor([4000]))
    )


def test_the_offset_is_where_differences_fade() -> None:
    waveform, length = noise(1, 1600), torch.tensor([1600])
    coarse = LogMel(RATE, 20, offset=1.0)(waveform, length)
    fine = LogMel(RATE, 20)(waveform, length)
    torch.testing.assert_close(coarse.expm1() * 100, fine.expm1(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"hop": 0.03}, "no longer than the window"),
        ({"hop": 0.0}, "hop of 1 or more"),
        ({"bands": 0}, "at least one band"),
        ({"low": 8000.0}, "low < high"),
        ({"low": -1.0}, "0 <= low"),
        ({"offset": 0.0}, "offset > 0"),
        ({"bands": 200}, "use fewer bands or a longer window"),
    ],
)
def test_numbers_that_describe_no_spectrogram(numbers: dict[str, float], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        LogMel(RATE, **{"bands": 20, **numbers})
