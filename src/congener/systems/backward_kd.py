r"""Backward-pass distillation (Jafari, Rezagholizadeh and Ghodsi, arXiv 2023).

Matched at the training samples, two networks may still differ between them. Each sample x is moved
along the gradient of the networks' difference D, for which the teacher is differentiated too, to an
auxiliary sample x′ where they disagree more, and the teacher is matched there as well.

    total = task_weight · task_loss(X) + kd_weight · KD(X) + auxiliary_weight · KD(X′)
    x′: n times x ← x + η · direction of ∇ₓ D(x), with D(x) = ‖S(x) − T(x)‖² by default

KD is :func:`congener.losses.kd_loss`, D is :func:`congener.losses.backward_divergence`. X′ has no
labels one could trust, so it has no task loss. The student answers X and X′ in two forwards, so
that batch normalisation takes statistics of each by itself; both move its running statistics.

*What it owns beyond a loss*: the auxiliary samples; in the mode ``"epoch"``, a frozen copy of the
student as it was when the epoch began. X′ is a function of the sample, the teacher and that copy
alone, whatever else is in the batch. So what a stored set, generated for all training data at the
start of each epoch, would hold is made when a sample's turn comes: nothing of the size of the data
is kept, each epoch's augmentation is climbed from, samples may differ in shape, and processes need
not tell each other anything. In the mode ``"online"`` the student as it is at each step is climbed.

*While X′ is made*, both networks are in evaluation mode (no dropout, running statistics neither
moved nor replaced by the batch's) and outside autocast, no parameter takes part in the backward
pass, and the student is put back as it was. X′ carries no graph: nothing of second order is
trained. The samples of a batch are moved at once, also where gradients are accumulated in pieces.
The first step begins with the teacher's answer to X, which the KD term takes over.

*Differences from the authors' code*: none is known to be published, and of the paper the abstract
was at hand: D's form, the size, number and normalisation of steps, the warm start, the loop, the
weights and what the student sees in one forward are ours. For text, the abstract's word that the
method carries over is made so: embeddings move, and the teacher reads them through a linear map.

*What is saved*: the student, and in the mode ``"epoch"`` its copy with the epoch it is of.
*What is exported*: the bare student.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from congener.errors import RecipeError, ShapeError
from congener.losses import backward_divergence, kd_loss
from congener.naming import bind
from congener.ops.checks import check_choice, check_temperature
from congener.system import System
from congener.systems.ascent import Ascent
from congener.systems.probe import first_sample
from congener.taps import still
from congener.task import Task
from congener.teachers import FrozenTeacher
from congener.types import Batch, Outputs, Paper, Progress, StepResult

__all__ = ["BackwardKD", "embedding_map"]

ONE_STEP = Ascent()
AUXILIARY = "auxiliary"  # the entry of a batch that holds X′, and the feature with its logits
TAUGHT = "teacher_logits"  # the entry with the teacher's logits of X, known from the first step


@final
class BackwardKD(System):
    """Distillation at the samples and where the student differs most from the teacher beside them.

    Args:
        student: the network to train.
        teacher: the trained network; gradients pass through it to its input, never into it.
        task: how networks are called, and the supervised loss.
        ascent: how auxiliary samples are found, an :class:`Ascent` or its arguments by name.
        mode: ``"online"``: climb the student as it is at each step; ``"epoch"``: as it was when
            the epoch began.
        warm_start: epochs of plain distillation first, without auxiliary samples.
        task_weight: factor of the supervised loss.
        kd_weight: factor of the match at the samples.
        auxiliary_weight: factor of the match at the auxiliary samples.
        temperature: τ of both matches.
        teacher_map: (width of the student's entry, width of the teacher's): the teacher reads the
            entry times this, as of :func:`embedding_map`; default: it reads what the student does.

    Raises:
        RecipeError: batches without the entry, an unknown argument of the ascent, a negative warm
            start.
        ShapeError: a map that does not fit the entry.
        ValueError: τ ≤ 0, an unknown mode.
    """

    name = "backward_kd"
    paper = Paper(
        title="Improved knowledge distillation by utilizing backward pass knowledge in neural "
        "networks",
        authors="Aref Jafari, Mehdi Rezagholizadeh, Ali Ghodsi",
        venue="arXiv",
        year=2023,
        url="https://arxiv.org/abs/2301.12006",
    )
    equation = "L = w·CE(X) + w_KD·KD(X) + w′·KD(X′), x′ = x + η·∇ₓ‖S(x) − T(x)‖²"
    sources: ClassVar = {
        "ascent": "ours: one raw gradient step of 0.01 on the squared distance of logits; the "
        "paper's was not at hand",
        "mode": "ours: no copy of the student to keep; the paper's was not at hand",
        "warm_start": "ours: one epoch; the paper's was not at hand",
        **dict.fromkeys(
            ("task_weight", "kd_weight", "auxiliary_weight", "temperature"),
            "ours: equal weights without a temperature, as in MATE-KD's code by the same group",
        ),
        "teacher_map": "ours: both networks read one entry",
    }

    climbed_epoch: Tensor

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        task: Task,
        ascent: Ascent | Mapping[str, Any] = ONE_STEP,
        mode: Literal["online", "epoch"] = "online",
        warm_start: int = 1,
        task_weight: float = 1.0,
        kd_weight: float = 1.0,
        auxiliary_weight: float = 1.0,
        temperature: float = 1.0,
        teacher_map: Float[Tensor, "student_width teacher_width"] | None = None,
    ) -> None:
        super().__init__()
        check_choice("mode", mode, ("online", "epoch"))
        check_temperature(temperature)
        if warm_start < 0:
            raise RecipeError(f"warm_start must be a number of epochs, not {warm_start}.")
        if not isinstance(ascent, Ascent):
            ascent = Ascent(**bind("part", "ascent", Ascent, ascent))
        sample = first_sample(task)
        ascent.check(sample)
        if teacher_map is not None:
            _check_map(teacher_map, sample[ascent.entry])
        self.student, self.task = student, task
        self.ascent, self.mode, self.warm_start = ascent, mode, warm_start
        self.task_weight, self.kd_weight = task_weight, kd_weight
        self.auxiliary_weight, self.temperature = auxiliary_weight, temperature
        self.teacher_map = None if teacher_map is None else teacher_map.detach()
        self.teacher: _Teacher = _Teacher(teacher, task, ascent.entry, self.teacher_map)
        self.climbed: nn.Module | None = None
        if mode == "epoch":
            self.climbed = deepcopy(student).requires_grad_(False)
            self.register_buffer("climbed_epoch", torch.tensor(-1))

    def extra_repr(self) -> str:
        """The hyper-parameters."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.sources)

    def needs_whole_weights(self) -> str:
        """By epochs, a copy of the student is climbed."""
        return "" if self.climbed is None else "it copies the student within a step"

    def needs_live_teacher(self) -> str:
        """What the teacher is asked changes with every step."""
        return (
            "the teacher is asked about points that move with the student, and needs its gradient"
        )

    def weights(self, progress: Progress) -> dict[str, float]:
        """The factor of each term in the total."""
        return {
            "task": self.task_weight, "kd": self.kd_weight, AUXILIARY: self.auxiliary_weight
        }  # fmt: skip

    def views(self, batch: Batch, progress: Progress) -> Batch:
        """After the warm start, with an auxiliary sample beside each: where the two differ more."""
        if progress.epoch < self.warm_start:
            return batch
        climbed = self._climbed(progress.epoch)
        taught: list[Tensor] = []

        def disagreement(moved: Batch) -> Tensor:
            mine, theirs = _answer(self.task, climbed, moved), self.teacher.answer(moved)
            taught.append(theirs.detach())
            return backward_divergence(mine, theirs, divergence=self.ascent.divergence)

        device = batch[self.ascent.entry].device.type
        with still(climbed), torch.autocast(device, enabled=False):
            seen = batch | {AUXILIARY: self.ascent(batch, disagreement)}
        return seen | {TAUGHT: taught[0]} if taught else seen

    def observe(self, batch: Batch) -> Outputs:
        """Run the student on the samples, then on the auxiliary ones."""
        answer = partial(_answer, self.task, self.student)
        return _observed(answer, batch, self.ascent.entry)

    def score(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress
    ) -> StepResult:
        """The supervised loss of the samples; the match to the teacher of both kinds."""
        assert teacher is not None
        match = partial(kd_loss, temperature=self.temperature)
        terms = {
            "task": self.task.loss(student.logits, batch),
            "kd": match(student.logits, teacher.logits),
        }
        if AUXILIARY in student.features:
            terms[AUXILIARY] = match(student.features[AUXILIARY], teacher.features[AUXILIARY])
        return self.weighted(terms, progress)

    def _climbed(self, epoch: int) -> nn.Module:
        """The network whose disagreement with the teacher is climbed in this epoch."""
        if self.climbed is None:
            return self.student
        if self.climbed_epoch.item() != epoch:
            self.climbed.load_state_dict(self.student.state_dict())
            self.climbed_epoch.fill_(epoch)
        return self.climbed


