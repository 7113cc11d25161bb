"""Retrieval: embeddings of images by which identities are found that training never saw."""

from congener.errors import CongenerError

try:
    import torchmetrics  # noqa: F401
    import torchvision  # noqa: F401
except ImportError as error:
    raise CongenerError(
        f"Retrieval needs the package {error.name!r}; install it with: "
        'pip install "congener[retrieval]"'
    ) from error

from . import augment, data, models
from .data.splits import IdentityDataset, Splits
from .task import Retrieval

__all__ = ["IdentityDataset", "Retrieval", "Splits", "augment", "data", "models"]
