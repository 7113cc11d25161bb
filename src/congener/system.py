"""The contract of a system: everything that is trained together, and its loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from congener.ops.collectives import all_sum
from congener.types import Batch, Outputs, Paper, Progress, StepResult

__all__ = [
    "AnswerStage",
    "Balance",
    "FitStage",
    "Stage",
    "SurveyStage",
    "System",
    "TeacherLike",
    "loss_balance",
]


Balance = dict[str, dict[str, Tensor]]
"""For each term by name, figures by name."""


class TeacherLike(Protocol):
    """``teacher(batch) -> Outputs``; live or cached, the caller cannot tell which."""

    def __call__(self, batch: Batch) -> Outputs:
        """What the teacher says about a prepared batch, without gradient."""

    def to(self, device: torch.device) -> object:
        """Move the teacher to a device."""


class System(nn.Module, ABC):
    """Owns the student and every other trainable part; says what a batch costs.

    A step is two halves: :meth:`observe` runs the networks, :meth:`score` makes the loss of what
    was observed. The engine needs them apart to accumulate gradients exactly (a loss that couples
    the samples of a batch is scored on the whole batch, however many pieces were observed); their
    composition is :meth:`forward`, which DDP and autocast wrap.

    Attributes:
        name: the short name, as in a recipe.
        paper: where it was published, if it is one paper's.
        equation: the total in one line.
        batch_coupled: whether the samples of a batch depend on each other.
        sources: for each hyper-parameter, where its default comes from, as for a loss.
        student: the bare student; it is what is evaluated and exported.
        teacher: never a submodule, so neither ``train()``, ``state_dict()`` nor DDP reaches it.
    """

    name: ClassVar[str]
    paper: ClassVar[Paper | None] = None
    equation: ClassVar[str] = ""
    batch_coupled: ClassVar[bool] = False
    sources: ClassVar[Mapping[str, str]] = {}

    student: nn.Module
    teacher: TeacherLike | None

    @property
    def distils(self) -> bool:
        """Whether samples without a label teach it something."""
        return self.teacher is not None

    def needs_live_teacher(self) -> str:
        """Why its teacher must run on each batch; empty where what it said before will do."""
        return ""

    def needs_whole_weights(self) -> str:
        """Why its weights cannot lie in shards between steps; empty where they can."""
        return ""

    def stages(self) -> "Sequence[Stage]":
        """What must be done, in order, before this system is fitted: the engine's ``prepare``."""
        return ()

    def views(self, batch: Batch, progress: Progress) -> Batch:
        """What both networks see of a prepared batch, such as SSKD's rotations of each image.

        Every entry of the result that holds rows, ``index`` among them, holds as many.
        """
        return batch

    def weights(self, progress: Progress) -> dict[str, float]:
        """Factor of each term in the total, for the log; a term that is not named has 1."""
        return {}

    def figures(self) -> dict[str, float]:
        """What else the log should tell of the last step; all processes call it together."""
        return {}

    @abstractmethod
    def observe(self, batch: Batch) -> Outputs:
        """Run the student on a prepared batch, with gradient."""

    @abstractmethod
    def score(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress
    ) -> StepResult:
        """The loss of what was observed, and its terms by name."""

    def weighted(self, terms: dict[str, Tensor], progress: Progress) -> StepResult:
        """The terms with their total: each times its factor in :meth:`weights`, summed."""
        weights = self.weights(progress)
        factors = [(weights.get(name, 1.0), value) for name, value in terms.items()]
        parts = [value if factor == 1.0 else factor * value for factor, value in factors]
        return StepResult(sum(parts[1:], start=parts[0]), terms)

    def forward(
        self, batch: Batch, progress: Progress, *, balance: bool = False
    ) -> tuple[Tensor, dict[str, Tensor], Balance]:
        """Teacher first: its activations are gone before the student's graph grows.

        Returns:
            The total, the terms, and with ``balance`` the :func:`loss_balance`, else nothing.
        """
        batch = self.views(batch, progress)
        teacher = None if self.teacher is None else self.teacher(batch)
        student = self.observe(batch)
        total, terms = self.score(student, teacher, batch, progress)
        shares = loss_balance(student, terms, self.weights(progress)) if balance else {}
        return total, terms, shares


