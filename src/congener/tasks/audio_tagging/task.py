"""Audio tagging: any number of tags for each clip, and for each tag yes, no, or not known."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from congener.errors import DataError, RecipeError
from congener.ops.collectives import global_mean
from congener.task import Metrics, Task
from congener.tasks.named import augmentation, named
from congener.types import Batch, Exhibit

from . import augment as augmentations
from . import data as datasets
from . import models
from .control import best_control
from .data.splits import IGNORE, Splits, labelled_positions
from .exhibits import frame_similarities
from .metrics import TagMetrics

__all__ = ["AudioTagging"]

FULL_SCALE = 32768  # of int16


class AudioTagging(Task):
    """Clips of any length with any number of tags; a tag that is not known carries -100.

    Args:
        data: the name of a loader in :mod:`.data`, a mapping with its ``name`` and arguments, or
            the :class:`Splits` that a loader returned.
        augment: the name of a function in :mod:`.augment`, or a mapping with its ``name`` and
            arguments; applied to training batches.
        pos_weight: factor on the loss of the tags that are there, one for all or one for each tag,
            against rare tags; default: 1, as the peer of IUSP (knowledge-distillation-ust).

    Attributes:
        tag_names: one for each tag.
        sample_rate: samples per second.

    Raises:
        RecipeError: an unknown name or argument.
        DataError: data that is missing, damaged or of no use.
    """

    metric = "micro_auprc"
    ignore_label = IGNORE

    def __init__(
        self,
        data: str | Mapping[str, Any] | Splits = "instruments",
        *,
        augment: str | Mapping[str, Any] = "none",
        pos_weight: float | Sequence[float] | None = None,
    ) -> None:
        divided = data if isinstance(data, Splits) else named("data set", data, [datasets])()
        splits: dict[str, Dataset[Any]] = {"train": divided.train, "test": divided.test}
        if divided.teacher is not None:
            splits["teacher"] = divided.teacher
        self.splits = splits
        self.tag_names, self.sample_rate = divided.tag_names, divided.sample_rate
        self.labelled = labelled_positions(divided.train.labels)
        self._augment = _augmentation(augment)
        self.augments = self._augment.func is not augmentations.none
        self._pos_weight = _factors(pos_weight, len(self.tag_names))

    def build_model(self, name: str, **kwargs: Any) -> nn.Module:
        """A network of :mod:`.models`; the tag count and the sample rate are filled in."""
        defaults = {"num_tags": len(self.tag_names), "sample_rate": self.sample_rate}
        return models.build(name, kwargs, defaults)

    def collate(self, samples: Any) -> Batch:
        """A batch from a ready batch, or from a list of mappings whose waveforms are as long."""
        try:
            batch = samples if isinstance(samples, Mapping) else default_collate(samples)
        except (TypeError, RuntimeError) as error:
            raise DataError(
                "The clips cannot be stacked into a batch; expected waveforms of one width, "
                f"shorter clips followed by zeros. torch says: {error}"
            ) from error
        if missing := {"waveform", "length", "labels"} - set(batch):
            raise DataError(
                f"A clip has no {sorted(missing)[0]!r}; expected mappings with the keys "
                "'waveform', 'length' and 'labels'."
            )
        return dict(batch)

    def prepare(self, batch: Batch, *, train: bool, seed: int, epoch: int) -> Batch:
        """Waveforms as floats in [-1, 1], augmented in training; labels as floats."""
        waveform: Tensor = batch["waveform"]
        if not waveform.is_floating_point():
            waveform = waveform.float().div_(FULL_SCALE)
        if train and self.augments:
            waveform = self._augment(
                waveform, batch["length"], batch["index"], seed=seed, epoch=epoch
            )
        return dict(batch) | {"waveform": waveform, "labels": batch["labels"].float()}

    def call(self, model: nn.Module, batch: Batch) -> Any:
        """The model's answer to the waveforms and how long they are."""
        return model(batch["waveform"], batch["length"])

    def logits(self, result: Any) -> Tensor:
        """The tensor itself, or the attribute ``logits`` of a record, as in transformers."""
        found = result if isinstance(result, Tensor) else getattr(result, "logits", None)
        if not isinstance(found, Tensor):
            raise DataError(
                f"The network returned {type(result).__name__}; expected a tensor of logits, or a "
                "record with the attribute 'logits'."
            )
        return found

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Binary cross-entropy, the mean over the known tags of the global batch's clips."""
        labels: Tensor = batch["labels"]
        if logits.shape != labels.shape:
            raise DataError(
                f"The network gave logits {tuple(logits.shape)} for labels {tuple(labels.shape)}; "
                f"expected one for each of the {len(self.tag_names)} tags, so leave out num_tags."
            )
        factors = None if self._pos_weight is None else self._pos_weight.to(logits.device)
        values = F.binary_cross_entropy_with_logits(
            logits.float(), labels.clamp(min=0), pos_weight=factors, reduction="none"
        )
        return global_mean(values.flatten(), (labels != IGNORE).flatten())

    def metrics(self, device: torch.device) -> Metrics:
        """Areas under the precision-recall curve and the cross-entropy; see :mod:`.metrics`."""
        return TagMetrics(len(self.tag_names), device, self.logits)

    def mask(self, batch: Batch, feature: Tensor) -> Tensor:
        """Frames of a feature that lie within their clip, (batch, frames); the first always does.

        Args:
            batch: a prepared batch.
            feature: (batch, frames, dims) or (batch, channels, frames, frequencies), whose frames
                divide the padded width evenly, as those of :mod:`.models` do.
        """
        length, width = batch["length"], batch["waveform"].shape[1]
        frames = feature.shape[-2]
        within = (length * frames).div(width, rounding_mode="floor").clamp(min=1)
        places = torch.arange(frames, device=within.device)
        inside: Tensor = places < within[:, None]
        return inside

    def exhibits(
        self, networks: Mapping[str, nn.Module], taps: Mapping[str, str | None]
    ) -> Sequence[Exhibit]:
        """Which frames of a test clip are alike, to each network; see :mod:`.exhibits`."""
        return frame_similarities(self, networks, taps)

    def control(self, held: Task) -> Mapping[str, Any]:
        """The best classifier of time means and deviations of log-mels; see :mod:`.control`."""
        assert isinstance(held, AudioTagging)
        return best_control(self, held)


def _augmentation(augment: str | Mapping[str, Any]) -> "partial[Tensor]":
    one = torch.ones(1, dtype=torch.int64)
    return augmentation(
        augment,
        [augmentations],
        lambda chosen: chosen(torch.ones(1, 8), one, one, seed=0, epoch=0),
        own=("waveform", "length"),
    )


def _factors(pos_weight: float | Sequence[float] | None, tags: int) -> Tensor | None:
    """A factor for each tag."""
    if pos_weight is None:
        return None
    given = [pos_weight] * tags if isinstance(pos_weight, int | float) else list(pos_weight)
    numbers = all(isinstance(each, int | float) for each in given)
    if len(given) != tags or not numbers or not all(0 < each < math.inf for each in given):
        raise RecipeError(
            f"pos_weight={pos_weight!r} does not fit {tags} tags; expected a positive number, or "
            "one for each tag."
        )
    return torch.tensor(given, dtype=torch.float32)
