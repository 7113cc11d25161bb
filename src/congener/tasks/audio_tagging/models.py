"""Networks by name; each is a function of keyword arguments. ``__all__`` is the list.

``network(waveform, length)`` gives a logit for each tag, (batch, tags). In front of each is a
:class:`.LogMel` of its own, ``front_end``, whose ``bands``, ``window`` and ``hop`` each function
takes. What follows the end of a clip changes none of its logits: what a convolution reads is zero
there, as at its borders, a recurrence ends with the clip, and means are over its frames. So it is
in training: batch normalisation measures, on each process, the frames of clips and no other. A
``hop`` that is not the peer's (see :mod:`.front_end`) is ours.

Taps are maps (batch, channels, frames, frequencies) or sequences (batch, frames, hidden). Which of
their frames belong to a clip, and are features, :meth:`.AudioTagging.mask` tells.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from congener.errors import CongenerError, RecipeError
from congener.naming import bind, resolve

from .front_end import LogMel

__all__ = ["cnn_lstm", "crnn", "mobilenet", "small_crnn"]

Maps = Float[Tensor, "batch channels frames frequencies"]
Frames = Float[Tensor, "batch frames dims"]
Past = Bool[Tensor, "batch frames"]


def crnn(
    num_tags: int,
    sample_rate: int = 16000,
    *,
    channels: Sequence[int] = (16, 32, 64),
    hidden: int = 64,
    bidirectional: bool = True,
    bands: int = 64,
    window: float = 0.025,
    hop: float = 0.02,
) -> nn.Module:
    """3×3 convolutions, a GRU both ways and attention over frames: a teacher. Its sizes are ours.

    Each convolution halves the frequencies, the first one the frames, too. 249,488 parameters at
    64 bands and 16 tags; 175,760 at 40 bands.

    Taps: ``layers.0``, ``layers.1``, …: maps, after ReLU; ``gru``: the sequence, hidden · 2 wide
    (hidden, if one way only); ``head.scores``: the logits of each frame.
    """
    return _CRNN(
        LogMel(sample_rate, bands, window=window, hop=hop),
        channels, hidden, num_tags, bidirectional=bidirectional,
    )  # fmt: skip


def small_crnn(
    num_tags: int,
    sample_rate: int = 16000,
    *,
    channels: Sequence[int] = (4, 8, 8),
    hidden: int = 16,
    bands: int = 40,
    window: float = 0.025,
    hop: float = 0.02,
) -> nn.Module:
    """:func:`crnn` with a GRU one way, and small: a student. 4,268 parameters at 16 tags.

    Taps: those of :func:`crnn`; ``gru`` is ``hidden`` wide.
    """
    return _CRNN(
        LogMel(sample_rate, bands, window=window, hop=hop),
        channels, hidden, num_tags, bidirectional=False,
    )  # fmt: skip


def cnn_lstm(
    num_tags: int,
    sample_rate: int = 16000,
    *,
    channels: int = 32,
    hidden: int = 64,
    bands: int = 20,
    window: float = 0.025,
    hop: float = 0.01,
) -> nn.Module:
    """A convolution, an LSTM and its last state: IUSP's student as the peer describes it.

    A 5×5 convolution of stride 2 without an activation, 83,784 parameters at 8 tags. *Differences*
    from knowledge-distillation-ust (hardhat5): frames are kept in order on the way to the LSTM,
    which there a reshape scrambles; the last state is that of the clip's last frame; the map is
    padded in time, so that 10 s are 500 frames and not 497.

    Taps: ``conv``: a map; ``lstm``: the sequence of states.
    """
    front_end = LogMel(sample_rate, bands, window=window, hop=hop)
    return _CNNLSTM(front_end, channels, hidden, num_tags)


def mobilenet(
    num_tags: int,
    sample_rate: int = 16000,
    *,
    width: float = 1.0,
    bands: int = 64,
    window: float = 0.025,
    hop: float = 0.02,
) -> nn.Module:
    """MobileNetV2's inverted residuals, fewer of them, and a mean over frames. Sizes are ours.

    The stem and three of the blocks halve the frequencies, the stem and the first of these the
    frames, too. 137,488 parameters at 16 tags.

    Taps: ``layers.0``, the stem, to ``layers.8``: maps; ``classifier:input``: the mean of the last.
    """
    return _MobileNet(LogMel(sample_rate, bands, window=window, hop=hop), width, num_tags)


def build(name: str, arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> nn.Module:
    """The network ``name`` with ``arguments`` and, where it knows them, ``defaults``.

    Args:
        name: one of ``__all__``.
        arguments: what the caller asks for.
        defaults: ``num_tags`` and ``sample_rate`` of the data.

    Raises:
        RecipeError: an unknown name or argument.
    """
    function = resolve("network", name, {known: globals()[known] for known in __all__})
    bound = bind("network", name, function, arguments, defaults=defaults)
    try:
        network: nn.Module = function(**bound)
    except CongenerError:
        raise
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in bound.items())
        raise RecipeError(f"The network {name!r} cannot be built with {shown}: {error}.") from error
    return network


class _CRNN(nn.Module):
    """See :func:`crnn`."""

    def __init__(
        self,
        front_end: LogMel,
        channels: Sequence[int],
        hidden: int,
        num_tags: int,
        *,
        bidirectional: bool,
    ) -> None:
        super().__init__()
        if not channels:
            raise RecipeError("channels is empty; give those of one convolution or more.")
        self.front_end = front_end
        self.layers = nn.ModuleList(
            _Layer(before, after, stride=(1 if place else 2, 2))
            for place, (before, after) in enumerate(pairwise([1, *channels]))
        )
        frequencies = front_end.bands
        for _ in channels:
            frequencies = -(-frequencies // 2)
        self.gru = _Recurrence(nn.GRU, channels[-1] * frequencies, hidden, both_ways=bidirectional)
        self.head = _Attention(hidden * (2 if bidirectional else 1), num_tags)

    def forward(
        self, waveform: Float[Tensor, "batch samples"], length: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch tags"]:
        maps = self.front_end(waveform, length)
        past = self.front_end.past(length, maps.shape[2])
        for layer in self.layers:
            maps, past = layer(maps, past)
        logits: Tensor = self.head(self.gru(_as_sequence(maps), past), past)
        return logits


class _CNNLSTM(nn.Module):
    """See :func:`cnn_lstm`."""

    def __init__(self, front_end: LogMel, channels: int, hidden: int, num_tags: int) -> None:
        super().__init__()
        if front_end.bands < 5:
            raise RecipeError(
                f"bands={front_end.bands} are fewer than the 5 that the convolution spans; take "
                "more."
            )
        self.front_end = front_end
        self.conv = nn.Conv2d(1, channels, 5, stride=2, padding=(2, 0))
        self.lstm = _Recurrence(nn.LSTM, channels * ((front_end.bands - 5) // 2 + 1), hidden)
        self.classifier = nn.Linear(hidden, num_tags)

    def forward(
        self, waveform: Float[Tensor, "batch samples"], length: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch tags"]:
        maps = self.front_end(waveform, length)
        past = self.front_end.past(length, maps.shape[2])[:, ::2]
        states = self.lstm(_as_sequence(self.conv(maps)), past)
        last = (~past).sum(1) - 1
        rows = torch.arange(len(last), device=last.device)
        logits: Tensor = self.classifier(states[rows, last])
        return logits


class _MobileNet(nn.Module):
    """See :func:`mobilenet`."""

    BLOCKS = (
        (1, 16, (1, 1)), (6, 24, (2, 2)), (6, 24, (1, 1)), (6, 32, (1, 2)), (6, 32, (1, 1)),
        (6, 64, (1, 2)), (6, 64, (1, 1)),
    )  # fmt: skip
    """Of each, by how much it expands, its channels, and its strides in time and frequency."""

    def __init__(self, front_end: LogMel, width: float, num_tags: int) -> None:
        super().__init__()
        if not width > 0:
            raise RecipeError(f"width={width} leaves no channels; give a positive number.")
        self.front_end = front_end
        before = max(1, round(32 * width))
        self.layers = nn.ModuleList([_Layer(1, before, stride=(2, 2))])
        for expansion, channels, stride in self.BLOCKS:
            after = max(1, round(channels * width))
            self.layers.append(_InvertedResidual(before, after, expansion, stride))
            before = after
        after = max(1, round(256 * width))
        self.layers.append(_Layer(before, after, kernel=1))
        self.classifier = nn.Linear(after, num_tags)

    def forward(
        self, waveform: Float[Tensor, "batch samples"], length: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch tags"]:
        maps = self.front_end(waveform, length)
        past = self.front_end.past(length, maps.shape[2])
        for layer in self.layers:
            maps, past = layer(maps, past)
        count = (~past).sum(1, keepdim=True)
        logits: Tensor = self.classifier(maps.mean(3).sum(2) / count)
        return logits


def _as_sequence(maps: Maps) -> Frames:
    return maps.transpose(1, 2).flatten(2)


class _Norm(nn.BatchNorm2d):
    """Batch normalisation whose statistics are those of the frames that belong to clips."""

    def forward(self, maps: Maps, past: Past) -> Maps:  # type: ignore[override]
        if not self.training:
            return super().forward(maps)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        ends = past[:, None, :, None]
        maps = maps.float().masked_fill(ends, 0)
        count = (~past).sum() * maps.shape[3]
        mean = maps.sum((0, 2, 3)) / count
        centred = (maps - mean[:, None, None]).masked_fill(ends, 0)
        variance = centred.square().sum((0, 2, 3)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            unbiased = variance * (count / (count - 1).clamp(min=1))
            self.running_var.lerp_(unbiased, self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]


class _Layer(nn.Module):
    """Convolution, normalisation and activation; zero after a clip's end, as what comes in.

    It also returns which of its frames are past the end.
    """

    def __init__(
        self,
        before: int,
        after: int,
        *,
        kernel: int = 3,
        stride: tuple[int, int] = (1, 1),
        groups: int = 1,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            before, after, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
        )
        self.norm = _Norm(after)
        self.activation = nn.ReLU() if activation is None else activation

    def forward(self, maps: Maps, past: Past) -> tuple[Maps, Past]:
        past = past[:, :: self.conv.stride[0]]
        maps = self.activation(self.norm(self.conv(maps), past))
        return maps.masked_fill(past[:, None, :, None], 0), past


class _InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, filter each channel by itself, project; a shortcut if it fits.

    Source: Sandler et al., MobileNetV2, CVPR 2018, section 3.
    """

    def __init__(self, before: int, after: int, expansion: int, stride: tuple[int, int]) -> None:
        super().__init__()
        inner = before * expansion
        self.expand = _Layer(before, inner, kernel=1, activation=nn.ReLU6())
        self.depthwise = _Layer(inner, inner, stride=stride, groups=inner, activation=nn.ReLU6())
        self.project = _Layer(inner, after, kernel=1, activation=nn.Identity())
        self.shortcut = before == after and stride == (1, 1)

    def forward(self, maps: Maps, past: Past) -> tuple[Maps, Past]:
        inner, past = self.depthwise(*self.expand(maps, past))
        output, past = self.project(inner, past)
        return maps + output if self.shortcut else output, past


