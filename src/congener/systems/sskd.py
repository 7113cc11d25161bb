"""Self-supervised knowledge distillation, SSKD (Xu, Liu, Li and Loy, ECCV 2020).

Both networks get a small head that tells which image of the batch a transformed copy comes from.
The student copies how the teacher's head matches copies with images, mistakes included but for the
worst, beside the teacher's class probabilities of images and of copies.

    total = 0.1 · L_ce + 0.9 · L_kd + 2.7 · L_T + 10 · L_SS

L_ce, L_kd (:func:`congener.losses.kd_loss`) read the untransformed samples, L_T
(:func:`congener.losses.sskd_transformed_loss`) and L_SS (:func:`congener.losses.sskd_loss`) the
three transformed copies of each. Every network sees all four views of the batch in one forward, so
batch normalisation mixes them.

What it owns beyond a loss
    Two heads, each Linear, ReLU, Linear as wide as the feature at its tap, averaged over the
    positions of a map (axis 1 holds the channels). The student's is trained with the student. The
    teacher's is fitted before, in a stage (:class:`congener.systems.sskd_head.SSKDHead`): no
    weight and no statistic of the teacher moves.

CIFAR-100, authors' code (xuguodong03/SSKD, 661b972)
    Batches of 64 samples, 240 epochs of SGD (momentum 0.9, weight decay 5e-4), lr 0.05 (0.01 for
    MobileNetV2 and ShuffleNet) times 0.1 at 150, 180 and 210; the head: ``{epochs: 60, lr: 0.05,
    schedule: multistep, milestones: [30, 45]}``. One flip for all views of an image, then the
    rotation, then a crop of each view by itself: ``crop: 4`` here, and of the task
    ``augment: {name: crop_flip, pad: 0}``.

Differences from the authors' code
    The head's stage repeats the student's settings but for those in ``head``. L_SS and the head's
    loss match copies with the samples of all processes. Samples without a label teach all but
    L_ce; L_T ranks their copies by the class that the teacher gives the untransformed sample.
    A crop's border is what ``task.prepare`` makes of zeros, so black as theirs where the task
    normalises, else 0. Crops depend on the step and the sample, not on the seed of the run.
    ``signal`` views are ours: a group of four, as the rotations are. The paper names colour
    changes and crops too; its authors released rotations, of nearly the same figures.

What is saved, what is exported
    Saved are the student, its head and, with the stages, the teacher's head; the bare student is
    exported.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import torch
from torch import nn

from congener.errors import RecipeError, did_you_mean
from congener.losses import KDLoss, SSKDLoss, SSKDTransformedLoss
from congener.ops.spatial import pooled
from congener.system import FitStage, System
from congener.systems.sskd_head import SSKDHead, SSKDTeacher, build_head
from congener.systems.sskd_views import VIEWS, Transform, Views, untransformed
from congener.taps import Taps
from congener.task import Task
from congener.teachers import FrozenTeacher
from congener.types import Batch, Outputs, Progress, StepResult

__all__ = ["SSKD"]

WEIGHTS = {"task": 0.1, "kd": 0.9, "transformed": 2.7, "self_supervised": 10.0}
TEMPERATURES = {"kd": 4.0, "transformed": 4.0, "self_supervised": 0.5}
RATIOS = {"transformed": 1.0, "self_supervised": 0.75}


@final
class SSKD(System):
    """A student that copies how its teacher matches transformed copies with samples.

    Args:
        student: the network to train.
        teacher: the trained network.
        task: how networks are called, and the supervised loss; its batches hold ``image``.
        student_tap: the student's penultimate feature, (batch, channels) or a map.
        teacher_tap: the teacher's.
        term_weights: factors of ``task``, ``kd``, ``transformed`` and ``self_supervised``; those
            that are not named keep their default, here and below.
        temperatures: of ``kd``, ``transformed`` and ``self_supervised``.
        ratios: which share of the copies that the teacher gets wrong ``transformed`` and
            ``self_supervised`` keep.
        transform: ``"rotations"`` of square images by 0, 90, 180 and 270 degrees
            counter-clockwise, or ``"signal"``, of samples (length,) or (channels, length): as it
            is, reversed, negated, reversed and negated.
        crop: pixels of the border from which each view of an image is cut by itself; 0: no crop.
        head: settings of :class:`congener.engine.FitConfig` for the fit of the teacher's head that
            differ from the student's.

    Raises:
        RecipeError: an unknown name, or a crop that cannot be cut.
        ShapeError: samples that cannot be transformed so.
        TapError: a tap that does not exist or gives no feature.
        ValueError: a temperature that is not positive, or a ratio outside 0 to 1.
    """

    name = "sskd"
    paper = SSKDLoss.paper
    equation = "total = 0.1·L_ce + 0.9·L_kd + 2.7·L_T + 10·L_SS"
    batch_coupled = True
    sources: ClassVar = {
        "student_tap": "yours: the penultimate feature, as in the authors' code",
        "teacher_tap": "yours: the penultimate feature, as in the authors' code",
        **dict.fromkeys(("term_weights", "temperatures", "ratios"), "authors' code, CIFAR-100"),
        "transform": "authors' code: rotations; signals are ours",
        "crop": "ours: none; authors' code, CIFAR-100: 4",
        "head": "ours: as the student; authors' code, CIFAR-100: a quarter of its epochs",
    }

    teacher: SSKDTeacher

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        task: Task,
        student_tap: str,
        teacher_tap: str,
        term_weights: Mapping[str, float] = WEIGHTS,
        temperatures: Mapping[str, float] = TEMPERATURES,
        ratios: Mapping[str, float] = RATIOS,
        transform: Transform = "rotations",
        crop: int = 0,
        head: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.student_tap, self.teacher_tap = student_tap, teacher_tap
        self.term_weights = _completed("term_weights", term_weights, WEIGHTS)
        self.temperatures = _completed("temperatures", temperatures, TEMPERATURES)
        self.ratios = _completed("ratios", ratios, RATIOS)
        self.transform, self.crop = transform, crop
        self.head = dict(head or {})
        self.student, self.task = student, task
        self.kd = KDLoss(self.temperatures["kd"])
        self.transformed = SSKDTransformedLoss(
            VIEWS, self.temperatures["transformed"], self.ratios["transformed"]
        )
        self.self_supervised = SSKDLoss(
            VIEWS, self.temperatures["self_supervised"], self.ratios["self_supervised"]
        )
        self._views = Views(task, transform, crop)
        self._taps = Taps(student, [student_tap])
        self.student_head = build_head(student, task, student_tap)
        frozen = FrozenTeacher(teacher, task, [teacher_tap])
        self.teacher = SSKDTeacher(
            SSKDHead(
                build_head(teacher, task, teacher_tap), frozen, tap=teacher_tap, views=self._views
            )
        )

    def extra_repr(self) -> str:
        """The hyper-parameters."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.sources)

    def stages(self) -> Sequence[FitStage]:
        """The teacher's head is fitted first."""
        fitting = self.teacher.fitting
        return (FitStage("sskd_head", fitting, (fitting.frozen.model,), self.head),)

    def needs_live_teacher(self) -> str:
        """What the teacher is asked changes with every step."""
        return "its self-supervised head compares the images and their rotations within each batch"

    def weights(self, progress: Progress) -> dict[str, float]:
        """The factor of each term in the total."""
        return self.term_weights

    def views(self, batch: Batch, progress: Progress) -> Batch:
        """Four views of each sample, the untransformed one first."""
        return self._views(batch, progress)

    def observe(self, batch: Batch) -> Outputs:
        """Run the student on all views at once and read its penultimate feature."""
        result, features = self._taps(lambda: self.task.call(self.student, batch))
        return Outputs(self.task.logits(result), features)

    def score(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress
    ) -> StepResult:
        """The four losses: two of the samples as they are, two of their transformed copies."""
        assert teacher is not None
        mine, theirs = student.logits[::VIEWS], teacher.logits[::VIEWS]
        samples = untransformed(batch)
        labels = torch.where(samples["labels"] < 0, theirs.argmax(dim=1), samples["labels"])
        rows = self.student_head(pooled(student.features[self.student_tap]))
        terms = {
            "task": self.task.loss(mine, samples),
            "kd": self.kd(mine, theirs),
            "transformed": self.transformed(student.logits, teacher.logits, labels),
            "self_supervised": self.self_supervised(rows, teacher.features["head"]),
        }
        return self.weighted(terms, progress)


def _completed(
    what: str, given: Mapping[str, float], defaults: Mapping[str, float]
) -> dict[str, float]:
    for name in given:
        if name not in defaults:
            raise RecipeError(f"SSKD has no {what} of {name!r}; {did_you_mean(name, defaults)}")
    return {**defaults, **given}
