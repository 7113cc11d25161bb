"""Language modelling: answers to prompts, written token by token by a causal language model."""

from congener.errors import CongenerError

try:
    import transformers  # noqa: F401
except ImportError as error:
    raise CongenerError(
        f"Language modelling needs the package {error.name!r}; install it with: "
        'pip install "congener[lm]"'
    ) from error

from . import data, models
from .data.splits import Splits, TextDataset, Vocabulary
from .divergence import teacher_forced_kl
from .task import LanguageModelling

__all__ = [
    "LanguageModelling",
    "Splits",
    "TextDataset",
    "Vocabulary",
    "data",
    "models",
    "teacher_forced_kl",
]
