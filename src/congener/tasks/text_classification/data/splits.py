"""Texts and tokens in memory, and how a training set is divided."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from congener.errors import DataError
from congener.tasks.in_memory import InMemory
from congener.tasks.parts import PartsOptions, divide_positions

__all__ = [
    "IGNORE",
    "Division",
    "Documents",
    "Splits",
    "TokenDataset",
    "divide",
    "known_labels",
    "labelled_positions",
    "shuffled",
]

IGNORE = -100
Division = PartsOptions


@dataclass(frozen=True, slots=True)
class Documents:
    """Texts, or pairs of texts, with a label each.

    Attributes:
        first: the texts.
        labels: class numbers, (texts,), int64, -100 where it is not known; or numbers to predict,
            float32, NaN where it is not known.
        second: of pairs, the other texts.
    """

    first: Sequence[str]
    labels: Tensor
    second: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, rows: Tensor) -> "Documents":
        """Some of the texts."""
        places = rows.tolist()
        second = None if self.second is None else [self.second[place] for place in places]
        return Documents([self.first[place] for place in places], self.labels[rows], second)

    def words(self) -> list[str]:
        """Each text, or both of a pair, as one string."""
        if self.second is None:
            return list(self.first)
        return [f"{one} {other}" for one, other in zip(self.first, self.second, strict=True)]


class TokenDataset(InMemory):
    """Tokenised texts in memory; a whole batch is one indexing of each column.

    A batch is ``{"tokens", "length", "segments", "labels", "index"}``.

    Args:
        tokens: (texts, longest), int32, padded at the right.
        length: tokens of each text, (texts,), int64.
        labels: as those of :class:`Documents`.
        segments: which of a pair each token belongs to, (texts, longest), int8; default: 0.
        documents: the texts themselves, where they are known.
    """

    def __init__(
        self,
        tokens: Tensor,
        length: Tensor,
        labels: Tensor,
        segments: Tensor | None = None,
        documents: Documents | None = None,
    ) -> None:
        self.tokens, self.length, self.labels = tokens, length, labels
        self.segments = torch.zeros_like(tokens, dtype=torch.int8) if segments is None else segments
        self.documents = documents

    @property
    def columns(self) -> dict[str, Tensor]:
        """What a batch is made of, beside ``index``."""
        return {
            "tokens": self.tokens,
            "length": self.length,
            "segments": self.segments,
            "labels": self.labels,
        }

    def part(self, rows: Tensor) -> "TokenDataset":
        """Some of the texts."""
        return TokenDataset(
            self.tokens[rows],
            self.length[rows],
            self.labels[rows],
            self.segments[rows],
            None if self.documents is None else self.documents.part(rows),
        )


@dataclass(frozen=True, slots=True)
class Splits:
    """A data set, divided.

    Attributes:
        train: what the student sees, as texts or as tokens.
        test: what the figures are measured on.
        class_names: one for each class; none where labels are numbers to predict.
        teacher: what the teacher is trained on, where that is not ``train``.
        vocab_size: of tokens, how many there are; ``None``: of texts, the tokenizer's.
        pad: of tokens, the one that fills texts up; of texts it is the tokenizer's.
    """

    train: Documents | TokenDataset
    test: Documents | TokenDataset
    class_names: tuple[str, ...] = ()
    teacher: Documents | TokenDataset | None = None
    vocab_size: int | None = None
    pad: int = 0


def known_labels(labels: Tensor) -> Tensor:
    """Which texts have a label, (texts,), bool."""
    return ~labels.isnan() if labels.is_floating_point() else labels != IGNORE


def labelled_positions(labels: Tensor) -> Tensor | None:
    """Positions of the texts that have a label, where others have none; otherwise ``None``."""
    known = known_labels(labels)
    return known.nonzero().flatten() if known.any() and not known.all() else None


def shuffled(documents: Documents) -> Documents:
    """The texts in a fixed random order, for files are often sorted by class."""
    return documents.part(_order(len(documents)))


def _order(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def divide(
    what: str,
    train: Documents | TokenDataset,
    test: Documents | TokenDataset,
    *,
    class_names: Sequence[str] = (),
    vocab_size: int | None = None,
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
        class_names: one for each class; none where labels are numbers to predict.
        vocab_size: of tokens, how many there are.
        teacher: texts of the teacher's own; default: it learns from ``train``.
        pool: texts that the student sees; default: all that ``teacher`` and ``holdout`` leave.
        labelled: how many texts of the pool, the first ones, keep their label; default: all.
        holdout: texts to test on, for tuning, instead of the test set; default: none.

    Raises:
        DataError: data or options that do not fit, saying which and why.
    """
    check(f"The training set of {what}", train, len(class_names))
    check(f"The test set of {what}", test, len(class_names))
    parts = divide_positions(
        what, len(train), teacher=teacher, pool=pool, labelled=labelled, holdout=holdout
    )
    rows = torch.arange(len(train))
    student = train.part(rows[parts.train])
    if labelled is not None:
        missing = torch.nan if student.labels.is_floating_point() else IGNORE
        student.labels[labelled:] = missing
    figures = test if parts.test is None else train.part(rows[parts.test])
    own = None if parts.teacher is None else train.part(rows[parts.teacher])
    if not known_labels(figures.labels).any():
        raise DataError(f"No text of {what} to test on has a label; figures need some.")
    _check_variety(f"What is learnt from, of {what},", student if own is None else own)
    return Splits(student, figures, tuple(class_names), own, vocab_size)


