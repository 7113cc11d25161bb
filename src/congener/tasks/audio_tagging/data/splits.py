"""Clips in memory, and how a training set is divided among teacher, student and tuning."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from congener.errors import DataError
from congener.tasks.in_memory import InMemory
from congener.tasks.parts import PartsOptions, divide_positions, kept_labels

__all__ = [
    "ClipDataset",
    "Division",
    "Splits",
    "check_sample_rate",
    "divide",
    "labelled_positions",
]

IGNORE = -100
Division = PartsOptions


class ClipDataset(InMemory):
    """Clips in memory; a whole batch is one indexing operation.

    A batch is ``{"waveform", "length", "labels", "index"}``; ``index`` is the position in this
    data set.

    Args:
        waveform: (clips, samples), int16, of which 32768 counts as 1, or float32 in [-1, 1];
            shorter clips are followed by zeros.
        length: valid samples of each clip, (clips,), int64.
        labels: (clips, tags), int8: 1 heard, 0 not heard, -100 not known.
        ids: position of each clip in the training (or test) set it was taken from; default: here.
        frame_labels: where it is known, (clips, frames, tags), bool: what sounds when, in frames
            of equal length.
    """

    def __init__(
        self,
        waveform: Tensor,
        length: Tensor,
        labels: Tensor,
        ids: Tensor | None = None,
        frame_labels: Tensor | None = None,
    ) -> None:
        self.waveform = waveform
        self.length = length
        self.labels = labels
        self.ids = torch.arange(len(labels)) if ids is None else ids
        self.frame_labels = frame_labels

    @property
    def columns(self) -> dict[str, Tensor]:
        """What a batch is made of, beside ``index``."""
        return {"waveform": self.waveform, "length": self.length, "labels": self.labels}

    def part(self, rows: slice | Tensor) -> "ClipDataset":
        """Some of the clips."""
        return ClipDataset(
            self.waveform[rows],
            self.length[rows],
            self.labels[rows],
            self.ids[rows],
            None if self.frame_labels is None else self.frame_labels[rows],
        )


@dataclass(frozen=True, slots=True)
class Splits:
    """A data set, divided.

    Attributes:
        train: what the student sees; clips without a label carry -100 for every tag.
        test: what the figures are measured on.
        tag_names: one for each tag.
        sample_rate: samples per second.
        teacher: what the teacher is trained on, where that is not ``train``.
    """

    train: ClipDataset
    test: ClipDataset
    tag_names: tuple[str, ...]
    sample_rate: int
    teacher: ClipDataset | None = None


def labelled_positions(labels: Tensor) -> Tensor | None:
    """Positions of the clips of which a tag is known, where others have none; else ``None``."""
    known = (labels != IGNORE).any(1)
    return known.nonzero().flatten() if known.any() and not known.all() else None


def divide(
    what: str,
    train: ClipDataset,
    test: ClipDataset,
    *,
    tag_names: Sequence[str],
    sample_rate: int,
    teacher: int | None = None,
    pool: int | None = None,
    labelled: int | None = None,
    holdout: int | None = None,
) -> Splits:
    """Divide a training set, in its own order, as :func:`.divide_positions` says.

    Args:
        what: how messages call the data set.
        train: the training set.
        test: the test set.
        tag_names: one for each tag.
        sample_rate: samples per second.
        teacher: clips of the teacher's own; default: it learns from ``train``.
        pool: clips that the student sees; default: all that ``teacher`` and ``holdout`` leave.
        labelled: how many clips of the pool keep their labels: the first of a fixed random order
            in which the first clip of every tag comes before all others, so that a tag is left
            out only where it must be, and those without any come last; default: all.
        holdout: clips to test on, for tuning, instead of the test set; default: none.

    Raises:
        DataError: data or options that do not fit, saying which and why.
    """
    _check(f"The training set of {what}", train, len(tag_names))
    _check(f"The test set of {what}", test, len(tag_names))
    check_sample_rate(sample_rate)
    parts = divide_positions(
        what, len(train), teacher=teacher, pool=pool, labelled=labelled, holdout=holdout
    )
    own = None if parts.teacher is None else train.part(parts.teacher)
    student = train.part(parts.train)
    figures = test if parts.test is None else train.part(parts.test)
    if not (figures.labels == 1).any():
        raise DataError(f"No clip of {what} to test on is known to have a tag; figures need some.")
    learnt = student if own is None else own
    if not (learnt.labels == 1).any():
        raise DataError(f"No training clip of {what} is known to have a tag; to learn takes some.")
    if labelled is not None:
        student.labels = _keep_labels(student.labels, labelled)
    _tell_of_unheard(what, learnt, figures, tag_names)
    return Splits(student, figures, tuple(tag_names), sample_rate, own)


def check_sample_rate(sample_rate: int) -> None:
    """It must be a positive whole number.

    Raises:
        DataError: it is not.
    """
    if not isinstance(sample_rate, int) or sample_rate < 1:
        raise DataError(f"sample_rate={sample_rate!r} is not a number of samples per second.")


def _check(what: str, clips: ClipDataset, tags: int) -> None:
    """Refuse clips from which nothing can be learnt."""
    counts = len(clips.waveform), len(clips.length), len(clips.labels)
    if len(set(counts)) > 1:
        raise DataError(
            f"{what} has {counts[0]} waveforms, {counts[1]} lengths and {counts[2]} labels; each "
            "clip needs one of each."
        )
    if not len(clips):
        raise DataError(f"{what} is empty; at least one clip is needed.")
    if clips.labels.shape[1] != tags or not tags:
        raise DataError(
            f"{what} has labels for {clips.labels.shape[1]} tags, but there are {tags} tag names; "
            "give one name for each tag, and one tag or more."
        )
    wrong = (clips.labels != IGNORE) & (clips.labels != 0) & (clips.labels != 1)
    if wrong.any():
        clip, tag = wrong.nonzero()[0].tolist()
        raise DataError(
            f"{what} has the label {clips.labels[clip, tag].item()} at clip {clip}, tag {tag}; a "
            f"tag is 1 (heard), 0 (not heard) or {IGNORE} (not known)."
        )
    samples = clips.waveform.shape[1]
    wrong = (clips.length < 1) | (clips.length > samples)
    if wrong.any():
        clip = int(wrong.nonzero()[0, 0])
        raise DataError(
            f"{what} has the length {int(clips.length[clip])} at clip {clip}; expected 1 to "
            f"{samples}, the samples that a waveform holds."
        )


def _keep_labels(labels: Tensor, labelled: int) -> Tensor:
    """The labels with those of all but ``labelled`` clips replaced by -100."""
    chosen = kept_labels(labels == 1, (labels == IGNORE).all(1), labelled, seed=0)
    kept = torch.full_like(labels, IGNORE)
    kept[chosen] = labels[chosen]
    return kept


def _tell_of_unheard(
    what: str, train: ClipDataset, test: ClipDataset, tag_names: Sequence[str]
) -> None:
    heard, asked = ((clips.labels == 1).any(0) for clips in (train, test))
    unheard = [tag_names[tag] for tag in (asked & ~heard).nonzero().flatten().tolist()]
    if unheard and heard.any():
        shown = ", ".join(unheard[:5]) + (" and more" if len(unheard) > 5 else "")
        warnings.warn(
            f"No labelled training clip of {what} has the tag {shown}: nothing tells a network "
            "what it sounds like; it counts in the figures all the same.",
            stacklevel=4,
        )
