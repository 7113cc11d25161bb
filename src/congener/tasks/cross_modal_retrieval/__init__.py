"""Cross-modal retrieval: pairs of two modalities, hashed into one space of binary codes."""

from congener.errors import CongenerError

try:
    import faiss  # noqa: F401
    import torchmetrics  # noqa: F401
    import torchvision  # noqa: F401
except ImportError as error:
    raise CongenerError(
        f"Cross-modal retrieval needs the package {error.name!r}; install it with: "
        'pip install "congener[retrieval]"'
    ) from error

from . import data, encoders, index
from .data.splits import PairDataset, Splits
from .exported import Exported, export, load
from .models import Coupled
from .task import CrossModalRetrieval

__all__ = [
    "Coupled",
    "CrossModalRetrieval",
    "Exported",
    "PairDataset",
    "Splits",
    "data",
    "encoders",
    "export",
    "index",
    "load",
]
