"""The contract between the engine and a kind of data (a task pack implements it)."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from congener.errors import RecipeError
from congener.types import Batch, Exhibit

__all__ = ["Metrics", "Task", "answer_kind"]


class Metrics(Protocol):
    """What is measured over a data set. Every process updates it with its own share."""

    def update(self, result: Any, batch: Batch) -> None:
        """Take in what the model returned for a prepared batch."""

    def compute(self) -> dict[str, float]:
        """The figures over all processes, by name."""


class Task(ABC):
    """What the data is, how a model is called on a batch, and what is measured.

    Attributes:
        splits: data sets by name; ``train`` and ``test`` always, ``teacher`` where the teacher
            learns from another part of the data than the student. A data set is map-style; one
            that has ``__getitems__`` may return a whole batch at once, and one whose ``columns``
            are tensors by name, with a row for each sample, is indexed where they lie.
        metric: the name of the headline figure among those of :meth:`metrics`.
        higher_is_better: the direction of ``metric``.
        class_names: names of the classes, or an empty sequence where there are none.
        labelled: positions in ``train`` of the samples that have a label, where others have none.
        normalisation: mean and standard deviation of each channel by which images come out of
            :meth:`prepare`, where there are images and that is known.
        augments: whether a training sample looks otherwise in another epoch; ``None``: not known,
            for the data sets are the user's.
        ignore_label: the label of a sample that has none; the task loss skips it.
        logits_alone: whether the rows of logits hold nothing else, so that a store may round them
            as what a softmax follows.
        background: whether the first class of a row of logits is that there is nothing, as those
            of some detectors; ``None``: there are no such rows.
        shares: why a teacher must run after :meth:`shared`, where that adds to a batch; empty: it
            does not.
        evaluation_batch: so many samples are measured at once, or a training batch, if larger.
    """

    splits: Mapping[str, Dataset[Any]]
    metric: str
    higher_is_better: bool = True
    class_names: Sequence[str] = ()
    labelled: Tensor | None = None
    normalisation: tuple[Sequence[float], Sequence[float]] | None = None
    augments: bool | None = None
    ignore_label: int = -100
    logits_alone: bool = True
    background: bool | None = None
    shares: str = ""
    evaluation_batch: int = 256

    def labels(self, split: str) -> Tensor | None:
        """The one label of every sample of a split, (samples,), where they are at hand."""
        return None

    def lengths(self, split: str) -> Tensor | None:
        """How long each sample of a split is, as in tokens, (samples,), for ``by_length``."""
        return None

    @abstractmethod
    def build_model(self, name: str, **kwargs: Any) -> nn.Module:
        """Build a network by name, with this task's class count and input shape as defaults.

        Raises:
            RecipeError: an unknown name or argument, with the nearest known one.
        """

    @abstractmethod
    def collate(self, samples: Any) -> Batch:
        """Turn what a data set returned for some indices into one batch."""

    @abstractmethod
    def prepare(self, batch: Batch, *, train: bool, seed: int, epoch: int) -> Batch:
        """Normalise a batch on its device and, for training, augment it.

        Augmentation is a function of (seed, sample index, epoch) alone, so that neither batch
        composition nor the number of processes nor a resume changes what a network sees.
        """

    @abstractmethod
    def call(self, model: nn.Module, batch: Batch) -> Any:
        """Run ``model`` on a prepared batch."""

    def shared(self, student: nn.Module, batch: Batch) -> Batch:
        """The batch with what a student decides that its teacher is to answer for, as proposals.

        Args:
            student: as it trains; no gradient, and its statistics stay as they are.
            batch: a prepared batch, of this process, before gradients are accumulated in pieces.
        """
        return batch

    @abstractmethod
    def logits(self, result: Any) -> Tensor:
        """The logits within what :meth:`call` returned, (batch, classes); or the codes.

        Where :meth:`token_mask` says so, (tokens, vocab): a row for each token that it marks.
        """

    @abstractmethod
    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The supervised loss: the mean over the labelled samples of the global batch, scalar."""

    @abstractmethod
    def metrics(self, device: torch.device) -> Metrics:
        """A fresh measuring instrument."""

    def token_mask(self, batch: Batch) -> Tensor | None:
        """Which tokens of each sample the logits answer for, (batch, tokens), row after row.

        ``None``: the logits have one row for each sample.
        """
        return None

    def targets(self, batch: Batch) -> Tensor | None:
        """What each row of the logits should say; ``None``: that is not known of any."""
        return batch.get("labels")

    def per_sample(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """One row of what was said for each sample, (batch, columns), and the labels.

        Of logits that answer for tokens, the row of a sample's first one; 0 and
        :attr:`ignore_label` of a sample without a token to answer.
        """
        mask, targets = self.token_mask(batch), self.targets(batch)
        if mask is None:
            return logits, batch["labels"]
        assert targets is not None
        counts = mask.sum(1)
        known = counts > 0
        first = (counts.cumsum(0) - counts)[known]
        said = logits.new_zeros(len(counts), logits.shape[-1])
        labels = targets.new_full((len(counts),), self.ignore_label)
        said[known], labels[known] = logits[first], targets[first]
        return said, labels

    def class_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The part of :meth:`loss` that is about classes: what an attack on a network climbs.

        Of the batch of this process alone, for processes attack batches of their own.
        """
        return self.loss(logits, batch)

    def pseudo_labelled(self, batch: Batch, model: nn.Module) -> Batch:
        """A prepared batch in which what a network answers labels the samples that have no label.

        Args:
            batch: a prepared batch.
            model: in evaluation mode.
        """
        return batch

    def objects(self, batch: Batch) -> Sequence[Tensor] | None:
        """Where the objects of each image are, (boxes, 4): left, top, right, bottom, in pixels.

        ``None``: there are no such data.
        """
        return None

    def anchors(self, feature: Tensor) -> Tensor | None:
        """The reference boxes of each place of a map, (height, width, boxes of a place, 4)."""
        return None

    def locations(
        self, student_logits: Tensor, teacher_logits: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor] | None:
        """At which locations of a detector an object is to be found, for the loss ``ld``.

        Args:
            student_logits: as :meth:`logits` gives them.
            teacher_logits: likewise.
            batch: a prepared batch.

        Returns:
            Twice (batch, locations): which they are, and the student's best class score, a
            constant. ``None``: there are no locations.
        """
        return None

    def at_objects(self, feature: Tensor, batch: Batch) -> Tensor:
        """What a map holds at each of :meth:`objects`, for terms that look ``at`` them.

        Args:
            feature: of either network, (batch, channels, height, width).
            batch: a prepared batch.

        Returns:
            (objects of all images, channels), image after image; no row where there is no object.

        Raises:
            RecipeError: a task without objects; that it has any, it tells by having this method.
        """
        raise RecipeError(f"{type(self).__name__} has no objects; take the task 'detection'.")

    def at_proposals(self, student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits of both where the student proposes objects, for terms ``at`` proposals.

        Args:
            student_logits: as :meth:`logits` gives them.
            teacher_logits: likewise.

        Returns:
            Twice (proposals of all images, classes).

        Raises:
            RecipeError: a task without proposals; it tells likewise.
        """
        raise RecipeError(f"{type(self).__name__} has no proposals; take the task 'detection'.")

    def moved(self, images: Tensor, batch: Batch) -> Tensor:
        """Other images of the samples of a prepared batch, moved as :meth:`prepare` moved theirs.

        Args:
            images: as :meth:`prepare` gives them without ``train``.
            batch: a prepared batch.

        Raises:
            RecipeError: a task that cannot tell how it moved them.
        """
        raise RecipeError(
            f"{type(self).__name__} does not tell how it moved the images of a batch; take a task "
            "that does, such as 'detection'."
        )

    def respond(self, model: nn.Module, batch: Batch) -> Any:
        """What :meth:`metrics` take in of a network: what :meth:`call` returns, or what it writes.

        Args:
            model: in evaluation mode, without gradient.
            batch: a prepared batch.
        """
        return self.call(model, batch)

    def mask(self, batch: Batch, feature: Tensor) -> Tensor | None:
        """Which frames of a feature count, (batch, frames); ``None``: all.

        Args:
            batch: a prepared batch.
            feature: what a network gave at a tap, (batch, frames, dims) or (batch, channels,
                frames, frequencies).
        """
        return None

    def exhibits(
        self, networks: Mapping[str, nn.Module], taps: Mapping[str, str | None]
    ) -> Sequence[Exhibit]:
        """Pictures for the report that only this kind of data has.

        Args:
            networks: trained networks by the names of their arms, ``teacher`` first if there is
                one, then in the order of the run.
            taps: for each, the tap that its first term reads, else that which the others read;
                ``None``: none reads any.
        """
        return ()

    def control(self, held: "Task") -> Mapping[str, Any] | None:
        """The best of some methods without a network; ``None``: none is known.

        Args:
            held: the same task whose ``test`` is a slice of ``train``, to choose by.

        Returns:
            ``classifier``, its name; ``metric``, that of the task; ``value``, on ``test``;
            ``chosen_on``, the figure on the slice of each that was tried; ``package``, whose they
            are.
        """
        return None


def answer_kind(task: Task, labels: Any, logits: Tensor) -> Literal["class", "tags"] | None:
    """What logits tell of each sample: its one class, or which of some tags it has.

    ``None``: neither, as embeddings and codes.
    """
    if not isinstance(labels, Tensor) or logits.ndim != 2:
        return None
    if labels.ndim == 1 and logits.shape[1] == len(task.class_names):
        return "class"
    return "tags" if labels.shape == logits.shape else None