class _Teacher:
    """A frozen teacher that answers auxiliary samples too, and passes gradients to its input."""

    def __init__(self, model: nn.Module, task: Task, entry: str, mapping: Tensor | None) -> None:
        self.frozen = FrozenTeacher(model, task)
        self.entry = entry
        self.mapping = mapping

    def __call__(self, batch: Batch) -> Outputs:
        with torch.no_grad():
            return _observed(self.answer, batch, self.entry, known=batch.get(TAUGHT))

    def answer(self, batch: Batch) -> Tensor:
        """Its logits for a batch of the student's, with gradient to the entry."""
        if self.mapping is not None:
            x = batch[self.entry]
            batch = batch | {self.entry: x @ self.mapping.to(x)}
        return _answer(self.frozen.task, self.frozen.model.eval(), batch)

    def to(self, device: torch.device) -> "_Teacher":
        self.frozen.to(device)
        self.mapping = None if self.mapping is None else self.mapping.to(device)
        return self


def embedding_map(
    student_embeddings: Float[Tensor, "vocabulary student_width"],
    teacher_embeddings: Float[Tensor, "vocabulary teacher_width"],
) -> Float[Tensor, "student_width teacher_width"]:
    """The linear map of a student's embeddings that comes nearest to the teacher's.

    It is found in float64 on the CPU, by a solver that bears embeddings of deficient rank. Where
    the student's embeddings train, it must be found anew.

    Args:
        student_embeddings: (vocabulary, student_width).
        teacher_embeddings: (vocabulary, teacher_width), of the same tokens.

    Returns:
        Q, (student_width, teacher_width), with the least ‖E_S Q − E_T‖; as the teacher's are.

    Raises:
        ShapeError: they are no matrices, or of vocabularies that differ.
    """
    mine, theirs = tuple(student_embeddings.shape), tuple(teacher_embeddings.shape)
    if not (len(mine) == len(theirs) == 2 and mine[0] == theirs[0]):
        raise ShapeError(
            f"student_embeddings {mine} and teacher_embeddings {theirs} must be "
            "(vocabulary, width) of one vocabulary; take the tokens that both know."
        )
    wide = (x.detach().double().cpu() for x in (student_embeddings, teacher_embeddings))
    found: Tensor = torch.linalg.lstsq(*wide, driver="gelsd").solution
    return found.to(teacher_embeddings)


def _answer(task: Task, network: nn.Module, batch: Batch) -> Tensor:
    return task.logits(task.call(network, batch))


def _observed(
    answer: Callable[[Batch], Tensor], batch: Batch, entry: str, known: Tensor | None = None
) -> Outputs:
    """The answers to the samples, if not known, and to the auxiliary ones, where there are."""
    logits = answer(batch) if known is None else known
    if AUXILIARY not in batch:
        return Outputs(logits)
    return Outputs(logits, {AUXILIARY: answer(batch | {entry: batch[AUXILIARY]})})


def _check_map(mapping: Tensor, x: Tensor) -> None:
    if mapping.dim() != 2 or mapping.shape[0] != x.shape[-1]:
        raise ShapeError(
            f"teacher_map {tuple(mapping.shape)} must be (width of the student's entry, width of "
            f"the teacher's), the former {x.shape[-1]}."
        )
