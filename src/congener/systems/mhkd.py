r"""Multi-head Knowledge Distillation for Model Compression (Wang, Lohit, Jones and Fu, arXiv 2020).

Features of two networks differ in shape, class probabilities do not: small classifiers, the heads,
sit on intermediate features of both networks. Each of the student's learns from the teacher's head
that it is paired with and from the labels, and so do the layers under it.

    total = task_weight · CE(zˢ, y) + kd_weight · τ²·KL(zᵗ ‖ zˢ)
          + head_weight · Σ_l [ 0.9 · τ²·KL(gᵗ_l ‖ gˢ_l) + 0.1 · CE(gˢ_l, y) ]
          ( + Σ_l CE(gᵗ_l, y)   in the joint regime )

The sum over heads is :class:`congener.losses.MHKDLoss`, with its two weights.

What it owns beyond a loss
    A head on each tap: twice a 3×3 convolution, batch normalisation and ReLU; the mean over all
    positions; ``layers`` fully connected layers. The teacher's heads learn from the labels alone,
    on features that are detached, and run once a step. ``regime`` says when they learn:
    ``"two-step"``: before the student, in a stage of their own with the student's settings, as the
    authors' code can; then they are fixed and in evaluation mode. ``"joint"``: beside the student,
    in training mode and with the same optimiser, as the authors' code does by default.

Differences from the authors' code, and what is ours
    Ours: two-step as the default, since its targets stand still; which regime the paper's tables
    come from is not known to us. Others describe the paper's head with two fully connected layers,
    the authors' command line has one unless told; as that line's other defaults are not those of
    the authors' runs either, ``layers`` follows the description. ``head_weight`` is what others'
    code has, and the authors' own where a second method is added. The convolutions have no bias,
    which the normalisation behind them would cancel. Batches are normalised over all processes, and
    whole where gradients are accumulated. Features that are no maps are ours: on (batch, channels,
    length) the convolutions run along the length, on (batch, channels) they are linear layers.
    Options of that code that are off by default (dropped heads, for one) are not here.

What is saved, what is exported
    Saved: the student, its heads, and in the joint regime the teacher's heads; in the two-step one
    those are kept by their stage. Exported: the bare student.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, final

import torch
from torch import nn

from congener.errors import RecipeError
from congener.losses import MHKDLoss, head_cross_entropy_loss, kd_loss
from congener.system import FitStage, Stage, System
from congener.systems.mhkd_heads import heads_on, run
from congener.systems.probe import probe
from congener.taps import Taps
from congener.task import Task
from congener.teachers import FrozenTeacher
from congener.types import Batch, Outputs, Progress, StepResult

__all__ = ["MHKD"]


@final
class MHKD(System):
    """Heads on intermediate features of both networks, distilled in pairs.

    Args:
        student: the network to train.
        teacher: the trained network; it is frozen.
        task: how networks are called, and the supervised loss.
        student_taps: paths of features, (batch, channels), (batch, channels, length) or
            (batch, channels, height, width), such as the outputs of the stages; or (batch, frames,
            dims) of which the task masks frames, such as tokens, whose mean a head reads.
        teacher_taps: as many, each paired with the student's at its place; sizes may differ.
        task_weight: factor of the supervised loss.
        kd_weight: factor of the divergence from the teacher's logits.
        head_weight: factor of the sum over heads.
        temperature: τ of every divergence.
        width: channels of the convolutions and units of the hidden layers in a head.
        layers: fully connected layers of a head, one at least.
        regime: ``"two-step"``: the teacher's heads are trained first; ``"joint"``: with the
            student.

    Raises:
        RecipeError: taps that are no pairs, no width or layers, an unknown regime, or networks of
            different classes.
        ShapeError: a tap that gives no feature of the shapes above.
        TapError: a tap that does not exist.
        ValueError: τ ≤ 0.
    """

    name = "mhkd"
    paper = MHKDLoss.paper
    equation = "L = γ·CE + α·τ²·KL( pᵗ ‖ pˢ ) + β·Σ_l ( 0.9·τ²·KL( pᵗ_l ‖ pˢ_l ) + 0.1·CE_l )"
    sources: ClassVar = {
        "student_taps": "yours: paths in your student",
        "teacher_taps": "yours: paths in your teacher",
        "task_weight": "authors' runs: 0.1",
        "kd_weight": "authors' runs: 0.9",
        "head_weight": "others' code, and the authors' beside a second method: 0.5",
        "temperature": "authors' code: 4",
        "width": "authors' code: 256",
        "layers": "a published description of the paper's head: 2; the authors' code: 1",
        "regime": "ours: targets that stand still; the authors' code: joint",
    }

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        task: Task,
        student_taps: Sequence[str],
        teacher_taps: Sequence[str],
        task_weight: float = 0.1,
        kd_weight: float = 0.9,
        head_weight: float = 0.5,
        temperature: float = 4.0,
        width: int = 256,
        layers: int = 2,
        regime: Literal["two-step", "joint"] = "two-step",
    ) -> None:
        super().__init__()
        _check(student_taps, teacher_taps, width, layers, regime)
        self.student_taps, self.teacher_taps = tuple(student_taps), tuple(teacher_taps)
        self.task_weight, self.kd_weight, self.head_weight = task_weight, kd_weight, head_weight
        self.temperature, self.width, self.layers = temperature, width, layers
        self.regime = regime
        self.task = task
        self.student = student
        self._taps = Taps(student, self.student_taps)
        self.head_loss = MHKDLoss(temperature=temperature)

        mine, theirs = probe(student, task, student_taps), probe(teacher, task, teacher_taps)
        classes = mine.logits.shape[-1]
        if theirs.logits.shape[-1] != classes:
            raise RecipeError(
                f"The student tells {classes} classes apart and the teacher "
                f"{theirs.logits.shape[-1]}; give both networks the same classes."
            )
        self.student_heads = heads_on(mine, self.student_taps, task, width, layers)
        teacher_heads = heads_on(theirs, self.teacher_taps, task, width, layers)
        self.teacher: FrozenTeacher | _HeadedTeacher
        self.teacher = FrozenTeacher(teacher, task, self.teacher_taps)
        if regime == "joint":
            self.teacher_heads = teacher_heads
        else:
            self.teacher = _HeadedTeacher(self.teacher, teacher_heads, self.teacher_taps)

    def stages(self) -> Sequence[Stage]:
        """Two-step: the teacher's heads learn the labels first, once for all students."""
        if isinstance(self.teacher, FrozenTeacher):
            return ()
        frozen, heads = self.teacher.frozen, self.teacher.heads
        fit = _HeadFit(frozen, heads, self.teacher_taps)
        return (FitStage("mhkd-teacher-heads", fit, depends=(frozen.model,)),)

    def weights(self, progress: Progress) -> dict[str, float]:
        """The factor of each term in the total."""
        weights = {"task": self.task_weight, "kd": self.kd_weight, "heads": self.head_weight}
        return weights | ({"teacher_heads": 1.0} if self.regime == "joint" else {})

    def observe(self, batch: Batch) -> Outputs:
        """Run the student and read its taps."""
        result, features = self._taps(lambda: self.task.call(self.student, batch))
        return Outputs(self.task.logits(result), features)

    def score(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress
    ) -> StepResult:
        """Both networks' heads, each pair, and the loss of the last layer."""
        assert teacher is not None
        taught = list(teacher.features.values())
        if self.regime == "joint":
            taught = run(self.teacher_heads, self.teacher_taps, teacher, self.task, batch)
        learnt = run(self.student_heads, self.student_taps, student, self.task, batch)
        labels = batch["labels"]
        terms = {
            "task": self.task.loss(student.logits, batch),
            "kd": kd_loss(student.logits, teacher.logits, temperature=self.temperature),
            "heads": self.head_loss(learnt, taught, labels),
        }
        if self.regime == "joint":
            terms["teacher_heads"] = head_cross_entropy_loss(taught, labels)
        return self.weighted(terms, progress)

    def extra_repr(self) -> str:
        """Name the hyper-parameters."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.sources)


class _HeadedTeacher:
    """A frozen teacher whose features are its fitted heads' logits; neither is a submodule."""

    def __init__(self, frozen: FrozenTeacher, heads: nn.ModuleList, taps: Sequence[str]) -> None:
        self.frozen, self.heads, self._taps, self.task = frozen, heads, taps, frozen.task
        self._fitted = False

    def __call__(self, batch: Batch) -> Outputs:
        """The logits of the network and, as features, of each head; all without gradient."""
        if not self._fitted:  # what was never in training has seen no batch
            counts = [v for k, v in self.heads.named_buffers() if k.endswith("batches_tracked")]
            self._fitted = bool(torch.stack(counts).all())
        if not self._fitted:
            raise RecipeError(
                "The teacher's heads of MHKD are not fitted yet; call "
                "congener.engine.prepare(system, task, config) first."
            )
        said = self.frozen(batch)
        self.heads.eval()  # the stage left them in training mode
        with torch.no_grad():
            logits = run(self.heads, self._taps, said, self.task, batch)
        return Outputs(said.logits, {f"head{i}": each for i, each in enumerate(logits)})

    @property
    def networks(self) -> tuple[FrozenTeacher, ...]:
        """What can be told how to run."""
        return self.frozen.networks

    def to(self, device: torch.device) -> "_HeadedTeacher":
        """Move the network and the heads to a device."""
        self.frozen.to(device)
        self.heads.to(device)
        return self