class _Recurrence(nn.Module):
    """A GRU or an LSTM over the frames of each clip, one way or both; zero after a clip's end."""

    def __init__(
        self, kind: type[nn.GRU | nn.LSTM], dims: int, hidden: int, *, both_ways: bool = False
    ) -> None:
        super().__init__()
        self.ahead = kind(dims, hidden, batch_first=True)
        self.back = kind(dims, hidden, batch_first=True) if both_ways else None

    def forward(self, frames: Frames, past: Past) -> Frames:
        states: Tensor = self.ahead(frames)[0]
        if self.back is not None:
            turned = _turned(past)[..., None]
            backward = self.back(frames.gather(1, turned.expand_as(frames)))[0]
            states = torch.cat([states, backward.gather(1, turned.expand_as(backward))], dim=2)
        return states.masked_fill(past[..., None], 0)


def _turned(past: Past) -> Int[Tensor, "batch frames"]:
    """Places of each clip's frames from its last to its first; those after its end stay."""
    places = torch.arange(past.shape[1], device=past.device)
    last = (~past).sum(1, keepdim=True) - 1
    return torch.where(past, places, last - places)


class _Attention(nn.Module):
    """The logits of a clip: for each tag, a mean of those of its frames, weighted by attention."""

    def __init__(self, dims: int, num_tags: int) -> None:
        super().__init__()
        self.scores = nn.Linear(dims, num_tags)
        self.attention = nn.Linear(dims, num_tags)

    def forward(self, frames: Frames, past: Past) -> Float[Tensor, "batch tags"]:
        attention = self.attention(frames).masked_fill(past[..., None], -torch.inf)
        logits: Tensor = (attention.softmax(dim=1) * self.scores(frames)).sum(dim=1)
        return logits
