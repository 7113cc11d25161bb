"""Log-mel spectrograms: what networks hear of a waveform, each through a front end of its own.

Window, hop, band limits and offset are by default those of VGGish, which knowledge-distillation-ust
(hardhat5), the published reproduction of IUSP's student, uses: 25 ms, 10 ms, 125 to 7500 Hz, 0.01;
likewise magnitudes (not powers) of a Fourier transform of the next power of two. *Differences*: its
log(mel + 0.01) is moved by a constant so that silence is 0, as are the borders of a convolution;
the triangles are torchaudio's, straight in hertz rather than in mel; and frame i stands for the
samples from i · hop to (i + 1) · hop, with its window around them. The peer leaves out the windows
that reach over an end, which makes 998 frames of 10 s, not 1000; but then frames of two front ends
with other windows are not at the same times, and no frame belongs to the last samples of a clip.
"""

import warnings

import torch
import torch.nn.functional as F
import torchaudio.functional
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from congener.errors import RecipeError

__all__ = ["LogMel"]


class LogMel(nn.Module):
    """Log-mel spectrograms, log(1 + mel / offset): of silence, and after a clip's end, 0.

    Nothing in it is learnt or saved. It computes in float32, under autocast too.

    Args:
        sample_rate: samples per second.
        bands: mel bands.
        window: seconds that a frame looks at; peer: 0.025.
        hop: seconds from frame to frame, no more than ``window``; peer: 0.01.
        low: hertz, lower end of the lowest band; peer: 125.
        high: hertz, upper end of the highest; half the sample rate where that is less; peer: 7500.
        offset: the magnitude below which differences fade; peer: 0.01.

    Raises:
        RecipeError: numbers that describe no spectrogram, or more bands than the window resolves.
    """

    window: Tensor
    filters: Tensor

    def __init__(
        self,
        sample_rate: int,
        bands: int = 64,
        *,
        window: float = 0.025,
        hop: float = 0.01,
        low: float = 125.0,
        high: float = 7500.0,
        offset: float = 0.01,
    ) -> None:
        super().__init__()
        high = min(high, sample_rate / 2)
        samples, self.hop = round(window * sample_rate), round(hop * sample_rate)
        if not 1 <= self.hop <= samples:
            raise RecipeError(
                f"hop={hop} and window={window} at {sample_rate} samples per second are "
                f"{self.hop} and {samples} samples; expected a hop of 1 or more, no longer than "
                "the window."
            )
        if not (0 <= low < high and bands >= 1 and offset > 0):
            raise RecipeError(
                f"bands={bands}, low={low}, high={high:g} and offset={offset} describe no "
                "spectrogram; expected at least one band, 0 <= low < high, and offset > 0."
            )
        self.bands = bands
        self.fourier = 1 << (samples - 1).bit_length()
        self.register_buffer("window", torch.hann_window(samples), persistent=False)
        filters = _filters(self.fourier // 2 + 1, low, high, bands, sample_rate)
        self.register_buffer("filters", filters / offset, persistent=False)

    def past(self, length: Int[Tensor, " batch"], frames: int) -> Bool[Tensor, "batch frames"]:
        """Which of so many frames come after the end of clips of ``length`` samples: not the first.

        A frame belongs to a clip if the first of its samples does.
        """
        places = torch.arange(frames, device=length.device)
        return (places * self.hop >= length[:, None]) & (places > 0)

    def forward(
        self, waveform: Float[Tensor, "batch samples"], length: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch 1 frames bands"]:
        """The spectrograms; samples from ``length`` on are as if they were silent."""
        width = waveform.shape[1]
        with torch.autocast(waveform.device.type, enabled=False):
            ended = torch.arange(width, device=waveform.device) >= length[:, None]
            count = -(-width // self.hop)
            before = (self.fourier - self.hop) // 2
            after = (count - 1) * self.hop + self.fourier - before - width
            padded = F.pad(waveform.float().masked_fill(ended, 0), (before, after))
            spectrum = torch.stft(
                padded, self.fourier, self.hop, len(self.window), self.window,
                center=False, return_complex=True,
            )  # fmt: skip
            # abs() of complex numbers is three times as slow. As stft lays them out, frames come
            # before frequencies: the transpose copies nothing.
            parts = torch.view_as_real(spectrum.mT)
            real, imaginary = parts[..., 0], parts[..., 1]
            magnitude = torch.addcmul(real * real, imaginary, imaginary).sqrt()
            mel = (magnitude @ self.filters).log1p()
            return mel.masked_fill(self.past(length, count)[..., None], 0).unsqueeze(1)

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"bands={self.bands}, window={len(self.window)}, hop={self.hop}"


def _filters(bins: int, low: float, high: float, bands: int, sample_rate: int) -> Tensor:
    """Triangles on the mel scale, (bins, bands)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of empty bands, which the next lines tell
        filters: Tensor = torchaudio.functional.melscale_fbanks(bins, low, high, bands, sample_rate)
    empty = int((filters.amax(0) == 0).sum())
    if empty:
        raise RecipeError(
            f"{empty} of bands={bands} from {low:g} to {high:g} Hz are narrower than the window "
            "can tell apart, so they would hear nothing; use fewer bands or a longer window."
        )
    return filters