@dataclass(frozen=True, slots=True)
class FitStage:
    """A part of the teacher's side that is trained first, once for all students: a head, say.

    Args:
        name: what the stage is called in logs and files.
        system: what is fitted; its modules are those that the asking system then uses.
        depends: the networks that the result depends on.
        settings: changes to the settings of the fit that it prepares for.
        data: learn from what the student learns from, or from what the ``teacher`` learned from.
    """

    name: str
    system: System
    depends: tuple[nn.Module, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Literal["train", "teacher"] = "teacher"


@dataclass(frozen=True, slots=True)
class SurveyStage:
    """Something measured in one pass over the data, once for all students: class means, say.

    Args:
        name: what the stage is called in logs and files.
        measure: makes the figures from this process' share of the prepared batches, which are not
            augmented; what has to be summed over processes it sums itself.
        receive: takes the figures, measured now or read back.
        depends: the networks that the result depends on.
        data: pass over what the student learns from, or over what the ``teacher`` learned from.
        key: what else the result depends on, in plain values, such as the tap.
        stand_in: makes figures of the same shapes, given the number of samples, for a trial of the
            system before anything is measured. It refuses a number that ``measure`` would.
    """

    name: str
    measure: Callable[[Iterable[Batch]], dict[str, Tensor]]
    receive: Callable[[Mapping[str, Tensor]], None]
    depends: tuple[nn.Module, ...] = ()
    data: Literal["train", "teacher"] = "teacher"
    key: tuple[str | int | float, ...] = ()
    stand_in: Callable[[int], Mapping[str, Tensor]] | None = None


@dataclass(frozen=True, slots=True)
class AnswerStage:
    """Something asked about each sample once and read again in every step: adversarial images, say.

    It is kept in a store as a teacher's answers are: several processes may make it together, who is
    interrupted goes on, and a store of anything else is refused.

    Args:
        name: what the stage is called in logs and files.
        ask: answers as a teacher does, with a row of ``logits`` for each sample, whatever its
            batch; it is asked about samples as they are when they are tested.
        receive: takes what reads the rows of samples by their ids, (samples,).
        depends: the networks that the answers depend on.
        data: ask about what the student learns from, or what the ``teacher`` learned from.
        key: what else they depend on, in plain values.
        dtype: the format in which they are kept.
        folder: where; default: beside the results of the other stages.
    """

    name: str
    ask: TeacherLike
    receive: Callable[[Callable[[Tensor], Tensor]], None]
    depends: tuple[nn.Module, ...] = ()
    data: Literal["train", "teacher"] = "train"
    key: tuple[str | int | float, ...] = ()
    dtype: Literal["fp32", "fp16", "bf16"] = "fp16"
    folder: Path | None = None


Stage = FitStage | SurveyStage | AnswerStage
"""What a system needs before it can be fitted."""


def loss_balance(
    student: Outputs, terms: Mapping[str, Tensor], weights: Mapping[str, float]
) -> Balance:
    """How hard each term pulls at the student, and whether with the task or against it.

    A term's gradient is taken where it reads the student: at the logits, or at the taps if it reads
    features only. The numbers are those of the whole batch, over all processes.

    Args:
        student: what the student said, with its graph, which is kept.
        terms: the unweighted terms; ``"task"`` is what the others are compared with.
        weights: factor of each term; 1 for those not named.

    Returns:
        For each term ``weighted``, its weighted value, ``gradient_norm``, the norm of the weighted
        gradient, and ``cosine``, that gradient's with the task's at the same place; NaN where one
        of them is zero or the task's does not reach the place.
    """
    places = [x for x in (student.logits, *student.features.values()) if x.requires_grad]
    weighted = {name: weights.get(name, 1.0) * value for name, value in terms.items()}
    pulls = {name: _gradients(value, places) for name, value in weighted.items()}
    task = pulls.get("task", [None] * len(places))
    balance: Balance = {}
    for name, gradients in pulls.items():
        # Logits, the first place, lie behind the taps: what reads them pulls at both.
        reads = [0] if gradients and gradients[0] is not None else range(len(places))
        sums = torch.zeros(3, dtype=torch.float64, device=student.logits.device)
        for i in reads:
            mine, theirs = gradients[i], task[i]
            if mine is not None:
                mine = mine.double()
                theirs = torch.zeros_like(mine) if theirs is None else theirs.double()
                products = (mine * mine, theirs * theirs, mine * theirs)
                sums += torch.stack([product.sum() for product in products])
        squares, task_squares, product = all_sum(sums)
        processes = all_sum(torch.ones_like(squares))
        balance[name] = {
            "weighted": weighted[name].detach().double(),
            # Every rank's gradient is that of the sum of the ranks' equal losses.
            "gradient_norm": squares.sqrt() / processes,
            "cosine": product / (squares * task_squares).sqrt(),
        }
    return balance


def _gradients(value: Tensor, places: list[Tensor]) -> list[Tensor | None]:
    if not value.requires_grad:
        return [None] * len(places)
    return list(torch.autograd.grad(value, places, retain_graph=True, allow_unused=True))
