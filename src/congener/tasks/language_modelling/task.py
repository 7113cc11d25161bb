"""Language modelling: a causal language model learns to answer prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from congener.errors import DataError, RecipeError, did_you_mean
from congener.ops.collectives import global_mean
from congener.ops.precision import upcast
from congener.task import Metrics, Task
from congener.tasks.named import named
from congener.types import Batch, Exhibit

from . import data as datasets
from . import models
from .data.splits import IGNORE, Splits, TextDataset
from .exhibits import written_answers
from .metrics import AnswerMetrics, Response, respond
from .selection import selected_logits

__all__ = ["LanguageModelling"]

KEYS = ("tokens", "prompt", "length", "labels")


class LanguageModelling(Task):
    """Prompts and responses as tokens; the loss counts the tokens of responses and no other.

    A prepared batch has ``tokens`` (batch, longest), ``mask``, which of them are no padding,
    ``labels``, the tokens of responses with -100 elsewhere, ``prompt``, tokens of each prompt, and
    ``length``, tokens of each text. Logits are those that a response's tokens are predicted from,
    a row for each token of the batch: the other rows are never made.

    Args:
        data: the name of a loader in :mod:`.data`, a mapping with its ``name`` and arguments, or
            the :class:`Splits` that a loader returned.
        metric: the headline figure; default: ``valid_sampled`` where a rule judges answers, else
            ``exact_match`` where there is one right answer, else ``perplexity``.
        generate: whether networks answer the test prompts when they are measured; default: where
            the data can judge an answer.
        max_new_tokens: an answer that has not ended by then counts as wrong; default: the longest
            response of the data.

    Attributes:
        vocabulary: what tokens are: their number, the one that ends a response, and the padding.

    Raises:
        RecipeError: an unknown name or argument.
        DataError: data that is missing, damaged or of no use.
    """

    augments = False
    ignore_label = IGNORE
    evaluation_batch = 16  # logits of whole vocabularies take room

    def __init__(
        self,
        data: str | Mapping[str, Any] | Splits = "shuffle",
        *,
        metric: str | None = None,
        generate: bool | None = None,
        max_new_tokens: int | None = None,
    ) -> None:
        divided = data if isinstance(data, Splits) else named("data set", data, [datasets])()
        self.divided, self.vocabulary = divided, divided.vocabulary
        texts = [
            part for part in (divided.train, divided.test, divided.teacher) if part is not None
        ]
        splits: dict[str, Dataset[Any]] = {"train": divided.train, "test": divided.test}
        if divided.teacher is not None:
            splits["teacher"] = divided.teacher
        self.splits = splits
        known = divided.train.answered
        self.labelled = known.nonzero().flatten() if known.any() and not known.all() else None
        self.longest = max(int(part.length.max()) for part in texts)
        longest = max(int((part.length - part.prompt).max()) for part in texts)
        self.max_new_tokens = longest if max_new_tokens is None else max_new_tokens
        if self.max_new_tokens < 1:
            raise RecipeError(f"max_new_tokens={max_new_tokens}: expected 1 token or more.")
        judged = divided.check is not None or divided.one_answer
        self.generates = judged if generate is None else generate
        figures = AnswerMetrics(self, torch.device("cpu")).names
        preferred = ("valid_sampled", "exact_match", "perplexity")
        self.metric = metric or next(name for name in preferred if name in figures)
        if self.metric not in figures:
            raise RecipeError(
                f"There is no figure {metric!r} of this data; {did_you_mean(self.metric, figures)}"
            )
        self.higher_is_better = self.metric != "perplexity"

    def build_model(self, name: str, **kwargs: Any) -> nn.Module:
        """A network of :mod:`.models`; the size of the vocabulary is filled in."""
        return models.build(name, kwargs, self.vocabulary, self.longest)

    def texts(self, split: str) -> TextDataset:
        """The texts of a split."""
        found = self.splits[split]
        assert isinstance(found, TextDataset)
        return found

    def lengths(self, split: str) -> Tensor:
        """Tokens of each text of a split."""
        return self.texts(split).length

    def collate(self, samples: Any) -> Batch:
        """A batch from a ready batch, or from a list of mappings of one width."""
        batch = dict(samples if isinstance(samples, Mapping) else default_collate(samples))
        if missing := [key for key in KEYS if key not in batch]:
            raise DataError(
                f"A text has no {missing[0]!r}, only {sorted(batch)}; expected {', '.join(KEYS)}."
            )
        return batch

    def prepare(self, batch: Batch, *, train: bool, seed: int, epoch: int) -> Batch:
        """Cut a batch to its longest text, and mark the padding."""
        longest = int(batch["length"].max())
        places = torch.arange(longest, device=batch["length"].device)
        return dict(batch) | {
            "tokens": batch["tokens"][:, :longest].long(),
            "labels": batch["labels"][:, :longest].long(),
            "mask": places < batch["length"][:, None],
        }

    def token_mask(self, batch: Batch) -> Tensor:
        """The tokens from which those of a response are predicted, (batch, tokens)."""
        return F.pad(batch["labels"][:, 1:] != IGNORE, (0, 1))

    def targets(self, batch: Batch) -> Tensor:
        """The tokens of the responses, (tokens,), row after row."""
        following: Tensor = batch["labels"][:, 1:]
        return following[following != IGNORE]

    def call(self, model: nn.Module, batch: Batch) -> Tensor:
        """The logits of the tokens that :meth:`token_mask` marks, (tokens, vocab).

        A vocabulary that is padded for speed is cut to the tokens that there are.

        Raises:
            DataError: a network that knows fewer tokens, or reads fewer than the texts have.
        """
        tokens: Tensor = batch["tokens"]
        models.check_network(model, self.vocabulary, tokens.shape[1])
        logits = selected_logits(model, tokens, batch["mask"], self.token_mask(batch))
        known, size = logits.shape[1], self.vocabulary.size
        if known < size:
            raise DataError(
                f"The network ({type(model).__name__}) gives logits of {known} tokens, but "
                f"{self.vocabulary.name} has {size}; take another network."
            )
        return logits if known == size else logits[:, :size]  # a slice's gradient is a copy

    def logits(self, result: Any) -> Tensor:
        """The logits themselves, (tokens, vocab)."""
        assert isinstance(result, Tensor)
        return result

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy, the mean over the response tokens of the global batch."""
        (logits,) = upcast(logits)
        return global_mean(F.cross_entropy(logits, self.targets(batch), reduction="none"))

    def respond(self, model: nn.Module, batch: Batch) -> Response:
        """The logits of the responses, and where answers are judged, what the network answers."""
        return respond(self, model, batch)

    def metrics(self, device: torch.device) -> Metrics:
        """Perplexity, and how good the answers are; see :mod:`.metrics`."""
        return AnswerMetrics(self, device)

    def mask(self, batch: Batch, feature: Tensor) -> Tensor | None:
        """The tokens of a feature (batch, tokens, dims) that are no padding."""
        mask: Tensor = batch["mask"]
        return mask if feature.shape[:2] == mask.shape else None

    def exhibits(
        self, networks: Mapping[str, nn.Module], taps: Mapping[str, str | None]
    ) -> Sequence[Exhibit]:
        """What networks answer to a few test prompts; see :mod:`.exhibits`."""
        return [written_answers(self, networks)] if self.generates else []
