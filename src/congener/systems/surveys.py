"""Answers that take a pass over the data first: ND's class means, and whom CRD contrasts."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from congener.errors import DataError, RecipeError
from congener.losses import CRDLoss, crd_contrast_index
from congener.losses.nd_parts import class_sums, means_of_sums
from congener.ops.batch_norm import BatchNorm
from congener.ops.collectives import gather_rows
from congener.ops.precision import upcast
from congener.ops.spatial import as_map, pooled
from congener.system import Stage, SurveyStage
from congener.systems.sources import Pair, Seen, Source
from congener.teachers import FrozenTeacher
from congener.types import Batch

__all__ = ["ClassMeans", "ContrastIndex"]


@final
class ClassMeans(Source):
    """ND's means of the teacher's features, class by class, over what the teacher learned from.

    Maps are pooled, of both networks. Where the widths differ, a projector gives the student's
    feature the teacher's width, as the authors' does: batch normalisation, dropout of a half, and a
    linear layer whose bias starts at 0. It belongs here and not to the loss, which has no parameter
    to size one by. The student's logits come from its feature as it is.

    The means are those of samples that are not augmented; the authors' are of augmented ones.
    """

    words = ("class_means",)

    class_means: Tensor

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self._term, self._tap = pair.term, pair.tap
        classes = len(pair.task.class_names)
        if not classes:
            raise RecipeError(
                f"The term {pair.term!r} needs the mean of each class, and this task has no "
                "classes; choose another loss."
            )
        student, teacher = _pooled(pair.student_feature), _pooled(pair.teacher_feature)
        width, wanted = student.shape[1], teacher.shape[1]
        self.projector = None if width == wanted else _WidthProjector(width, wanted)
        self.register_buffer("class_means", torch.zeros(classes, wanted))
        self._teacher = FrozenTeacher(pair.teacher, pair.task, [pair.tap])
        self._measured = False

    def stages(self) -> Sequence[Stage]:
        """One pass of the teacher over what it learned from."""
        return [
            SurveyStage(
                "class_means", self._measure, self._receive, (self._teacher.model,),
                key=(self._tap, len(self.class_means)),
                stand_in=lambda _: {"class_means": torch.ones_like(self.class_means)},
            )
        ]  # fmt: skip

    def _measure(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        classes, width = self.class_means.shape
        try:
            device = _device(self._teacher)
            sums = torch.zeros(classes, width + 1, dtype=torch.float64, device=device)
            for batch in batches:
                features = _pooled(self._teacher(batch).features[self._tap])
                sums += class_sums(features, batch["labels"], classes)
            return {"class_means": means_of_sums(sums).float()}
        except ValueError as error:
            raise DataError(f"The term {self._term!r} cannot have class means: {error}") from error

    def _receive(self, figures: Mapping[str, Tensor]) -> None:
        self.class_means.copy_(figures["class_means"])
        self._measured = True

    def forward(self, now: Seen) -> dict[str, Any]:
        """The means, and both features pooled, the student's in the teacher's width."""
        _require(self._measured, self._term)
        student = _pooled(now.student_feature)
        return {
            "class_means": self.class_means,
            "student_feature": student if self.projector is None else self.projector(student),
            "teacher_feature": _pooled(now.teacher_feature),
        }


class _WidthProjector(nn.Module):
    """Batch normalisation over all processes, dropout, and a linear layer."""

    def __init__(self, width: int, wanted: int) -> None:
        super().__init__()
        self.bn, self.dropout = BatchNorm(width), nn.Dropout(0.5)
        self.linear = nn.Linear(width, wanted)
        nn.init.zeros_(self.linear.bias)

    def forward(self, feature: Tensor) -> Tensor:
        normalised = self.bn(as_map(feature)).flatten(1)
        projected: Tensor = self.linear(self.dropout(normalised))
        return projected


@final
class ContrastIndex(Source):
    """CRD's negatives: samples of other classes, drawn by (step, sample) from the training set.

    A sample without a label, or with several, is of a class of its own.
    """

    words = ("contrast_index",)
    lone = True  # another pair would write into the same rows of the banks

    labels: Tensor

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        if not isinstance(pair.loss, CRDLoss):
            raise RecipeError(
                f"The term {pair.term!r} asks for contrast_index, which is drawn for a CRDLoss."
            )
        self._term = pair.term
        self._teacher = FrozenTeacher(pair.teacher, pair.task)
        self._draw = partial(crd_contrast_index, negatives=pair.loss.negatives)
        self.register_buffer("labels", torch.zeros(pair.loss.samples, dtype=torch.int64))
        self._measured = False

    def stages(self) -> Sequence[Stage]:
        """One pass over the labels of the training set."""
        samples = len(self.labels)
        return [
            SurveyStage(
                "crd_labels", self._measure, self._receive, data="train", key=(samples,),
                stand_in=self._stand_in,
            )
        ]  # fmt: skip

    def _measure(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        rows = [torch.zeros(0, 2, dtype=torch.int64)]
        for batch in batches:
            labels = batch.get("labels")
            if labels is None or labels.dim() != 1:
                labels = torch.full_like(batch["index"], -1)
            rows.append(torch.stack((batch["index"], labels.long()), dim=1).cpu())
        everyone, _ = gather_rows(torch.cat(rows).to(_device(self._teacher)))
        labels = self._by_index(*everyone.cpu().unbind(1))
        try:
            self._draw(torch.zeros(1, dtype=torch.int64), labels, step=0)
        except ValueError as error:
            raise DataError(f"The term {self._term!r} has nothing to contrast: {error}") from error
        return {"labels": labels}

    def _stand_in(self, samples: int) -> dict[str, Tensor]:
        each = torch.arange(samples)  # is of a class of its own
        return {"labels": self._by_index(each, each)}

    def _by_index(self, index: Tensor, labels: Tensor) -> Tensor:
        """Labels in the order of the banks' rows."""
        index, order = index.sort()
        if not torch.equal(index, torch.arange(len(self.labels))):
            raise DataError(
                f"The term {self._term!r} remembers {len(self.labels)} samples, but the training "
                f"set has {len(index)}, of index {index.min()}…{index.max()}; set `samples` to the "
                "size of the training set, whose samples are counted from 0."
            )
        return labels[order]

    def _receive(self, figures: Mapping[str, Tensor]) -> None:
        self.labels.copy_(figures["labels"])
        self._measured = True

    def forward(self, now: Seen) -> dict[str, Any]:
        """The samples themselves, and others to tell them from."""
        _require(self._measured, self._term)
        index = now.batch.get("index")
        if index is None:
            raise DataError(
                f"The term {self._term!r} remembers each sample by its `index` in the training "
                "set, which the batch does not have; add it."
            )
        return {"contrast_index": self._draw(index, self.labels, step=now.progress.step)}


def _device(teacher: FrozenTeacher) -> torch.device:
    """Where :func:`congener.engine.prepare` has put the teacher, and gathers."""
    return next((p.device for p in teacher.model.parameters()), torch.device("cpu"))


def _pooled(feature: Tensor) -> Tensor:
    (wide,) = upcast(feature)
    return pooled(wide)


def _require(measured: bool, term: str) -> None:
    if not measured:
        raise RecipeError(
            f"The term {term!r} needs a survey of the data first; call "
            "congener.engine.prepare(system, task, config) before training."
        )
