"""The head of SSKD's teacher: how it is fitted, and the teacher that has it.

The head learns to tell which sample a transformed copy comes from; the teacher below stays as it
is, in evaluation mode and without gradient. *What is saved*: the head, and how many steps it took.
"""

from typing import ClassVar, final

import torch
from torch import Tensor, nn

from congener.errors import RecipeError
from congener.losses import SSKDLoss, sskd_head_loss
from congener.ops.spatial import pooled
from congener.system import System
from congener.systems.probe import check_feature, probe
from congener.systems.sskd_views import VIEWS, Views
from congener.task import Task
from congener.teachers import FrozenTeacher
from congener.types import Batch, Outputs, Progress, StepResult

__all__ = ["SSKDHead", "SSKDTeacher", "build_head"]


def build_head(network: nn.Module, task: Task, tap: str) -> nn.Sequential:
    """Linear, ReLU, Linear, as wide as the feature at a tap of the network.

    Raises:
        TapError: no such tap, or no feature with channels there.
    """
    feature = probe(network, task, [tap]).features[tap]
    check_feature(tap, feature)
    width, dtype = feature.shape[1], feature.dtype
    return nn.Sequential(
        nn.Linear(width, width, dtype=dtype), nn.ReLU(), nn.Linear(width, width, dtype=dtype)
    )


@final
class SSKDHead(System):
    """Fits the head of a teacher that stays as it is.

    Args:
        head: what is fitted.
        teacher: the frozen teacher, with the tap that the head reads.
        tap: that tap.
        views: makes the views.
    """

    name = "sskd_head"
    paper = SSKDLoss.paper
    equation = "L_head = −mean over copies m of log softmax(Aᵗₘ)ᵢ₍ₘ₎"
    batch_coupled = True
    sources: ClassVar = {}

    steps: Tensor

    def __init__(self, head: nn.Module, teacher: FrozenTeacher, *, tap: str, views: Views) -> None:
        super().__init__()
        self.student, self.teacher = head, None
        self.frozen, self.tap, self._views = teacher, tap, views
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def extra_repr(self) -> str:
        """What the fitted head depends on beside the teacher."""
        return f"tap={self.tap!r}, transform={self._views.transform!r}, crop={self._views.crop}"

    def views(self, batch: Batch, progress: Progress) -> Batch:
        """Four views of each sample."""
        return self._views(batch, progress)

    def observe(self, batch: Batch) -> Outputs:
        """The head's outputs, as logits; no gradient flows into the teacher."""
        feature = self.frozen.to(batch["index"].device)(batch).features[self.tap]
        return Outputs(self.student(pooled(feature)))

    def score(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress
    ) -> StepResult:
        """How well copies are matched with the samples of the batch."""
        if self.training:
            self.steps += 1
        loss = sskd_head_loss(student.logits, views=VIEWS)
        return StepResult(loss, {"head": loss})


class SSKDTeacher:
    """A frozen teacher with its fitted head; it is no module, as every teacher.

    Args:
        fitting: the head's system.
    """

    def __init__(self, fitting: SSKDHead) -> None:
        self.fitting, self.networks = fitting, fitting.frozen.networks

    def __call__(self, batch: Batch) -> Outputs:
        """The logits and, as the feature ``"head"``, the head's outputs, without gradient.

        Raises:
            RecipeError: the head was not fitted.
        """
        if not self.fitting.steps:
            raise RecipeError(
                "The teacher's head of SSKD is not fitted yet; call "
                "congener.engine.prepare(system, task, config) first."
            )
        said = self.fitting.frozen(batch)
        with torch.no_grad():
            rows = self.fitting.student(pooled(said.features[self.fitting.tap]))
        return Outputs(said.logits, {"head": rows})

    def to(self, device: torch.device) -> "SSKDTeacher":
        """Move the teacher and its head to a device."""
        self.fitting.frozen.to(device)
        self.fitting.student.to(device)
        return self
