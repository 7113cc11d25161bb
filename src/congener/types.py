"""Plain records that every floor shares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from congener.schedules import Schedule

__all__ = ["Batch", "Exhibit", "Outputs", "Panel", "Paper", "Progress", "StepResult", "Term"]

Batch = dict[str, Any]
"""A mapping with three reserved keys: ``index`` (stable sample ids, int64), ``labels``, and in
training ``view``, the number of the view that :meth:`congener.task.Task.prepare` drew."""


@dataclass(frozen=True, slots=True)
class Paper:
    """Where a method was published."""

    title: str
    authors: str
    venue: str
    year: int
    url: str

    def __str__(self) -> str:
        return f"{self.authors}: {self.title}. {self.venue} {self.year}. {self.url}"


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a network said about a batch: its logits and the tensors read at its taps.

    ``members``: what the further teachers said, by their names.
    """

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)
    members: "Mapping[str, Outputs]" = field(default_factory=dict)

    @staticmethod
    def concatenate(parts: "list[Outputs]") -> "Outputs":
        """Join the outputs of consecutive pieces of one batch along the batch axis."""
        return Outputs(
            logits=torch.cat([part.logits for part in parts]),
            features={
                path: torch.cat([part.features[path] for part in parts])
                for path in parts[0].features
            },
            members={
                name: Outputs.concatenate([part.members[name] for part in parts])
                for name in parts[0].members
            },
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands: ``step`` of ``steps`` (optimiser steps, from 0) and the epoch."""

    step: int
    steps: int
    epoch: int


class StepResult(NamedTuple):
    """The loss of one batch: the weighted total and the raw (unweighted) terms by name."""

    total: Tensor
    terms: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Term:
    """One distillation term: a loss, its weight, and the taps that feed it.

    Args:
        loss: any module whose ``forward`` uses the vocabulary of :mod:`congener.losses`.
        weight: factor of this term in the total.
        student: tap path(s) in the student; needed by losses that take features.
        teacher: tap path(s) in the teacher, one for each of the student's.
        name: how the term is called in logs; default: the loss' own name.
        layer_weights: of a loss that compares one pair of features, the factor of each pair of
            taps; default: 1 each, so that the layers add up.
        schedules: by name ``"weight"`` or a numeric hyper-parameter of the loss, such as
            ``"temperature"``, a factor on it that follows training.
        of: the name of a further teacher to learn from; default: the teacher.
        at: of a detector, what its loss takes for a sample: each of the ``"objects"`` in features,
            by their true boxes, or of the student's ``"proposals"`` in logits; default: each image.
    """

    loss: nn.Module
    weight: float = 1.0
    student: str | tuple[str, ...] | None = None
    teacher: str | tuple[str, ...] | None = None
    name: str | None = None
    layer_weights: tuple[float, ...] | None = None
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    of: str | None = None
    at: Literal["objects", "proposals"] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.loss, nn.Module):
            raise TypeError(
                f"A term needs a loss module such as KDLoss(), not {self.loss!r}; a function has "
                "a module of the same name."
            )


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture of an exhibit, with words under it.

    Args:
        caption: the words; a panel without a picture is a card of them.
        picture: values (rows, columns), the first row at the top, or pixels (height, width, 3) of
            type uint8.
        kind: what values are: a ``"similarity"`` matrix, whose rows are of unit length, or a
            ``"spectrogram"``. Those of a kind share one scale of colours in an exhibit. Pixels are
            an ``"image"``, shown as small as a stamp, or a ``"scene"``, whose details are read.
        hit: whether it is what was looked for; ``None``: nothing was.
    """

    caption: str
    picture: Tensor | None = None
    kind: Literal["similarity", "spectrogram", "image", "scene"] = "image"
    hit: bool | None = None


@dataclass(frozen=True, slots=True)
class Exhibit:
    """A figure of the report that only a kind of data can make: rows of pictures.

    Args:
        title: what it shows.
        text: how to read it, one or two sentences.
        rows: by name, such as an arm's, the panels of a row.
        sound: of a player above them, the waveform, (samples,) in [-1, 1], and samples per second.
    """

    title: str
    text: str
    rows: Mapping[str, Sequence[Panel]]
    sound: tuple[Tensor, int] | None = None
