"""Batched augmentation of clips against one clip at a time in plain Python."""

import math

import pytest
import torch
from torch import Tensor

from congener.errors import DataError
from congener.ops.keyed_random import keyed_uniform
from congener.tasks.audio_tagging import augment

IDS = torch.arange(50, 80)
LENGTH = torch.tensor([40, 1, 17, 39, 2] * 6)
WAVEFORM = (
    torch.randint(1, 30000, (30, 40), generator=torch.Generator().manual_seed(0))
    .masked_fill(torch.arange(40) >= LENGTH[:, None], 0)
    .to(torch.int16)
)


def draw(sample: int, seed: int, epoch: int) -> float:
    return float(keyed_uniform(torch.tensor([sample]), seed=seed, epoch=epoch, count=1))


@pytest.mark.parametrize("share", [0.5, 0.1, 0.0])
@pytest.mark.parametrize("kind", [torch.int16, torch.float32])
def test_shift_equals_the_slow_way(share: float, kind: torch.dtype) -> None:
    waveform = WAVEFORM.to(kind)
    made = augment.shift(waveform, LENGTH, IDS, seed=3, epoch=2, share=share)
    assert made.dtype == kind
    for clip, length, sample, result in zip(
        waveform.tolist(), LENGTH.tolist(), IDS.tolist(), made.tolist(), strict=True
    ):
        steps = round((2 * draw(sample, 3, 2) - 1) * share * length)
        assert abs(steps) <= share * length + 0.5
        expected = [0] * 40
        for place in range(length):
            expected[(place + steps) % length] = clip[place]
        assert result == expected


def test_shift_goes_both_ways_everywhere() -> None:
    waveform = torch.zeros(4000, 12)
    waveform[:, 0] = 1
    made = augment.shift(waveform, torch.full((4000,), 10), torch.arange(4000), seed=0, epoch=0)
    reached = made.mean(0)
    assert torch.allclose(reached[:10], torch.full((10,), 0.1), atol=0.02)
    assert not reached[10:].any()
    near = augment.shift(
        waveform, torch.full((4000,), 10), torch.arange(4000), seed=0, epoch=0, share=0.2
    ).mean(0)
    assert near.nonzero().flatten().tolist() == [0, 1, 2, 8, 9]


def test_gain_equals_the_slow_way() -> None:
    waveform = WAVEFORM / 32768
    waveform[7] = 0
    made = augment.gain(waveform, LENGTH, IDS, seed=1, epoch=4, decibels=9.0)
    held_back = 0
    for clip, sample, result in zip(waveform, IDS.tolist(), made, strict=True):
        factor = 10 ** ((2 * draw(sample, 1, 4) - 1) * 9 / 20)
        loudest = float(clip.abs().max())
        if loudest * factor > 1:
            factor, held_back = 1 / loudest, held_back + 1
        assert torch.allclose(result, clip * factor, rtol=1e-5)
    assert 0 < held_back < 30
    assert made.abs().max() <= 1 + 1e-6
    assert made.isfinite().all()


def test_gain_covers_its_range() -> None:
    quiet = torch.full((2000, 1), 0.01)
    made = augment.gain(quiet, torch.ones(2000), torch.arange(2000), seed=0, epoch=0, decibels=6.0)
    level = 20 * torch.log10(made / 0.01)
    assert -6 <= level.min() < -5.9
    assert 5.9 < level.max() <= 6.001
    assert abs(level.mean()) < 0.2


@pytest.mark.parametrize("name", ["shift", "gain"])
def test_whatever_the_batch(name: str) -> None:
    function = getattr(augment, name)
    waveform = WAVEFORM / 32768
    whole = function(waveform, LENGTH, IDS, seed=0, epoch=1)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(99)
    parts = [function(waveform[i], LENGTH[i], IDS[i], seed=0, epoch=1) for i in order.split(7)]
    assert torch.equal(torch.cat(parts), whole[order])
    # More padding changes nothing.
    padded = torch.nn.functional.pad(waveform, (0, 5))
    assert torch.equal(function(padded, LENGTH, IDS, seed=0, epoch=1)[:, :40], whole)
    for seed, epoch in ((0, 2), (1, 1)):
        other: Tensor = function(waveform, LENGTH, IDS, seed=seed, epoch=epoch)
        assert (other != whole).any(1).float().mean() > 0.6


def test_none() -> None:
    assert augment.none(WAVEFORM, LENGTH, IDS, seed=0, epoch=0) is WAVEFORM


def test_refused() -> None:
    for share in (0.6, -0.1):
        with pytest.raises(DataError, match=f"share={share} of shift is not from 0 to 0.5"):
            augment.shift(WAVEFORM, LENGTH, IDS, seed=0, epoch=0, share=share)
    for decibels in (-1.0, 5000.0, math.nan):
        with pytest.raises(DataError, match=f"decibels={decibels} of gain is not from 0 to 100"):
            augment.gain(WAVEFORM / 32768, LENGTH, IDS, seed=0, epoch=0, decibels=decibels)
    with pytest.raises(DataError, match=r"gain works on floats, but a batch here is torch\.int16"):
        augment.gain(WAVEFORM, LENGTH, IDS, seed=0, epoch=0)
