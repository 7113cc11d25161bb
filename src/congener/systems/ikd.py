r"""Inconsistent knowledge distillation, IKD (Liang et al., ACM MM 2023): what people do not see.

A detector's teacher perceives what no label tells: it is sensitive to frequencies, and to patterns
that adversarial images are made of. The student learns both, beside a usual distillation.

    total = task_weight · task_loss(x) + Σ terms(x) + Σ_l L_adv,l(x_adv)
    L_adv,l = α · mean_n ‖φ_l(Fˢ_l(x_adv,n)) − Fᵗ_l(x_adv,n)‖²

The terms are the distillation that IKD stands on, FGD or MGD in the paper; L_adv,l is
:class:`congener.losses.IKDLoss` of a level of the pyramid, each with an alignment φ of its own.
Frequencies are the data's part: the task's augmentation ``sample_specific`` adds noise to images
of small objects alone and crops the others.

Adversarial images
    The teacher's own: the attack climbs its classification loss, see
    :mod:`congener.ops.adversarial`. They are made once for the training images as they are, before
    training, and kept in a store that several processes build, that goes on after a stop, and that
    is refused where teacher, data or settings are others; in each step they are moved as the images
    of the step were. ``online``: made in each step from what the step sees. An image without a
    label is attacked by what the teacher says about it (ours).

One call or two
    Clean and adversarial images go through a network in one call where no layer couples samples,
    that is without batch normalisation in training; else in two, the adversarial ones first (the
    authors' order), and running statistics are those of the clean images alone (ours; the authors'
    are frozen).

Differences from the authors' code
    The feature term is active in the epochs before ``until``, in one run; theirs (JWLiang007/IKD,
    54838085) resumes the 16th of 24 epochs with other settings. Images are kept as numbers, not as
    JPEG, and draws are a function of the image.

What it owns beyond a loss
    The store of adversarial images, and the alignments φ, which are trained and saved.
What is exported
    The bare student.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from congener.errors import RecipeError
from congener.losses import IKDLoss
from congener.naming import bind
from congener.ops.adversarial import Attack
from congener.system import AnswerStage, Stage
from congener.systems.distillation import Distillation
from congener.systems.ikd_attacker import Attacker
from congener.systems.ikd_levels import paired_levels
from congener.systems.probe import first_sample
from congener.taps import Taps, statistics_kept
from congener.task import Task
from congener.teachers import FrozenTeacher
from congener.teachers.rows import taken
from congener.types import Batch, Outputs, Progress, StepResult, Term

__all__ = ["IKD"]

ADVERSARIAL = "adversarial"  # the entry of a batch, the term, and the stage
README = Attack()


@final
class IKD(Distillation):
    """Distillation of a detector, and of how its teacher sees adversarial images.

    Args:
        student: the network to train.
        teacher: the trained network.
        terms: the distillation that it stands on, on clean images.
        task: how networks are called; its images are ``batch["image"]``.
        task_weight: factor of the supervised loss.
        student_levels: taps of the student whose maps are compared; default: the levels of its
            pyramid, ``backbone.fpn.layer_blocks.0`` and so on.
        teacher_levels: of the teacher, one for each.
        alpha: α of every level.
        until: the epoch, from 0, from which the term is off; default: never.
        attack: how the images are made, an :class:`Attack` or its arguments by name.
        online: attack what each step sees, instead of each training image once.
        folder: where the adversarial images are kept; default: with the run's shared results.

    Raises:
        RecipeError: levels that are not there, a task whose images cannot be moved again, an
            unknown argument of the attack, an ``until`` below 1, a negative or infinite ``alpha``,
            a term called ``adversarial``.
        ShapeError: levels that differ in number or size.
    """

    name = "ikd"
    paper = IKDLoss.paper
    equation = "L = w·task + Σᵢ wᵢ·lossᵢ(x) + α·Σ_l mean ‖φ(Fˢ_l(x_adv)) − Fᵗ_l(x_adv)‖²"
    sources: ClassVar = {
        "terms": "yours: FGD or MGD in the paper",
        "task_weight": "authors' code: 1",
        "student_levels": "authors' code: all levels of a RetinaNet's pyramid",
        "teacher_levels": "likewise, authors' code",
        "alpha": IKDLoss.sources["alpha"],
        "until": "ours: never off; authors' code: 16 of 24 epochs",
        "attack": "authors' code: README, 8/255 in 5 steps of 2/255",
        "online": "authors' code: made before training",
        "folder": "ours: with the results of the run",
    }

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        terms: Sequence[Term] = (),
        *,
        task: Task,
        task_weight: float = 1.0,
        student_levels: Sequence[str] | None = None,
        teacher_levels: Sequence[str] | None = None,
        alpha: float = 1e-5,
        until: int | None = None,
        attack: Attack | Mapping[str, Any] = README,
        online: bool = False,
        folder: str | Path | None = None,
    ) -> None:
        super().__init__(student, teacher, terms, task=task, task_weight=task_weight)
        if ADVERSARIAL in self.losses:
            raise RecipeError(f"A term cannot be called {ADVERSARIAL!r}; give it another `name`.")
        if not (alpha >= 0 and math.isfinite(alpha)):
            raise RecipeError(f"alpha={alpha} must be finite and not negative; 0 leaves it out.")
        if until is not None and until < 1:
            raise RecipeError(f"until={until} leaves no epoch; give 1 or more, or leave it out.")
        if not isinstance(attack, Attack):
            attack = Attack(**bind("part", "attack", Attack, attack))
        self.alpha, self.until = alpha, until
        self.attack, self.online = attack, online
        self.folder = None if folder is None else Path(folder).expanduser()
        mine, theirs = paired_levels(student, teacher, student_levels, teacher_levels, task)
        self.student_levels, self.teacher_levels = list(mine), list(theirs)
        if not online:
            sample = first_sample(task)
            task.moved(sample["image"], sample)  # so that who cannot move them says so now
        self.alignments = nn.ModuleList(
            IKDLoss(a.shape[1], b.shape[1], alpha=alpha)
            for a, b in zip(mine.values(), theirs.values(), strict=True)
        )
        read = [path for bound in self.terms for path in bound.student]
        self._taps = Taps(student, [*read, *mine])
        asked = [path for bound in self.terms for path in bound.teacher]
        self.teacher = _Both(FrozenTeacher(teacher, task, [*asked, *theirs]), self.teacher_levels)
        self._attacker = Attacker(FrozenTeacher(teacher, task), attack)
        self._read: Callable[[Tensor], Tensor] | None = None

    def extra_repr(self) -> str:
        """The hyper-parameters."""
        return ", ".join(f"{n}={getattr(self, n)!r}" for n in self.sources if n != "terms")

    def needs_live_teacher(self) -> str:
        """Its adversarial images are moved anew in each step."""
        return "the teacher looks at adversarial images, which are moved anew in every step"

    def stages(self) -> Sequence[Stage]:
        """What the terms need measured, and the adversarial images."""
        if self.online or not self.alpha:
            return super().stages()
        asked = AnswerStage(
            "ikd-adversarial", self._attacker, self._receive, (self._attacker.frozen.model,),
            key=(repr(self.attack),), folder=self.folder,
        )  # fmt: skip
        return [*super().stages(), asked]

    def _receive(self, read: Callable[[Tensor], Tensor]) -> None:
        self._read = read

    def views(self, batch: Batch, progress: Progress) -> Batch:
        """The batch, and where the term is active its adversarial images."""
        batch = super().views(batch, progress)
        if not self.alpha or (self.until is not None and progress.epoch >= self.until):
            return batch
        if self.online:
            return batch | {ADVERSARIAL: self._attacker(batch).logits}
        if self._read is None:
            raise RecipeError(
                "The adversarial images of 'ikd' are not there; call congener.engine.prepare "
                "before fit, or set online."
            )
        images = self._read(batch["index"]).to(batch["image"].dtype)
        return batch | {ADVERSARIAL: self.task.moved(images, batch)}

    def observe(self, batch: Batch) -> Outputs:
        """Run the student on both kinds of images and read its taps."""
        if ADVERSARIAL not in batch:
            return super().observe(batch)
        if _couples(self.student):
            with statistics_kept(self.student):
                adversarial = super().observe(batch | {"image": batch[ADVERSARIAL]})
            clean = super().observe(batch)
        else:
            clean, adversarial = _halves(super().observe(_doubled(batch)))
        return _joined(clean, adversarial, self.student_levels)

    def score(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress
    ) -> StepResult:
        """The supervised loss, every term, and the adversarial one while it is active."""
        terms = super().score(student, teacher, batch, progress).terms
        if ADVERSARIAL in batch:
            assert teacher is not None
            values = [
                loss(student.features[_named(mine)], teacher.features[_named(theirs)])
                for loss, mine, theirs in zip(
                    self.alignments, self.student_levels, self.teacher_levels, strict=True
                )
            ]
            terms[ADVERSARIAL] = sum(values[1:], start=values[0])
        return self.weighted(terms, progress)


class _Both:
    """A teacher that looks at clean and adversarial images in one call."""

    def __init__(self, frozen: FrozenTeacher, levels: Sequence[str]) -> None:
        self.frozen, self.levels = frozen, levels

    def __call__(self, batch: Batch) -> Outputs:
        if ADVERSARIAL not in batch:
            return self.frozen(batch)
        return _joined(*_halves(self.frozen(_doubled(batch))), self.levels)

    @property
    def networks(self) -> tuple[FrozenTeacher, ...]:
        """What can be told how to run."""
        return self.frozen.networks

    def to(self, device: torch.device) -> "_Both":
        """Move the network to a device."""
        self.frozen.to(device)
        return self


def _couples(network: nn.Module) -> bool:
    """Whether samples of a batch depend on each other in training."""
    return any(isinstance(each, _BatchNorm) and each.training for each in network.modules())


def _doubled(batch: Batch) -> Batch:
    """The clean images, and behind them the adversarial ones."""
    others = {name: value for name, value in batch.items() if name not in ("image", ADVERSARIAL)}
    twice = taken(others, torch.arange(len(batch["image"])).repeat(2))
    return twice | {"image": torch.cat((batch["image"], batch[ADVERSARIAL]))}


def _halves(both: Outputs) -> tuple[Outputs, Outputs]:
    """What was said about the clean images and about the others."""
    count = len(both.logits) // 2

    def some(rows: slice) -> Outputs:
        return Outputs(both.logits[rows], {p: value[rows] for p, value in both.features.items()})

    return some(slice(count)), some(slice(count, None))


def _joined(clean: Outputs, adversarial: Outputs, levels: Sequence[str]) -> Outputs:
    """What was said about the clean images, and the levels of the others beside it."""
    others = {_named(path): adversarial.features[path] for path in levels}
    return Outputs(clean.logits, {**clean.features, **others})


def _named(path: str) -> str:
    return f"{ADVERSARIAL}:{path}"
