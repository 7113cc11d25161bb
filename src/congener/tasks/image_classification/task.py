"""Image classification: one label for each image, or none where the label is not known."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset, default_collate
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from congener.errors import DataError
from congener.ops.collectives import global_mean
from congener.task import Metrics, Task
from congener.tasks.named import augmentation, named
from congener.types import Batch

from . import augment as augmentations
from . import data as datasets
from . import models
from .data.datasets import in_memory, inspect_datasets, known_labels
from .data.splits import IGNORE, Splits, labelled_positions

__all__ = ["ImageClassification"]

ANOTHER = 1 << 32  # seeds of runs are below 2³¹, so the second view's is no run's


class ImageClassification(Task):
    """Images with one label each; unlabelled samples carry -100.

    Args:
        data: the name of a loader in :mod:`.data`, a mapping with its ``name`` and arguments, or
            the :class:`Splits` that a loader returned.
        augment: the name of a function in :mod:`.augment`, or a mapping with its ``name`` and
            arguments; applied to training batches.
        strong: a second view, for systems that learn from two: an augmentation as for ``augment``,
            drawn independently from the same images; a training batch then has
            ``strong_image``, too.

    Attributes:
        input_shape: of one sample, channels first.

    Raises:
        RecipeError: an unknown name or argument.
        DataError: data that is missing, damaged or of no use.
    """

    metric = "accuracy"
    ignore_label = IGNORE

    def __init__(
        self,
        data: str | Mapping[str, Any] | Splits = "mnist1d",
        *,
        augment: str | Mapping[str, Any] = "none",
        strong: str | Mapping[str, Any] | None = None,
    ) -> None:
        divided = data if isinstance(data, Splits) else named("data set", data, [datasets])()
        splits: dict[str, Dataset[Any]] = {"train": divided.train, "test": divided.test}
        if divided.teacher is not None:
            splits["teacher"] = divided.teacher
        self.labelled = labelled_positions(divided.train.labels)
        blank = torch.zeros(divided.input_shape, dtype=divided.train.images.dtype)
        self._describe(splits, divided.class_names, divided.mean, divided.std)
        self.normalisation = (divided.mean, divided.std)
        self._draw_views(blank, augment, strong)
        self.augments = self._augment.func is not augmentations.none or strong is not None

    @classmethod
    def from_datasets(
        cls,
        train: Dataset[Any],
        test: Dataset[Any],
        *,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        augment: str | Mapping[str, Any] = "none",
        strong: str | Mapping[str, Any] | None = None,
        normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> "ImageClassification":
        """A task over your own map-style data sets of ``(image, label)``, already normalised.

        Args:
            train: what the student sees; label -100 where there is none.
            test: what the figures are measured on.
            num_classes: default: read from ``class_names``, or from the data sets where that
                does not take loading every image (``classes``, ``targets``, ``tensors``).
            class_names: default: the data set's ``classes``, else numbers.
            augment: as for the class.
            strong: as for the class.
            normalisation: the mean and std of each channel by which your images are normalised,
                for teachers with a preprocessing of their own; default: not known.
        """
        names, image = inspect_datasets(train, test, num_classes, class_names)
        task = cls.__new__(cls)
        labels = known_labels(train)
        task.labelled = None if labels is None else labelled_positions(labels)
        splits = {"train": in_memory(train), "test": in_memory(test)}
        task._describe(splits, names, (0.0,), (1.0,))
        task.normalisation = normalisation
        task._draw_views(torch.zeros_like(image), augment, strong)
        if task._augment.func is not augmentations.none or strong is not None:
            task.augments = True
        elif type(train) is TensorDataset:
            task.augments = False
        return task

    def _describe(
        self,
        splits: Mapping[str, Dataset[Any]],
        class_names: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self.splits = splits
        self.class_names = tuple(class_names)
        self._mean = tuple(mean)
        self._std = tuple(std)

    def _draw_views(
        self,
        blank: Tensor,
        augment: str | Mapping[str, Any],
        strong: str | Mapping[str, Any] | None,
    ) -> None:
        self.input_shape = tuple(blank.shape)
        self._augment = _augmentation(augment, blank)
        self._strong = None if strong is None else _augmentation(strong, blank)

    def labels(self, split: str) -> Tensor | None:
        """The label of every sample of a split, where that takes no loading of images."""
        return known_labels(self.splits[split])

    def build_model(self, name: str, **kwargs: Any) -> nn.Module:
        """A network of :mod:`.models`, or ``timm:NAME`` or ``torchvision:NAME``.

        The class count and the input's shape are filled in where the network takes them.
        """
        defaults = {
            "num_classes": len(self.class_names),
            "in_channels": self.input_shape[0],
            "input_shape": self.input_shape,
            "in_features": math.prod(self.input_shape),
        }
        return models.build(name, kwargs, defaults)

    def collate(self, samples: Any) -> Batch:
        """A batch from a ready batch, or from a list of ``(image, label)`` or of mappings."""
        if isinstance(samples, Mapping):
            return dict(samples)
        try:
            batch = default_collate(samples)
        except (TypeError, RuntimeError) as error:
            raise DataError(
                "The samples cannot be stacked into a batch; expected (tensor, int) pairs with "
                f"tensors of one shape (torchvision: ToTensor and a size). torch says: {error}"
            ) from error
        if not isinstance(batch, Mapping):
            if len(batch) != 2:
                raise DataError(f"A sample has {len(batch)} parts; expected (image, label).")
            batch = {"image": batch[0], "labels": batch[1]}
        for key, kind in (("image", torch.float64), ("labels", torch.int32)):
            if torch.is_tensor(batch.get(key)) and batch[key].dtype == kind:
                batch[key] = batch[key].to(torch.float32 if key == "image" else torch.int64)
        if missing := {"image", "labels"} - batch.keys():
            raise DataError(
                f"A sample has no {sorted(missing)[0]!r}, only {sorted(batch)}; "
                "expected the keys 'image' and 'labels'."
            )
        return dict(batch)

    def prepare(self, batch: Batch, *, train: bool, seed: int, epoch: int) -> Batch:
        """Augment (training only, once for each view), turn into floats, normalise."""
        images: Tensor = batch["image"]
        views = {"image": images}
        if train and self._augment.func is not augmentations.none:
            views["image"] = self._augment(images, batch["index"], seed=seed, epoch=epoch)
        if train and self._strong is not None:
            ids = batch["index"]
            views["strong_image"] = self._strong(images, ids, seed=seed + ANOTHER, epoch=epoch)
        return dict(batch) | {name: self._normalise(view) for name, view in views.items()}

    def _normalise(self, images: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            images = images.float().div_(255)
        if set(self._mean) == {0.0} and set(self._std) == {1.0}:
            return images
        mean, std = (
            _per_channel(values, images.ndim, images.device) for values in (self._mean, self._std)
        )
        return (images - mean).div_(std)

    def call(self, model: nn.Module, batch: Batch) -> Any:
        """The model's answer to the images."""
        return model(batch["image"])

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
        """Cross-entropy, the mean over the labelled samples of the global batch."""
        labels = batch["labels"]
        values = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="none")
        return global_mean(values, labels != IGNORE)

    def metrics(self, device: torch.device) -> Metrics:
        """Accuracy, accuracy averaged over classes, and mean cross-entropy; labelled samples."""
        return _Metrics(self, len(self.class_names), device)