def check(what: str, part: Documents | TokenDataset, classes: int) -> None:
    """Refuse texts from which nothing can be learnt.

    Raises:
        DataError: no texts, empty ones, counts that differ, or labels that are none.
    """
    labels = part.labels
    if isinstance(part, Documents):
        for name, column in (("first", part.first), ("second", part.second)):
            _check_texts(what, name, column, len(labels), paired=part.second is not None)
    if not len(labels):
        raise DataError(f"{what} is empty; at least one text is needed.")
    numbers = labels.is_floating_point()
    if numbers == bool(classes):
        raise DataError(
            f"{what} has labels of type {labels.dtype}"
            + (f" beside {classes} classes" if classes else " and no class names")
            + "; give class numbers with the names of the classes, or floats without any."
        )
    known = labels[known_labels(labels)]
    wrong = ~known.isfinite() if numbers else (known < 0) | (known >= classes)
    if wrong.any():
        text = int(known_labels(labels).nonzero()[wrong.nonzero()[0, 0], 0])
        expected = f"a class from 0 to {classes - 1}, or {IGNORE} where it is not known"
        raise DataError(
            f"{what} has the label {labels[text].item()} at text {text}; expected "
            f"{'a finite number, or NaN where it is not known' if numbers else expected}."
        )


def _check_texts(
    what: str, name: str, column: Sequence[str] | None, count: int, *, paired: bool
) -> None:
    if column is None:
        return
    which = f" {name}" if paired else ""
    if len(column) != count:
        raise DataError(
            f"{what} has {len(column)}{which} texts and {count} labels; each needs one."
        )
    for place, text in enumerate(column):
        if not isinstance(text, str) or not text.strip():
            shown = "empty" if isinstance(text, str) else repr(text)
            raise DataError(
                f"{what}: the{which} text {place} is {shown}, so nothing can be told of it; drop "
                "or fill such texts."
            )


def _check_variety(what: str, part: Documents | TokenDataset) -> None:
    known = part.labels[known_labels(part.labels)]
    if len(known) and bool((known == known[0]).all()):
        raise DataError(f"{what} has only the label {known[0].item()}; to learn takes two or more.")
    if not len(known):
        raise DataError(f"{what} has no labelled text; to learn takes some.")
