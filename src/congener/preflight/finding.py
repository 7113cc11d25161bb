"""What the doctor says, and what it looks at."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from congener.assembly import Assembly
from congener.recipe import Recipe, TeacherSpec
from congener.system import System
from congener.task import Task
from congener.types import Batch

__all__ = ["Finding", "Patient", "without_trace"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that would ruin a run without a word.

    Attributes:
        name: of the fault, such as ``dead_tap``.
        where: the arm or the part of the recipe that has it.
        what: the fault, in one sentence.
        measured: how it was seen, with figures.
        fix: the way out.
    """

    name: str
    where: str
    what: str
    measured: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what} (measured: {self.measured}) {self.fix}"


@dataclass(frozen=True)
class Patient:
    """A recipe with its parts built, before anything is trained.

    Attributes:
        recipe: what is described.
        assembly: builds its parts.
        task: its data.
        teacher: the teacher, or ``None`` without one.
        batch: training samples as the first step sees them, on the CPU.
        out: the run folder, which may not exist.
    """

    recipe: Recipe
    assembly: Assembly
    task: Task
    teacher: nn.Module | None
    batch: Batch
    out: Path

    @property
    def taught(self) -> bool:
        """Whether the teacher has its weights already, so that its knowledge can be measured."""
        spec = self.recipe.teacher
        return self.teacher is not None and not (
            isinstance(spec, TeacherSpec) and spec.train is not None
        )

    def systems(self) -> Iterator[tuple[str, System]]:
        """Each arm with its system, on fresh networks, in training mode."""
        for arm, described in self.recipe.all_arms.items():
            student = self.assembly.student(self.recipe.seeds[0])
            teacher = self.teacher
            if described.learns_from is not None:
                teacher = self.assembly.student(self.recipe.seeds[0])
            yield arm, self.assembly.system(arm, student, teacher).train()

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """A network's logits in evaluation mode; its modes stay as they are."""
        modes = {module: module.training for module in model.modules()}
        try:
            with torch.no_grad():
                return self.task.logits(self.task.call(model.eval(), batch)).float()
        finally:
            for module, training in modes.items():
                module.training = training


def without_trace(batch: Batch) -> Batch:
    """A copy whose tensors nobody else holds."""
    return {k: v.clone() if torch.is_tensor(v) else v for k, v in batch.items()}
