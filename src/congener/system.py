"""The contract of a system: everything that is trained together, and its loss."""

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor, nn

from congener.types import Batch, Outputs, Progress, StepResult

__all__ = ["System", "TeacherLike"]


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

    @property
    def weights(self) -> dict[str, float]:
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

    def forward(self, batch: Batch, progress: Progress) -> tuple[Tensor, dict[str, Tensor]]:
        """Teacher first: its activations are gone before the student's graph grows."""
        teacher = None if self.teacher is None else self.teacher(batch)
        return self.score(self.observe(batch), teacher, batch, progress)
