"""Audio tagging: data sets of clips, augmentation, networks and what is measured."""

from congener.errors import CongenerError

try:
    import soundfile  # noqa: F401
    import torchaudio  # noqa: F401
    import torchmetrics  # noqa: F401
except ImportError as error:
    raise CongenerError(
        f"Audio tagging needs the package {error.name!r}; install it with: "
        'pip install "congener[audio]"'
    ) from error

from . import augment, data, models
from .data.splits import ClipDataset, Splits
from .front_end import LogMel
from .task import AudioTagging

__all__ = ["AudioTagging", "ClipDataset", "LogMel", "Splits", "augment", "data", "models"]
