r"""CSKD in the recipe of its authors' trainer (Ham, Kim, Lee, Lee and Kim, arXiv 2023).

Each image is seen twice, weakly and strongly augmented, by both networks. CSKD's and CSWT's losses
compare the class columns of both views; of the weak one, which classes and which samples are
predicted alike is compared as well. The trainer is that of MLLD (Jin et al., CVPR 2023) with
CSKD's losses in it.

.. math::
    L = w_{ce} [CE(w) + CE(s)] + w_{kd} \big( m [L_{CS}(w, T) + L_{CS}(w, T_i)]
        + [L_{CS}(s, T) + L_{CS}(s, T_i)]
        + m_c [L_{cc}(w, T) + L_{cc}(w, T_i)] + m [L_{bc}(w, T) + L_{bc}(w, T_i)] \big)

w is the weak view, s the strong one. T_i are CSWT's temperatures, of the weak view, for both views.

The factors m and m_c
    m is the share of samples of which the teacher is no surer than of the median sample of the
    batch, and m_c the share of classes whose probabilities, summed over the batch, are no more than
    the median class'. The authors' code means to select those samples and classes, but multiplies
    losses that are scalars already by the masks: **the factors select nothing**, and are 1/2 for an
    even number without ties, a little more for an odd one. ``median_factors=False`` has 1.

What it owns beyond a loss
    Nothing that is trained. It runs both networks on two views, one after the other, so that batch
    normalisation sees each view by itself, as in the authors' code. The task makes the views: the
    image task does with the option ``strong``.

Differences from the authors' code
    None in value (recovered copy: llieeai/lud, 2704bb2), but for samples that all agree equally, of
    which its temperatures are NaN, and for samples without a label, which only the supervised
    losses skip. Medians, temperatures and columns are those of the batch of all processes; in the
    code, too, they are of the whole batch. Whether the paper's tables come from this trainer or
    from plain CSKD is not known.

What is saved, what is exported
    The student alone.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from congener.errors import RecipeError
from congener.losses import (
    CSKDLoss,
    cskd_batch_loss,
    cskd_class_loss,
    cskd_loss,
    cswt_temperatures,
)
from congener.ops.checks import check_temperature, check_temperature_range
from congener.ops.collectives import all_sum, gather_rows
from congener.ops.precision import upcast
from congener.system import System
from congener.task import Task
from congener.teachers import FrozenTeacher
from congener.types import Batch, Outputs, Progress, StepResult

__all__ = ["TwoViewCSKD"]


@final
class TwoViewCSKD(System):
    """CSKD on a weak and a strong view of each image.

    Args:
        student: the network to train.
        teacher: the trained network.
        task: how networks are called, and the supervised loss; its training batches have
            ``strong_image`` beside ``image``.
        temperature: T.
        alpha: factor within L_CS.
        low_temperature: of the sample on which student and teacher agree best.
        high_temperature: of the sample on which they agree least.
        median_factors: scale terms of the weak view by m and m_c, as in the authors' code; False
            leaves them as they are.
        task_weight: factor of the supervised losses of both views.
        kd_weight: factor of all others.

    Raises:
        RecipeError: no teacher; at the first batch, no second view.
        ValueError: a temperature ≤ 0, or low above high.
    """

    name = "cskd_two_view"
    paper = CSKDLoss.paper
    equation = (
        "L = CE(w) + CE(s) + m·[L_CS(w) + L_CSWT(w)] + L_CS(s) + L_CSWT(s) "
        "+ m_c·[cc(w, T) + cc(w, Tᵢ)] + m·[bc(w, T) + bc(w, Tᵢ)]"
    )
    batch_coupled = True
    sources: ClassVar = {
        **dict.fromkeys(("temperature", "alpha"), "authors' code, recovered"),
        **dict.fromkeys(("low_temperature", "high_temperature"), "authors' code, recovered"),
        **dict.fromkeys(("task_weight", "kd_weight"), "authors' code, recovered"),
        "median_factors": "authors' code, recovered: on; they select nothing",
    }

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        task: Task,
        temperature: float = 4.0,
        alpha: float = 2.0,
        low_temperature: float = 2.0,
        high_temperature: float = 6.0,
        median_factors: bool = True,
        task_weight: float = 1.0,
        kd_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if teacher is None:
            raise RecipeError("The system 'cskd_two_view' needs a teacher to learn from; name one.")
        check_temperature(temperature)
        check_temperature_range(low_temperature, high_temperature)
        self.student, self.task = student, task
        self.teacher = _TwoViewTeacher(FrozenTeacher(teacher, task))
        self.temperature, self.alpha = temperature, alpha
        self.low_temperature, self.high_temperature = low_temperature, high_temperature
        self.median_factors = median_factors
        self.task_weight, self.kd_weight = task_weight, kd_weight

    def extra_repr(self) -> str:
        """The hyper-parameters."""
        return ", ".join(f"{name}={getattr(self, name)}" for name in self.sources)

    def needs_live_teacher(self) -> str:
        """What the teacher is asked changes with every step."""
        return "the teacher answers to two views that are drawn anew, each with its own reply"

    def weights(self, progress: Progress) -> dict[str, float]:
        """The factor of each term in the total."""
        supervised = dict.fromkeys(("task", "task_strong"), self.task_weight)
        return supervised | dict.fromkeys(("weak", "strong", "class", "batch"), self.kd_weight)

    def observe(self, batch: Batch) -> Outputs:
        """The student's logits of the weak view, and of the strong one as ``strong``."""
        return _both_views(self._logits, batch)

    def _logits(self, batch: Batch) -> Tensor:
        return self.task.logits(self.task.call(self.student, batch))

    def score(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress
    ) -> StepResult:
        """The losses of both views."""
        assert teacher is not None
        weak = student.logits, teacher.logits
        strong = student.features["strong"], teacher.features["strong"]
        each = cswt_temperatures(
            *weak, low_temperature=self.low_temperature, high_temperature=self.high_temperature
        )
        columns = partial(cskd_loss, alpha=self.alpha)
        samples, classes = self._factors(teacher.logits)

        def twice(loss: Callable[..., Tensor], logits: tuple[Tensor, Tensor]) -> Tensor:
            return loss(*logits, temperature=self.temperature) + loss(*logits, temperature=each)

        terms = {
            "task": self.task.loss(weak[0], batch),
            "task_strong": self.task.loss(strong[0], batch),
            "weak": samples * twice(columns, weak),
            "strong": twice(columns, strong),
            "class": classes * twice(cskd_class_loss, weak),
            "batch": samples * twice(cskd_batch_loss, weak),
        }
        return self.weighted(terms, progress)

    def _factors(self, teacher_logits: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """The authors' m and m_c, of the batch of all processes."""
        if not self.median_factors:
            return 1.0, 1.0
        with torch.no_grad():
            probabilities = upcast(teacher_logits)[0].softmax(dim=1)
            confidence = gather_rows(probabilities.amax(dim=1))[0]
            return _share_to_median(confidence), _share_to_median(all_sum(probabilities.sum(dim=0)))


def _share_to_median(values: Tensor) -> Tensor:
    """The share of values that are no larger than the median (the lower one, of two)."""
    return (values <= values.median()).to(values.dtype).mean()


def _both_views(logits: Callable[[Batch], Tensor], batch: Batch) -> Outputs:
    if "strong_image" not in batch:
        raise RecipeError(
            "The system 'cskd_two_view' learns from two views of an image, but the batch has no "
            "'strong_image'; add a second view to the task, as in task: {strong: rand_augment}."
        )
    strong = batch | {"image": batch["strong_image"]}
    return Outputs(logits(batch), {"strong": logits(strong)})


class _TwoViewTeacher:
    """A teacher that is asked about both views."""

    def __init__(self, teacher: FrozenTeacher) -> None:
        self.teacher = teacher
        self.networks = teacher.networks

    def __call__(self, batch: Batch) -> Outputs:
        return _both_views(lambda view: self.teacher(view).logits, batch)

    def to(self, device: torch.device) -> "_TwoViewTeacher":
        self.teacher.to(device)
        return self
