"""The table of the public systems. What is not listed here fails the build."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tests.systems.tiny import TinyTask, student_net, teacher_net
from torch import nn

from congener.losses import KDLoss, SPLoss
from congener.system import System
from congener.systems import Distillation
from congener.task import Task
from congener.types import Term


@dataclass(frozen=True)
class SystemCase:
    """One public system in a tiny setting.

    ``build`` makes it from a task, a student and a teacher; ``student`` makes the bare student
    (and takes ``norm=False``), ``teacher`` the untrained teacher. ``ranks``: whether two processes
    train as one does, or only run (what couples samples within a process says so in ``why``).
    """

    covers: tuple[str, ...]
    build: Callable[[Task, nn.Module, nn.Module], System]
    student: Callable[..., nn.Module] = student_net
    teacher: Callable[[], nn.Module] = teacher_net
    task: Callable[..., Task] = TinyTask
    ranks: Literal["exact", "run"] = "exact"
    why: str = ""
    lr: float = 2e-2


def distillation(task: Task, student: nn.Module, teacher: nn.Module) -> System:
    terms = [Term(KDLoss(temperature=4), 0.5), Term(SPLoss(), 10.0, "hidden", "hidden")]
    return Distillation(student, teacher, terms, task=task, task_weight=0.5)


def alone(task: Task, student: nn.Module, teacher: nn.Module) -> System:
    return Distillation(student, None, [], task=task)


SYSTEMS: dict[str, SystemCase] = {
    "distillation": SystemCase(("Distillation",), distillation),
    "distillation, student alone": SystemCase((), alone),
}
