"""Retrieval of identities that training never saw: metric learning."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from congener.errors import DataError, RecipeError
from congener.ops.checks import check_positive
from congener.task import Metrics, Task
from congener.tasks.image_classification import augment as image_augmentations
from congener.tasks.named import augmentation, named
from congener.types import Batch, Exhibit

from . import augment as augmentations
from . import data as datasets
from . import models
from .baseline import nearest_neighbour
from .contrast import contrast
from .data.splits import IGNORE, IdentityDataset, Splits, labelled_positions
from .exhibits import nearest_images
from .metrics import RetrievalMetrics

__all__ = ["Retrieval"]

KEYS = ("image", "labels", "camera")


class Retrieval(Task):
    """Images with an identity and a camera each; where the identity is not known, -100.

    The network gives an embedding, which the loss and the figures normalise. Images become floats
    from -1 to 1.

    Args:
        data: the name of a loader in :mod:`.data`, a mapping with its ``name`` and arguments, or
            the :class:`Splits` that a loader returned.
        augment: the name of a function in :mod:`.augment` or in that of image classification, or a
            mapping with its ``name`` and arguments; applied to training batches.
        temperature: of the supervised loss; ours: 0.1.

    Attributes:
        input_shape: of one image, channels first.

    Raises:
        RecipeError: an unknown name or argument.
        DataError: data that is missing, damaged or of no use.
    """

    metric = "recall_at_1"
    ignore_label = IGNORE
    normalisation = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    def __init__(
        self,
        data: str | Mapping[str, Any] | Splits = "emoji",
        *,
        augment: str | Mapping[str, Any] = "none",
        temperature: float = 0.1,
    ) -> None:
        check_positive("temperature", temperature)
        divided = data if isinstance(data, Splits) else named("data set", data, [datasets])()
        splits: dict[str, Dataset[Any]] = {"train": divided.train, "test": divided.test}
        if divided.teacher is not None:
            splits["teacher"] = divided.teacher
        self.splits = splits
        self.labelled = labelled_positions(divided.train.labels)
        self.input_shape = tuple(divided.train.images.shape[1:])
        self.names = divided.names
        self.temperature = temperature
        self._augment = _augmentation(augment, divided.train.images[:1])
        self.augments = self._augment.func is not image_augmentations.none

    def _split(self, name: str) -> IdentityDataset:
        split = self.splits[name]
        assert isinstance(split, IdentityDataset)
        return split

    def labels(self, split: str) -> Tensor:
        """The identity of every image of a split."""
        return self._split(split).labels

    def build_model(self, name: str, **kwargs: Any) -> nn.Module:
        """A network of :mod:`.models`, or of image classification, with ``dims`` outputs."""
        return models.build(name, kwargs, self.input_shape)

    def collate(self, samples: Any) -> Batch:
        """A batch from a ready batch, or from a list of mappings."""
        batch = dict(samples) if isinstance(samples, Mapping) else default_collate(samples)
        missing = [key for key in KEYS if key not in batch]
        if missing:
            raise DataError(
                f"A sample has no {missing[0]!r}, only {sorted(batch)}; expected {', '.join(KEYS)}."
            )
        return batch

    def prepare(self, batch: Batch, *, train: bool, seed: int, epoch: int) -> Batch:
        """Augment (training only) and bring the pixels to -1 … 1."""
        images: Tensor = batch["image"]
        if train:
            images = self._augment(images, batch["index"], seed=seed, epoch=epoch)
        return dict(batch) | {"image": images.float().div_(127.5).sub_(1)}

    def call(self, model: nn.Module, batch: Batch) -> Any:
        """The model's embedding of the images."""
        return model(batch["image"])

    def logits(self, result: Any) -> Tensor:
        """The embedding, (batch, dims)."""
        if not isinstance(result, Tensor) or result.ndim != 2:
            came = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise DataError(
                f"The network returned {came}; expected an embedding, (batch, dims), as a tensor."
            )
        return result

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Supervised contrast over the labelled images of the global batch; see :mod:`.contrast`.

        Embeddings are normalised in it.
        """
        return contrast(logits, batch["labels"], self.temperature)

    def metrics(self, device: torch.device) -> Metrics:
        """Recall at 1, 5 and 10, mean reciprocal rank, and mean average precision."""
        return RetrievalMetrics(device, self.logits)

    def exhibits(
        self, networks: Mapping[str, nn.Module], taps: Mapping[str, str | None]
    ) -> Sequence[Exhibit]:
        """A query and its ten nearest images in the gallery, for each network."""
        return [nearest_images(networks, self, self._split("test"), self.names)]

    def control(self, held: Task) -> Mapping[str, Any]:
        """The nearest neighbour by pixels, or by some of their principal components."""
        assert isinstance(held, Retrieval)
        mine, slices = ((task._split("train"), task._split("test")) for task in (self, held))
        return nearest_neighbour(mine, slices, self.metric)


def _augmentation(augment: str | Mapping[str, Any], image: Tensor) -> "partial[Tensor]":
    def try_it(chosen: "partial[Tensor]") -> Tensor:
        tried = chosen(image, torch.zeros(1, dtype=torch.int64), seed=0, epoch=0)
        if tried.shape != image.shape:
            raise RecipeError(
                f"The augmentation {augment!r} changes the size of images; take another."
            )
        return tried

    modules = [image_augmentations, augmentations]
    return augmentation(augment, modules, try_it, own=("images",))