class _Metrics:
    """See :meth:`ImageClassification.metrics`."""

    def __init__(self, task: ImageClassification, classes: int, device: torch.device) -> None:
        self._logits = task.logits
        accuracy = {
            "accuracy": MulticlassAccuracy(classes, average="micro", ignore_index=IGNORE),
            "macro_accuracy": MulticlassAccuracy(classes, average="macro", ignore_index=IGNORE),
        }
        self._accuracy = MetricCollection(accuracy).to(device)  # type: ignore[arg-type]
        # A NaN must show in the figure; the default would leave it out of the mean.
        self._cross_entropy = MeanMetric(nan_strategy="disable").to(device)

    def update(self, result: Any, batch: Batch) -> None:
        logits, labels = self._logits(result).float(), batch["labels"]
        values = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
        self._accuracy.update(logits, labels)
        # Chosen, not weighted by 0: without its NaN check MeanMetric (1.9) drops the weights.
        self._cross_entropy.update(values[labels != IGNORE])

    def compute(self) -> dict[str, float]:
        figures = self._accuracy.compute()
        figures["cross_entropy"] = self._cross_entropy.compute()
        return {name: float(value) for name, value in figures.items()}


@functools.cache
def _per_channel(values: tuple[float, ...], dimensions: int, device: torch.device) -> Tensor:
    """Values, one for each channel, in a shape that fits images; made once for each device."""
    return torch.tensor(values, device=device).view(-1, *[1] * (dimensions - 2))


def _augmentation(augment: str | Mapping[str, Any], sample: Tensor) -> "functools.partial[Tensor]":
    """The function, tried on a sample so that a wrong argument shows before training."""
    one = torch.zeros(1, dtype=torch.int64)
    return augmentation(
        augment,
        [augmentations],
        lambda chosen: chosen(sample[None], one, seed=0, epoch=0),
        own=("images",),
    )
