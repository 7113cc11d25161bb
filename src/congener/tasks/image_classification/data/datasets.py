"""What can be known of a user's own data set without loading all of it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from congener.errors import DataError

from .splits import IGNORE, ArrayDataset, Arrays, check_arrays

__all__ = ["in_memory", "inspect_datasets", "known_labels"]


def in_memory(dataset: Dataset[Any]) -> Dataset[Any]:
    """A ``TensorDataset`` of images and labels as one that is indexed by the batch; others as is.

    The samples are the same, and what :meth:`.ImageClassification.collate` makes of them.
    """
    if type(dataset) is not TensorDataset or len(dataset.tensors) != 2:
        return dataset
    images, labels = dataset.tensors
    images = images.float() if images.dtype == torch.float64 else images
    labels = labels.long() if labels.dtype == torch.int32 else labels
    known = images.dtype in (torch.uint8, torch.float32) and labels.dtype == torch.int64
    return ArrayDataset(images, labels) if known and labels.ndim == 1 else dataset


def known_labels(dataset: Dataset[Any]) -> Tensor | None:
    """All labels, where the data set has them at hand."""
    if isinstance(dataset, Subset):
        inner = known_labels(dataset.dataset)
        return None if inner is None else inner[torch.as_tensor(dataset.indices)]
    if getattr(dataset, "target_transform", None) is not None:
        return None
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        found: Any = dataset.tensors[1]
    else:
        found = getattr(dataset, "targets", getattr(dataset, "labels", None))
    try:
        labels = torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError):
        return None
    integral = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    return labels.long() if labels.ndim == 1 and integral else None


def _classes(dataset: Dataset[Any]) -> Sequence[str] | None:
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return getattr(dataset, "classes", None)


def _image(dataset: Dataset[Any]) -> Tensor:
    sample: Any = dataset[0]
    image = sample.get("image") if isinstance(sample, dict) else sample[0]
    if not isinstance(image, Tensor):
        raise DataError(
            f"The data set's first image is of type {type(image).__name__}; expected a tensor "
            "(with torchvision: pass transform=ToTensor(), then normalise)."
        )
    return image


def inspect_datasets(
    train: Dataset[Any],
    test: Dataset[Any],
    num_classes: int | None,
    class_names: Sequence[str] | None,
) -> tuple[tuple[str, ...], Tensor]:
    """The class names and the first image.

    Raises:
        DataError: an empty data set, labels out of range, or a class count that cannot be told.
    """
    for what, dataset in (("training", train), ("test", test)):
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise DataError(f"The {what} set has no length or no index; use a map-style Dataset.")
        if not len(dataset):
            raise DataError(f"The {what} set is empty; at least one sample is needed.")
    labels = {"training": known_labels(train), "test": known_labels(test)}
    names = class_names or _classes(train)
    if class_names is None and names is not None and num_classes not in (None, len(names)):
        names = None  # the caller knows better than the data set
    count = num_classes if num_classes is not None else len(names) if names else None
    if count is None and labels["training"] is not None:
        count = int(labels["training"].max()) + 1
    if count is None:
        raise DataError(
            "The number of classes cannot be told without loading every sample; pass num_classes."
        )
    if names is not None and len(names) != count:
        raise DataError(f"There are {len(names)} class names for num_classes={count}.")
    for what, found in labels.items():
        if found is not None:
            check_arrays(f"The {what} set", Arrays(found, found), count)
    seen = labels["training"]
    if count < 2 or (seen is not None and len(torch.unique(seen[seen != IGNORE])) == 1):
        raise DataError("The training set has only one class; two or more are needed.")
    return tuple(names or map(str, range(count))), _image(train)
