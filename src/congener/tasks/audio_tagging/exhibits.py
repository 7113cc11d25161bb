"""The picture that audio adds to a report: which frames of a clip are alike, to each network."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from congener.ops.frames import as_frames
from congener.taps import Taps, bare, still
from congener.types import Batch, Exhibit, Panel

from .control import batches_of
from .front_end import LogMel

if TYPE_CHECKING:
    from .task import AudioTagging

__all__ = ["frame_similarities"]

BANDS, MOMENTS = 64, 60
"""Bands of the spectrogram; moments into which a clip is divided to choose it."""


def frame_similarities(
    task: "AudioTagging", networks: Mapping[str, nn.Module], taps: Mapping[str, str | None]
) -> Sequence[Exhibit]:
    """A test clip: its spectrogram, and the frame similarities that IUSP compares.

    The clip is chosen by its sound alone: of the first 256 test clips, among those with two tags or
    more (where there are any), the one in which most comes back after something else was heard. A
    network without a tap of its own is read at the first tap of the others that it has; one that
    has none is left out.

    Args:
        task: whose test set it is.
        networks: by name, as in the report.
        taps: for each the tap that its first term reads.

    Returns:
        One exhibit, or none where no network can be read.
    """
    front_end = LogMel(task.sample_rate, BANDS)
    batch = _telling_clip(task, front_end)
    sequences = {}
    for name, network in networks.items():
        frames = _frames(task, network, batch, [taps.get(name), *taps.values()])
        if frames is not None:
            sequences[name] = frames
    if not sequences:
        return ()
    shortest = min(len(frames) for frames in sequences.values())
    waveform = batch["waveform"][0].clamp(-1, 1)
    there = batch["labels"][0] > 0
    tags = [tag for tag, present in zip(task.tag_names, there.tolist(), strict=True) if present]
    spectrogram = front_end(batch["waveform"], batch["length"])[0, 0].T.flip(0)
    return [
        Exhibit(
            "Which moments of a clip are alike",
            "For each network, how alike any two moments of a test clip are: both axes are time, "
            "and what comes back shows off the diagonal. IUSP compares these matrices. Below them, "
            "the clip's spectrogram, high notes at the top.",
            {
                "similarity of frames": [
                    Panel(name, _similarities(frames, shortest), "similarity")
                    for name, frames in sequences.items()
                ],
                "clip": [Panel(", ".join(tags) or "no tag", spectrogram, "spectrogram")],
            },
            sound=(waveform, task.sample_rate),
        )
    ]


def _telling_clip(task: "AudioTagging", front_end: LogMel) -> Batch:
    """The clip to show, as a prepared batch of one without padding."""
    batch = next(batches_of(task, "test"))
    spectrograms = front_end(batch["waveform"], batch["length"])[:, 0]
    past = front_end.past(batch["length"], spectrograms.shape[1])
    returns = torch.stack([
        _returns(each[~ended]) for each, ended in zip(spectrograms, past, strict=True)
    ])  # fmt: skip
    several = (batch["labels"] > 0).sum(1) > 1
    chosen = int(returns.where(several, returns - returns.max() - 1).argmax())
    length = int(batch["length"][chosen])
    clip = {k: v[[chosen]] if isinstance(v, Tensor) else v for k, v in batch.items()}
    return clip | {"waveform": clip["waveform"][:, :length]}


def _returns(frames: Tensor) -> Tensor:
    """How much comes back in a spectrogram, (frames, bands), after something else was there."""
    short = F.adaptive_avg_pool1d(frames.T[None], min(len(frames), MOMENTS))[0].T
    above = short - short.amin(0)
    alike = above @ above.T
    before = torch.ones_like(alike).tril(-1).bool()
    # Of moment i and a later one j, the least alike to i of those between them.
    between = alike.masked_fill(before, torch.inf).cummin(1).values
    return (alike - between).masked_fill(before, 0).mean()


def _frames(
    task: "AudioTagging", network: nn.Module, batch: Batch, paths: Sequence[str | None]
) -> Tensor | None:
    """What a network makes of the clip at the first of these taps that it has, (frames, dims)."""
    known = dict(bare(network).named_modules())
    for path in paths:
        if path is None or path.endswith(":gram") or path.partition(":")[0] not in known:
            continue
        device = next((p.device for p in network.parameters()), torch.device("cpu"))
        here = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        with still(network), torch.no_grad(), Taps(network, [path]) as read:
            feature = read(partial(task.call, network, here))[1][path]
        if feature.dim() in (3, 4):
            return as_frames(feature)[0][task.mask(here, feature)[0]].float().cpu()
    return None


def _similarities(frames: Tensor, length: int) -> Tensor:
    """The matrix that IUSP compares, of frames averaged to so many."""
    shorter = F.adaptive_avg_pool1d(frames.T[None], length)[0].T
    return F.normalize(shorter @ shorter.T, dim=1)
