"""Augmentation of a whole batch on its device, driven by (seed, epoch, sample id) alone."""

import torch
from torch import Tensor

from congener.errors import DataError
from congener.ops.keyed_random import keyed_uniform

__all__ = ["gain", "none", "shift"]


def none(waveform: Tensor, length: Tensor, ids: Tensor, *, seed: int, epoch: int) -> Tensor:  # noqa: ARG001
    """The waveforms as they are."""
    return waveform


def shift(
    waveform: Tensor,
    length: Tensor,
    ids: Tensor,
    *,
    seed: int,
    epoch: int,
    share: float = 0.5,
) -> Tensor:
    """Move each clip in time, by as much either way; what leaves at one end enters at the other.

    Args:
        waveform: (batch, samples), any type; what follows a clip stays where it is.
        length: valid samples of each clip, (batch,).
        ids: sample ids, (batch,).
        seed: of the run.
        epoch: the clips move anew in each.
        share: largest displacement, as a share of the clip's own length, 0 to 0.5 (anywhere); ours.
    """
    if not 0 <= share <= 0.5:
        raise DataError(f"share={share} of shift is not from 0 to 0.5.")
    draws = keyed_uniform(ids, seed=seed, epoch=epoch, count=1)
    offset = ((2 * draws - 1) * share * length[:, None]).round().long()
    place = torch.arange(waveform.shape[1], device=waveform.device)
    moved = (place - offset) % length[:, None]
    return waveform.gather(1, torch.where(place < length[:, None], moved, place))


def gain(
    waveform: Tensor,
    length: Tensor,  # noqa: ARG001
    ids: Tensor,
    *,
    seed: int,
    epoch: int,
    decibels: float = 6.0,
) -> Tensor:
    """Make each clip louder or softer, never so loud that it would be clipped.

    Args:
        waveform: (batch, samples), floats in [-1, 1].
        length: valid samples of each clip, (batch,).
        ids: sample ids, (batch,).
        seed: of the run.
        epoch: the gain is drawn anew in each.
        decibels: it is uniform in ± this, 0 to 100; ours.
    """
    if not waveform.is_floating_point():
        raise DataError(f"gain works on floats, but a batch here is {waveform.dtype}.")
    if not 0 <= decibels <= 100:
        raise DataError(f"decibels={decibels} of gain is not from 0 to 100.")
    draws = keyed_uniform(ids, seed=seed, epoch=epoch, count=1)
    factor = 10 ** ((2 * draws - 1) * decibels / 20)
    loudest = waveform.abs().amax(1, keepdim=True)
    return waveform * torch.minimum(factor, 1 / loudest)