class _HeadFit(System):
    """The stage that fits the teacher's heads, its ``student``, to the labels."""

    name = "mhkd_heads"
    student: nn.ModuleList

    def __init__(self, frozen: FrozenTeacher, heads: nn.ModuleList, taps: Sequence[str]) -> None:
        super().__init__()
        self.student, self.teacher, self.teacher_taps = heads, frozen, taps
        self.task = frozen.task

    def observe(self, batch: Batch) -> Outputs:
        """Nothing: the heads read what the teacher says, so they run in :meth:`score`."""
        return Outputs(torch.zeros(len(batch["index"]), 0, device=batch["labels"].device))

    def score(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress
    ) -> StepResult:
        """The cross-entropy of every head with the labels."""
        assert teacher is not None
        logits = run(self.student, self.teacher_taps, teacher, self.task, batch)
        loss = head_cross_entropy_loss(logits, batch["labels"])
        return StepResult(loss, {"task": loss})

    def extra_repr(self) -> str:
        """Name the taps: what was fitted on others is of no use."""
        return f"teacher_taps={self.teacher_taps!r}"


def _check(
    student_taps: Sequence[str], teacher_taps: Sequence[str], width: int, layers: int, regime: str
) -> None:
    lists = not isinstance(student_taps, str) and not isinstance(teacher_taps, str)
    if not (lists and student_taps and len(student_taps) == len(teacher_taps)):
        raise RecipeError(
            f"student_taps {student_taps!r} and teacher_taps {teacher_taps!r} must be lists of as "
            "many paths, one at least; give one path in each network for each pair of heads."
        )
    if width < 1 or layers < 1:
        raise RecipeError(f"width {width} and layers {layers} must be 1 at least; raise them.")
    if regime not in ("two-step", "joint"):
        raise RecipeError(f"regime must be 'two-step' or 'joint', not {regime!r}.")
