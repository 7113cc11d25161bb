"""Images of identities in memory, and how the training identities are divided."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import torch
from torch import Tensor

from congener.errors import DataError
from congener.tasks.in_memory import InMemory

__all__ = ["Division", "IdentityDataset", "Splits", "divide", "labelled_positions"]

IGNORE = -100


class IdentityDataset(InMemory):
    """Samples in memory; a batch is ``{"image", "labels", "camera", "index"}``.

    Args:
        images: (samples, 3, height, width), uint8.
        labels: identities, (samples,), int64; -100 where it is not known.
        cameras: (samples,), int64.
    """

    def __init__(self, images: Tensor, labels: Tensor, cameras: Tensor) -> None:
        self.images, self.labels, self.cameras = images, labels, cameras

    @property
    def columns(self) -> dict[str, Tensor]:
        """What a batch is made of, beside ``index``."""
        return {"image": self.images, "labels": self.labels, "camera": self.cameras}

    def part(self, rows: Tensor) -> "IdentityDataset":
        """Some of the samples."""
        return IdentityDataset(self.images[rows], self.labels[rows], self.cameras[rows])


@dataclass(frozen=True, slots=True)
class Splits:
    """A data set, divided.

    Attributes:
        train: what the student sees; images whose identity is not known carry -100.
        test: what the figures are measured on.
        teacher: what the teacher is trained on, where that is not ``train``.
        names: of the identities by their numbers, or none.
    """

    train: IdentityDataset
    test: IdentityDataset
    teacher: IdentityDataset | None = None
    names: tuple[str, ...] = ()


class Division(TypedDict, total=False):
    """How the training identities are divided; every loader takes these. See :func:`divide`."""

    labelled: int | None
    teacher: Literal["all"] | None
    holdout: int | None


def labelled_positions(labels: Tensor) -> Tensor | None:
    """Positions of the samples with a label, where others have none; otherwise ``None``."""
    known = labels != IGNORE
    return known.nonzero().flatten() if known.any() and not known.all() else None


def divide(
    what: str,
    train: IdentityDataset,
    test: IdentityDataset,
    *,
    names: Sequence[str] = (),
    labelled: int | None = None,
    teacher: Literal["all"] | None = None,
    holdout: int | None = None,
) -> Splits:
    """Divide the training identities, in the order of their numbers. Counts are of identities.

    Args:
        what: how messages call the data set.
        train: the training set.
        test: the test set.
        names: of the identities by their numbers.
        labelled: how many identities the student knows, the first ones; the images of the others
            stay, without a label. Default: all.
        teacher: ``"all"``: the teacher learns from the same images with all their labels. Default:
            it learns from what the student sees.
        holdout: the last so many identities are the test set, for tuning, and no training set has
            them. Default: none, ``test`` is the test set.

    Raises:
        DataError: data or options that do not fit, saying which and why.
    """
    for dataset, part in ((train, "training"), (test, "test")):
        _check(f"The {part} set of {what}", dataset)
    if teacher not in (None, "all"):
        raise DataError(f"teacher={teacher!r}: expected 'all', or leave it out.")
    known = torch.unique(train.labels[train.labels != IGNORE])
    for option, count in (("labelled", labelled), ("holdout", holdout)):
        if count is not None and (not isinstance(count, int) or count < 1):
            raise DataError(f"{option}={count!r} is not a number of identities; leave it out.")
    left = len(known) - (holdout or 0)
    if left < max(2, labelled or 0):
        raise DataError(
            f"{what} has {len(known)} labelled training identities, too few for "
            f"labelled={labelled or 'at least 2'} + holdout={holdout or 0}; lower one."
        )
    if holdout is not None:
        held = torch.isin(train.labels, known[left:])
        train, test = train.part(~held), train.part(held)
    whole = train
    if labelled is not None:
        kept = torch.isin(train.labels, known[:labelled])
        labels = torch.where(kept, train.labels, IGNORE)
        train = IdentityDataset(train.images, labels, train.cameras)
    _check_pairs(what, train)
    _check_queries(what, test)
    return Splits(train, test, whole if teacher == "all" else None, tuple(names))


def _check(what: str, dataset: IdentityDataset) -> None:
    """Refuse samples that are none."""
    images, labels, cameras = dataset.images, dataset.labels, dataset.cameras
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise DataError(
            f"{what} has images of the shape {tuple(images.shape)} and type {images.dtype}; "
            "expected (samples, 3, height, width) of uint8."
        )
    if not len(images) == len(labels) == len(cameras):
        raise DataError(
            f"{what} has {len(images)} images, {len(labels)} labels and {len(cameras)} cameras; "
            f"each image needs one of each ({IGNORE} for an identity that is not known)."
        )
    if not len(images):
        raise DataError(f"{what} is empty; at least one image is needed.")
    wrong = ((labels < 0) & (labels != IGNORE)).nonzero().flatten()
    if len(wrong):
        raise DataError(
            f"{what} has the label {int(labels[wrong[0]])} at image {int(wrong[0])}; number the "
            f"identities from 0 and mark images whose identity is not known with {IGNORE}."
        )


def _check_pairs(what: str, train: IdentityDataset) -> None:
    """What can be learnt: which images are of one identity, and which are not."""
    counts = torch.unique(train.labels[train.labels != IGNORE], return_counts=True)[1]
    if len(counts) < 2:
        raise DataError(
            f"The training set of {what} has {len(counts)} labelled identities; to learn to tell "
            "them apart takes two or more."
        )
    if int(counts.max()) < 2:
        raise DataError(
            f"No labelled identity in the training set of {what} has two images, so nothing says "
            "what images of one identity have in common; label more of them."
        )


def _check_queries(what: str, test: IdentityDataset) -> None:
    """Each query looks in the images of the other cameras."""
    known = test.labels != IGNORE
    labels, cameras = test.labels[known], test.cameras[known]
    if len(torch.unique(labels)) < 2:
        raise DataError(
            f"The test set of {what} has {len(torch.unique(labels))} identities; to find one among "
            "others takes two or more."
        )
    if len(torch.unique(cameras)) < 2:
        raise DataError(
            f"All test images of {what} come from one camera, so no query has a gallery, which are "
            "the images of the others; give the cameras, or let each image have one of its own."
        )
    seen = torch.unique(torch.stack([labels, cameras], dim=1), dim=0)
    if len(torch.unique(seen[:, 0])) == len(seen):
        raise DataError(
            f"No test identity of {what} has images of two cameras, so no query can find any; "
            "add such images."
        )
