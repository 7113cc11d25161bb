"""Object detection: data sets of boxes, augmentation, detectors and what is measured."""

from congener.errors import CongenerError

try:
    import pycocotools  # noqa: F401
    import torchmetrics  # noqa: F401
    import torchvision  # noqa: F401
except ImportError as error:
    raise CongenerError(
        f"Detection needs the package {error.name!r}; install it with: "
        'pip install "congener[detection]"'
    ) from error

from . import augment, data, models
from .data.splits import Scenes, Splits
from .task import Detection

__all__ = ["Detection", "Scenes", "Splits", "augment", "data", "models"]
