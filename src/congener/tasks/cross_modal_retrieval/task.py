"""Cross-modal retrieval: find by binary codes what is like a query in the other modality."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from congener.errors import DataError, RecipeError
from congener.losses import mm_hashing_loss
from congener.task import Metrics, Task
from congener.tasks.named import named
from congener.types import Batch, Exhibit

from . import data as datasets
from . import models
from .control import best_control
from .data.splits import IGNORE, PairDataset, Splits, kind_of, known_rows
from .exhibits import neighbours
from .metrics import HashingMetrics

__all__ = ["CrossModalRetrieval"]

SIDES = ("first", "second")


class CrossModalRetrieval(Task):
    """Pairs of two modalities, such as pictures and their names; unlabelled pairs carry -100.

    Args:
        data: the name of a loader in :mod:`.data`, a mapping with its ``name`` and arguments, or
            the :class:`Splits` that a loader returned.
        margin: how far apart the loss keeps the codes of unlike items, less than 2 √bits; default:
            √bits, where a quarter of the bits differ. Ours.
        first_weight: of the loss within the first modality; default: 0, none. Ours.
        second_weight: of the loss within the second.
        negative_weight: of the unlike pairs; default: 1, as in the paper's formula.
        pairs: items are alike that share a label, ``"labels"``, or ``"aligned"``: an item is like
            itself alone, labels do not count, and queries are searched for, too.

    Raises:
        RecipeError: an unknown name or argument.
        DataError: data that is missing, damaged or of no use.
    """

    metric = "map"
    augments = False
    ignore_label = IGNORE

    def __init__(
        self,
        data: str | Mapping[str, Any] | Splits = "emoji_names",
        *,
        margin: float | None = None,
        first_weight: float = 0.0,
        second_weight: float = 0.0,
        negative_weight: float = 1.0,
        pairs: Literal["labels", "aligned"] = "labels",
    ) -> None:
        if pairs not in ("labels", "aligned"):
            raise RecipeError(f"pairs={pairs!r}: expected 'labels' or 'aligned'.")
        weights = {"first_weight": first_weight, "second_weight": second_weight}
        weights["negative_weight"] = negative_weight
        for name, weight in weights.items():
            if not (weight >= 0 and math.isfinite(weight)):
                raise RecipeError(f"{name}={weight}: a weight is finite and not negative.")
        self.divided = data if isinstance(data, Splits) else named("data set", data, [datasets])()
        self.margin, self.pairs = margin, pairs
        self.loss_weights: dict[str, Any] = weights
        splits: dict[str, Dataset[Any]] = {"train": self.divided.train, "test": self.divided.test}
        if self.divided.teacher is not None:
            splits["teacher"] = self.divided.teacher
        self.splits = splits
        known = known_rows(self.divided.train.pairs.labels)
        self.labelled = known.nonzero().flatten() if known.any() and not known.all() else None
        self._check_labels(known)
        self.kinds = tuple(kind_of(self._items(side)) for side in SIDES)
        self._scales = {side: _scale(self._items(side)) for side in SIDES}

    def _items(self, side: str) -> Tensor:
        return self.divided.train.columns[side]

    def _check_labels(self, known: Tensor) -> None:
        if self.pairs == "aligned":
            self.labelled = None
            return
        for what, some in (
            ("training pair", known),
            ("query", self.asking()),
            ("item of the database", self.searched()),
        ):
            if not some.any():
                raise DataError(
                    f"No {what} has a label, so nothing says what is alike; label some, or set "
                    "pairs to 'aligned', where an item is like itself alone."
                )

    def asking(self) -> Tensor:
        """Which items of the test set ask: queries with a label, or with aligned pairs all."""
        test = self.divided.test
        if self.pairs == "aligned":
            return test.query
        return test.query & known_rows(test.pairs.labels)

    def searched(self) -> Tensor:
        """Which items of the test set are the database; of aligned pairs all, the queries too."""
        test = self.divided.test
        if self.pairs == "aligned":
            return torch.ones_like(test.query)
        return ~test.query & known_rows(test.pairs.labels)

    def scales(self) -> dict[str, dict[str, Any]]:
        """For each modality that is standardised, its mean and standard deviation, as lists."""
        known = {side: scale for side, scale in self._scales.items() if scale is not None}
        return {
            side: {"mean": mean.flatten().tolist(), "std": std.flatten().tolist()}
            for side, (mean, std) in known.items()
        }

    def labels(self, split: str) -> Tensor | None:
        """The label of every item of a split, where it has one."""
        dataset = self.splits[split]
        assert isinstance(dataset, PairDataset)
        found = dataset.pairs.labels
        return found if found.ndim == 1 else None

    def build_model(self, name: str, **kwargs: Any) -> nn.Module:
        """The network ``coupled``; see :func:`.models.build`."""
        first, second = (
            {
                "kind": kind,
                "input_shape": tuple(self._items(side).shape[1:]),
                "in_features": self._items(side)[0].numel(),
                "sample_rate": self.divided.sample_rate,
            }
            for side, kind in zip(SIDES, self.kinds, strict=True)
        )
        return models.build(name, kwargs, (first, second))

    def collate(self, samples: Any) -> Batch:
        """A batch from a ready batch, or from a list of items as mappings."""
        return dict(samples if isinstance(samples, Mapping) else default_collate(samples))

    def prepare(self, batch: Batch, *, train: bool, seed: int, epoch: int) -> Batch:
        """Turn pictures and sounds into floats; standardise pictures and vectors.

        The mean and the standard deviation are those of the training set: of a channel of pictures,
        of a feature of vectors, whose deviation 0 counts as 1.
        """
        ready = {side: _prepared(batch[side], self._scales[side]) for side in SIDES}
        return dict(batch) | ready

    def call(self, model: nn.Module, batch: Batch) -> Any:
        """The codes of both modalities."""
        return model(batch["first"], batch["second"])

    def logits(self, result: Any) -> Tensor:
        """The codes, (batch, 2, bits)."""
        if not isinstance(result, Tensor) or result.ndim != 3 or result.shape[1] != 2:
            came = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise DataError(
                f"The network returned {came}; expected the codes of both modalities, (batch, 2, "
                "bits), as of 'coupled'."
            )
        return result

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """:func:`congener.losses.mm_hashing_loss` of the labelled items of the global batch.

        Raises:
            RecipeError: a margin that no codes of this length can keep.
        """
        bits = logits.shape[-1]
        margin = math.sqrt(bits) if self.margin is None else self.margin
        if not 0 <= margin < 2 * math.sqrt(bits):
            raise RecipeError(
                f"margin={margin:g} fits no codes of {bits} bits, whose distance is at most "
                f"2 √{bits} = {2 * math.sqrt(bits):.3g}; take one from 0 to "
                "below that, or longer codes."
            )
        aligned = self.pairs == "aligned"
        first, second = logits.unbind(1)
        return mm_hashing_loss(
            first,
            second,
            batch["index"] if aligned else batch["labels"],
            margin=margin,
            first_margin=margin,
            second_margin=margin,
            mask=None if aligned else known_rows(batch["labels"]),
            **self.loss_weights,
        )

    def metrics(self, device: torch.device) -> Metrics:
        """See :class:`.HashingMetrics`."""
        return HashingMetrics(device, aligned=self.pairs == "aligned")

    def exhibits(
        self, networks: Mapping[str, nn.Module], taps: Mapping[str, str | None]
    ) -> Sequence[Exhibit]:
        """A typical query of each modality with its ten nearest items in the other."""
        return neighbours(self, networks)

    def control(self, held: Task) -> Mapping[str, Any] | None:
        """The best of some methods without a network; see :mod:`.control`."""
        assert isinstance(held, CrossModalRetrieval)
        return best_control(self, held)


def _scale(items: Tensor) -> tuple[Tensor, Tensor] | None:
    """By what pictures and vectors are standardised: mean and deviation, in a shape that fits."""
    kind = kind_of(items)
    if kind in ("text", "sound"):
        return None
    axes = [0, 2, 3] if kind == "image" else [0]
    values = items.double() / 255 if items.dtype == torch.uint8 else items.double()
    mean, std = values.mean(axes, keepdim=True), values.std(axes, keepdim=True, correction=0)
    return mean.float(), torch.where(std > 1e-12, std, 1.0).float()


def _prepared(items: Tensor, scale: tuple[Tensor, Tensor] | None) -> Tensor:
    if items.dtype == torch.int16:
        return items.float() / 2**15
    if scale is None:
        return items
    if items.dtype == torch.uint8:
        items = items.float() / 255
    mean, std = (each.to(items.device) for each in scale)
    return (items - mean) / std
