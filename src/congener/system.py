"""The contract of a system: everything that is trained together, and its loss."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from congener.ops.collectives import all_sum
from congener.types import Batch, Outputs, Progress, StepResult

__all__ = ["Balance", "System", "TeacherLike", "loss_balance"]


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
        student: the bare student; it is what is evaluated and exported.
        teacher: never a submodule, so neither ``train()``, ``state_dict()`` nor DDP reaches it.
    """

    student: nn.Module
    teacher: TeacherLike | None

    def weights(self, progress: Progress) -> dict[str, float]:
        """Factor of each term in the total, for the log; a term that is not named has 1."""
        return {}

    @abstractmethod
    def observe(self, batch: Batch) -> Outputs:
        """Run the student on a prepared batch, with gradient."""

    @abstractmethod
    def score(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress
    ) -> StepResult:
        """The loss of what was observed, and its terms by name."""

    def forward(
        self, batch: Batch, progress: Progress, *, balance: bool = False
    ) -> tuple[Tensor, dict[str, Tensor], Balance]:
        """Teacher first: its activations are gone before the student's graph grows.

        Returns:
            The total, the terms, and with ``balance`` the :func:`loss_balance`, else nothing.
        """
        teacher = None if self.teacher is None else self.teacher(batch)
        student = self.observe(batch)
        total, terms = self.score(student, teacher, batch, progress)
        shares = loss_balance(student, terms, self.weights(progress)) if balance else {}
        return total, terms, shares


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
