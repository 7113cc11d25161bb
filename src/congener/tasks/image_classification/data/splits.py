"""In-memory data sets, and how a training set is divided among teacher, student and tuning."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from congener.errors import DataError
from congener.tasks.in_memory import InMemory
from congener.tasks.parts import PartsOptions, divide_positions

__all__ = ["ArrayDataset", "Arrays", "Division", "Splits", "check_arrays", "divide"]

IGNORE = -100


class Arrays(NamedTuple):
    """Images (samples, channels, *size), uint8 or float32, and their labels (samples,), int64."""

    images: Tensor
    labels: Tensor


class ArrayDataset(InMemory):
    """Samples in memory; a whole batch is one indexing operation.

    A batch is ``{"image", "labels", "index"}``; ``index`` is the position in this data set.

    Attributes:
        ids: position of each sample in the training (or test) set it was taken from.
    """

    def __init__(self, images: Tensor, labels: Tensor, ids: Tensor | None = None) -> None:
        self.images = images
        self.labels = labels
        self.ids = torch.arange(len(labels)) if ids is None else ids

    @property
    def columns(self) -> dict[str, Tensor]:
        """What a batch is made of, beside ``index``."""
        return {"image": self.images, "labels": self.labels}


@dataclass(frozen=True, slots=True)
class Splits:
    """A data set, divided.

    Attributes:
        train: what the student sees; samples without a label carry -100.
        test: what the figures are measured on.
        class_names: one name for each class.
        mean: per channel, of the images as floats (uint8 counts as 0 to 1).
        std: likewise.
        input_shape: of one sample, channels first.
        teacher: what the teacher is trained on, where that is not ``train``.
    """

    train: ArrayDataset
    test: ArrayDataset
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_shape: tuple[int, ...]
    teacher: ArrayDataset | None = None


class Division(PartsOptions, total=False):
    """How a training set is divided; every loader takes these options. See :func:`divide`."""

    balanced: bool


def check_arrays(what: str, arrays: Arrays, classes: int) -> None:
    """Refuse samples from which nothing can be learnt.

    Raises:
        DataError: no samples, counts that differ, or labels outside [0, classes) other than -100.
    """
    images, labels = arrays
    if len(images) != len(labels):
        raise DataError(
            f"{what} has {len(images)} images but {len(labels)} labels; each image needs one label "
            f"({IGNORE} where it is not known)."
        )
    if not len(labels):
        raise DataError(f"{what} is empty; at least one sample is needed.")
    wrong = (labels != IGNORE) & ((labels < 0) | (labels >= classes))
    if wrong.any():
        first = int(wrong.nonzero()[0, 0])
        raise DataError(
            f"{what} has the label {int(labels[first])} at sample {first}, outside the range 0 to "
            f"{classes - 1} of its {classes} classes; number the classes from 0 and mark samples "
            f"without a label with {IGNORE}."
        )


def _check_classes(what: str, labels: Tensor) -> None:
    present = torch.unique(labels[labels != IGNORE])
    if len(present) < 2:
        seen = f"only the class {int(present[0])}" if len(present) else "no labelled sample"
        raise DataError(f"{what} has {seen}; to learn to tell classes apart takes two or more.")


def _check_scale(mean: Sequence[float], std: Sequence[float], images: Tensor) -> None:
    channels = images.shape[1] if images.ndim > 2 else 1
    for what, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise DataError(
                f"{what} has {len(values)} values for images of {channels} channels; "
                f"give {channels}."
            )
    if min(std) <= 0:
        raise DataError(
            f"std={list(std)} has a value that is not positive; images are divided by it."
        )


def labelled_positions(labels: Tensor) -> Tensor | None:
    """Positions of the samples that have a label, where others have none; otherwise ``None``."""
    known = labels != IGNORE
    return known.nonzero().flatten() if known.any() and not known.all() else None


def _keep_labels(labels: Tensor, labelled: int, balanced: bool, classes: int) -> Tensor:
    """The labels with all but ``labelled`` of them replaced by -100."""
    if not balanced:
        keep = torch.arange(len(labels)) < labelled
    else:
        each, rest = divmod(labelled, classes)
        if rest:
            raise DataError(
                f"labelled={labelled} cannot be balanced over {classes} classes; use a multiple of "
                f"{classes}, or balanced=False."
            )
        member = labels[:, None] == torch.arange(classes)
        keep = (member & (member.cumsum(0) <= each)).any(1)
        if int(keep.sum()) < labelled:
            scarce = int(member.sum(0).argmin())
            raise DataError(
                f"labelled={labelled} needs {each} samples of each class, but the pool has only "
                f"{int(member[:, scarce].sum())} of class {scarce}; lower labelled or enlarge pool."
            )
    return torch.where(keep, labels, IGNORE)


def divide(
    what: str,
    train: Arrays,
    test: Arrays,
    *,
    class_names: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    extra: Tensor | None = None,
    teacher: int | None = None,
    pool: int | None = None,
    labelled: int | None = None,
    balanced: bool = False,
    holdout: int | None = None,
) -> Splits:
    """Divide a training set, in its own order, as :func:`.divide_positions` says.

    Args:
        what: how messages call the data set.
        train: the training set.
        test: the test set.
        class_names: one name for each class.
        mean: per channel.
        std: per channel.
        extra: more images for the student, without labels, appended to ``train``.
        teacher: default: no split of its own, the teacher learns from ``train``.
        pool: default: all that ``teacher`` and ``holdout`` leave.
        labelled: how many samples of the pool keep their label; default: all.
        balanced: the labelled samples are the first ``labelled / classes`` of each class in the
            pool; otherwise simply the first ``labelled`` of the pool.
        holdout: default: none, ``test`` is the test set.

    Raises:
        DataError: data or options that do not fit, saying which and why.
    """
    classes = len(class_names)
    check_arrays(f"The training set of {what}", train, classes)
    check_arrays(f"The test set of {what}", test, classes)
    _check_classes(f"The training set of {what}", train.labels)
    _check_scale(mean, std, train.images)
    count = len(train.labels)
    parts = divide_positions(
        what, count, teacher=teacher, pool=pool, labelled=labelled, holdout=holdout
    )
    labels = train.labels[parts.train]
    if labelled is not None:
        labels = _keep_labels(labels, labelled, balanced, classes)
    ids = torch.arange(count)
    images = train.images[parts.train]
    student_ids = ids[parts.train]
    if extra is not None:
        images = torch.cat([images, extra])
        labels = torch.cat([labels, labels.new_full((len(extra),), IGNORE)])
        student_ids = torch.cat([student_ids, count + torch.arange(len(extra))])
    test_split = ArrayDataset(test.images, test.labels)
    if (held := parts.test) is not None:
        test_split = ArrayDataset(train.images[held], train.labels[held], ids[held])
    if not (test_split.labels != IGNORE).any():
        raise DataError(f"No sample of {what} to test on has a label; figures need some.")
    teacher_split = None
    if (own := parts.teacher) is not None:
        teacher_split = ArrayDataset(train.images[own], train.labels[own], ids[own])
        _check_classes(f"The first {teacher} samples of {what}", teacher_split.labels)
    return Splits(
        train=ArrayDataset(images, labels, student_ids),
        test=test_split,
        class_names=tuple(class_names),
        mean=tuple(mean),
        std=tuple(std),
        input_shape=tuple(images.shape[1:]),
        teacher=teacher_split,
    )
