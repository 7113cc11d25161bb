r"""Hard pseudo-labels, for tasks whose labels are no single class: the control of distillation.

What a teacher answers about a sample without a label is taken for its label, so that the student
learns from the pool as from labelled data, and from nothing else of the teacher. Whatever a
distillation adds, it must add to this.

    total = task_loss(S(x), y),  y the label where there is one, else what the teacher answers

Answers are the task's: boxes that a detector is at least half sure of, after suppression. Of one
class for each sample, :class:`congener.losses.HardLabelLoss` does the same.

*What is saved, what is exported*: the student.
"""

from typing import final

import torch
from torch import nn

from congener.errors import RecipeError
from congener.system import System
from congener.task import Task
from congener.teachers import FrozenTeacher
from congener.types import Batch, Outputs, Progress, StepResult

__all__ = ["PseudoLabel"]


@final
class PseudoLabel(System):
    """A student that learns from labels, and from a teacher's answers as if they were labels.

    Args:
        student: the network to train.
        teacher: the trained network.
        task: the supervised loss, and how a network labels samples.

    Raises:
        RecipeError: a task whose networks cannot label samples.
    """

    name = "pseudo_label"
    equation = "L = task(S(x), y),  y = T's answer where there is no label"

    def __init__(self, student: nn.Module, teacher: nn.Module, *, task: Task) -> None:
        super().__init__()
        if type(task).pseudo_labelled is Task.pseudo_labelled:
            raise RecipeError(
                f"{type(task).__name__} does not turn what a network answers into labels; where "
                "each sample has one class, take the loss 'hard_label'."
            )
        self.student, self.task = student, task
        self.teacher = _Labeller(FrozenTeacher(teacher, task))

    def needs_live_teacher(self) -> str:
        """Labels are answers about what the step sees."""
        return "its answers, not its logits, are what is learnt"

    def views(self, batch: Batch, progress: Progress) -> Batch:
        """The batch with its labels."""
        assert isinstance(self.teacher, _Labeller)
        return self.task.pseudo_labelled(batch, self.teacher.frozen.model.eval())

    def observe(self, batch: Batch) -> Outputs:
        """Run the student."""
        return Outputs(self.task.logits(self.task.call(self.student, batch)))

    def score(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress
    ) -> StepResult:
        """The supervised loss."""
        return self.weighted({"task": self.task.loss(student.logits, batch)}, progress)


class _Labeller:
    """A teacher that labels and says nothing else; its network runs as it is."""

    def __init__(self, frozen: FrozenTeacher) -> None:
        self.frozen = frozen

    def __call__(self, batch: Batch) -> Outputs:
        return Outputs(torch.zeros(len(batch["index"]), 0, device=batch["index"].device))

    def to(self, device: torch.device) -> "_Labeller":
        """Move the network to a device."""
        self.frozen.to(device)
        return self
