"""What the doctor says, and what it looks at."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from congener.assembly import Assembly
from congener.engine.feed import seeded
from congener.recipe import Recipe, TeacherSpec
from congener.system import System, TeacherLike
from congener.taps import still
from congener.task import Task
from congener.teachers import FrozenTeacher, TeacherGroup
from congener.types import Batch

__all__ = ["BROKEN", "Finding", "Patient", "network_of", "untouched", "without_trace"]

BROKEN = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What networks, losses and data sets raise that do not work."""


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
            system = self.assembly.sketch(arm, self.teacher)
            source = network_of(system.teacher)
            if described.learns_from is not None and source is not None:
                _move(source)
            yield arm, system.train()

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """A network's logits in evaluation mode; its modes stay as they are."""
        with still(model), torch.no_grad():
            return self.task.logits(self.task.call(model, batch)).float()


def network_of(teacher: TeacherLike | None, of: str | None = None) -> nn.Module | None:
    """The network that a term asks, or ``None`` where it asks more than a network."""
    if isinstance(teacher, TeacherGroup):
        teacher = teacher.main if of is None else teacher.others.get(of)
    return teacher.model if isinstance(teacher, FrozenTeacher) else None


def _move(network: nn.Module) -> None:
    """Off the student's own weights, as training would move what the student learns from."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1 * parameter.abs().mean())


@contextmanager
def untouched(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Leave networks as they were: values, modes, gradients' switches, device; and the draws."""
    kept = [
        (
            network,
            next((p.device for p in network.parameters()), torch.device("cpu")),
            {name: value.clone() for name, value in network.state_dict().items()},
            {module: module.training for module in network.modules()},
            {parameter: parameter.requires_grad for parameter in network.parameters()},
        )
        for network in networks
    ]
    try:
        with seeded(0):
            yield
    finally:
        for network, device, values, modes, switches in kept:
            network.to(device).load_state_dict(values)
            for module, training in modes.items():
                module.training = training
            for parameter, wanted in switches.items():
                parameter.requires_grad_(wanted)


def without_trace(batch: Batch) -> Batch:
    """A copy whose tensors nobody else holds."""
    return {k: v.clone() if torch.is_tensor(v) else v for k, v in batch.items()}
