"""What a network of transformers is called on, and which of its logits count."""

import inspect
from collections.abc import Mapping
from typing import Any, NoReturn, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from congener.errors import DataError, RecipeError, ShapeError
from congener.task import Metrics, Task
from congener.types import Batch

__all__ = ["TEACHERS", "Counts", "Inputs"]

TEACHERS = "teacher_"
"""How the columns begin that the teacher alone reads."""

PACKED = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"}
"""Columns that tell where texts end that are packed into one row; no network names them."""

Counts = tuple[int, int]
"""How many rows of logits count in a batch, and how many of them have a label."""


@final
class Inputs(Task):
    """Batches as a data collator makes them, for networks that are called as transformers calls.

    Where labels are whole numbers for each token, the logits of the tokens that have one are what
    losses compare, (tokens, vocab); else logits have a row for each sample.

    Args:
        shifts: whether the logits at a token tell the next one, as a causal language model's do.
    """

    metric = "loss"

    def __init__(self, *, shifts: bool) -> None:
        self.shifts = shifts

    @property
    def splits(self) -> Mapping[str, Dataset[Any]]:  # type: ignore[override]
        """None: who asks wants to see data before training, which only our engine shows."""
        raise RecipeError(
            "A loss among the terms reads more than logits, features and labels (class means, "
            "a memory, the teacher's own layers), which congener's own engine makes ready; train "
            "with congener.distill, or choose another loss."
        )

    def call(self, model: nn.Module, batch: Batch) -> Any:
        """The rows of logits that count, of a network that gets the columns that it can read."""
        return self.rows(model(**columns_of(model, batch)), batch)

    def rows(self, result: Any, batch: Batch) -> Tensor:
        """The rows of logits that count within what a network returned.

        Raises:
            RecipeError: it returned none.
            DataError: logits of tokens, and no labels to say which of them count.
            ShapeError: logits and labels of different tokens.
        """
        logits = getattr(result, "logits", result)
        if not isinstance(logits, Tensor):
            raise RecipeError(
                f"The network returned a {type(result).__name__} without logits; leave out what "
                "computes the loss without them (use_liger_kernel), and give a network with a head."
            )
        mask = self.token_mask(batch)
        if mask is None and logits.ndim == 2:
            return logits
        if mask is None:
            raise DataError(
                f"The logits {tuple(logits.shape)} are of tokens, but the batch has no whole "
                f"`labels` to say which count; it has: {', '.join(batch)}. Let the collator make "
                "them, as DataCollatorForLanguageModeling(tokenizer, mlm=False) does (-100 where a "
                "token does not count), and look whether remove_unused_columns took them away."
            )
        if logits.shape[:-1] != mask.shape:
            raise ShapeError(
                f"The logits {tuple(logits.shape)} and the labels {tuple(mask.shape)} are not of "
                "the same tokens; give both networks the tokens that the labels are for."
            )
        return logits[mask.to(logits.device)]

    def logits(self, result: Any) -> Tensor:
        """What :meth:`call` returned."""
        assert isinstance(result, Tensor)
        return result

    def token_mask(self, batch: Batch) -> Tensor | None:
        """Where the logits are of a token with a label, (batch, tokens); none: of samples."""
        labels = self._next(batch)
        return None if labels is None else labels != self.ignore_label

    def targets(self, batch: Batch) -> Tensor | None:
        """The labels of the rows."""
        labels = self._next(batch)
        return batch.get("labels") if labels is None else labels[labels != self.ignore_label]

    def _next(self, batch: Batch) -> Tensor | None:
        """Labels where the logits are that should give them, (batch, tokens); none: of samples."""
        if "shift_labels" in batch:  # by the collator, or where a context is cut
            return batch["shift_labels"]  # type: ignore[no-any-return]
        labels = batch.get("labels")
        if not isinstance(labels, Tensor) or labels.ndim != 2 or labels.is_floating_point():
            return None
        return F.pad(labels, (0, 1), value=self.ignore_label)[:, 1:] if self.shifts else labels

    def count(self, batch: Batch) -> Counts:
        """How many rows count, and how many of them are labelled."""
        mask = self.token_mask(batch)
        if mask is not None:
            tokens = int(mask.sum())
            return tokens, tokens
        samples = next((len(v) for v in batch.values() if isinstance(v, Tensor) and v.ndim), 0)
        labels = batch.get("labels")
        if not isinstance(labels, Tensor):
            return samples, 0
        known = labels != self.ignore_label
        return samples, int(known.flatten(1).any(1).sum() if known.ndim > 1 else known.sum())

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The loss that the trainer made of the student's outputs, under ``loss``."""
        value = batch["loss"]
        assert isinstance(value, Tensor)
        return value

    def mask(self, batch: Batch, feature: Tensor) -> Tensor | None:
        """The attention mask, for a feature (batch, tokens, dims)."""
        mask = batch.get("attention_mask")
        fits = isinstance(mask, Tensor) and mask.shape == feature.shape[:2] and feature.ndim == 3
        return mask.bool() if isinstance(mask, Tensor) and fits else None

    def build_model(self, name: str, **arguments: Any) -> NoReturn:
        """The trainer has its networks."""
        raise NotImplementedError

    def collate(self, samples: Any) -> NoReturn:
        """The trainer has its collator."""
        raise NotImplementedError

    def prepare(self, batch: Batch, *, train: bool, seed: int, epoch: int) -> Batch:
        """As it is."""
        return batch

    def metrics(self, device: torch.device) -> Metrics:
        """The trainer measures."""
        raise NotImplementedError


def columns_of(model: nn.Module, batch: Batch) -> Batch:
    """What a teacher is called on: its own columns where there are any, of those that it reads.

    Labels only where a decoder makes its inputs of them, and no cache of what it read.
    """
    own = {k.removeprefix(TEACHERS): v for k, v in batch.items() if k.startswith(TEACHERS)}
    columns = own or batch
    parameters = inspect.signature(model.forward).parameters.values()
    named = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    read = named or set(columns)
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        read |= PACKED
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        read -= {"labels"}
    chosen = {name: value for name, value in columns.items() if name in read}
    return chosen | ({"use_cache": False} if "use_cache" in named else {})
