"""Image classification: data sets, augmentation, networks and what is measured."""

from congener.errors import CongenerError

try:
    import torchmetrics  # noqa: F401
    import torchvision  # noqa: F401
except ImportError as error:
    raise CongenerError(
        f"Image classification needs the package {error.name!r}; install it with: "
        'pip install "congener[image]"'
    ) from error

from . import augment, data, models
from .data.splits import ArrayDataset, Splits
from .task import ImageClassification

__all__ = ["ArrayDataset", "ImageClassification", "Splits", "augment", "data", "models"]
