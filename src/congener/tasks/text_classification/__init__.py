"""Text classification: sentences and pairs of them with a class, or a number, each."""

from congener.errors import CongenerError

try:
    import torchmetrics  # noqa: F401
    import transformers  # noqa: F401
except ImportError as error:
    raise CongenerError(
        f"Text classification needs the package {error.name!r}; install it with: "
        'pip install "congener[text]"'
    ) from error

from . import data, models
from .data.splits import Documents, Splits, TokenDataset
from .task import TextClassification

__all__ = ["Documents", "Splits", "TextClassification", "TokenDataset", "data", "models"]
