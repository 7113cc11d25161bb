"""Answers to the words of a loss that no batch holds and no network says.

Most losses read what :class:`congener.systems.Distillation` has at hand: logits, features, labels.
Some ask for more, such as ND for the teacher's class means. Each such word has one source, which is
made for one pair of taps; what it trains or has measured is a part of the system.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, final

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from congener.errors import RecipeError
from congener.losses import adain, ofd_margin
from congener.ops.projectors import ConvNorm
from congener.ops.spatial import positions
from congener.system import Stage
from congener.systems.probe import classifies, last_linear
from congener.taps import Tail, bare
from congener.task import Task
from congener.teachers import FrozenTeacher
from congener.types import Batch, Progress

__all__ = ["Margins", "Pair", "RestyledLogits", "Seen", "Source", "TeacherClassifier"]


class Pair(NamedTuple):
    """A pair of taps that a term compares, and what is known of it before training.

    ``term`` is the term's name and ``tap`` the teacher's; features and logits are those of one
    sample.
    """

    term: str
    loss: nn.Module
    teacher: nn.Module
    task: Task
    tap: str
    student_feature: Tensor
    teacher_feature: Tensor
    teacher_logits: Tensor


class Seen(NamedTuple):
    """A batch, what the networks gave for it at the pair of taps, and when."""

    student_feature: Tensor
    teacher_feature: Tensor
    batch: Batch
    progress: Progress
    student_logits: Tensor
    teacher_logits: Tensor


class Source(nn.Module, ABC):
    """Answers some words of a loss, for one pair of taps.

    Abstract: a subclass is final, takes a :class:`Pair`, and refuses one that it cannot serve.

    Attributes:
        words: the arguments of a loss that it answers.
        lone: whether its term can have one pair of taps only.
        live: why the teacher must run on each batch; empty where its earlier answers will do.
    """

    words: ClassVar[tuple[str, ...]]
    lone: ClassVar[bool] = False
    live: ClassVar[str] = ""

    def stages(self) -> Sequence[Stage]:
        """What must be measured before training."""
        return ()

    @abstractmethod
    def forward(self, now: Seen) -> dict[str, Any]:
        """The answers for a batch; a feature among them takes the place of the tapped one.

        Raises:
            RecipeError: its stages were not run.
        """


@final
class RestyledLogits(Source):
    """What the rest of the teacher says to its map in the student's channel statistics.

    The rest runs with gradient to its input alone, in evaluation mode, and once more in the
    backward pass instead of keeping its activations. Where the channels differ, a 1x1 convolution
    without bias, batch normalisation and a ReLU come first, initialised as the authors' (SRRL).
    """

    words = ("restyled_logits",)
    live = "the teacher goes on from a map in the statistics of what the student says now"

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        student, teacher = pair.student_feature, pair.teacher_feature
        for name, feature in (("student", student), ("teacher", teacher)):
            if positions(feature).shape[2] < 2:
                raise RecipeError(
                    f"The term {pair.term!r} compares statistics of maps, and a tap behind the "
                    f"last map has none (its {name} tap gives {tuple(feature.shape)}); tap an "
                    "earlier module."
                )
        self.projector = None
        if student.shape[1] != teacher.shape[1]:
            self.projector = ConvNorm(student.shape[1], teacher.shape[1], relu=True)
            nn.init.kaiming_normal_(self.projector.conv.weight, mode="fan_out")
        self._teacher = FrozenTeacher(pair.teacher, pair.task)
        self._tail = Tail(pair.teacher, pair.tap)

    def forward(self, now: Seen) -> dict[str, Any]:
        """The teacher's logits behind its re-styled map."""
        student_feature = now.student_feature
        if self.projector is not None:  # statistics know no place: any map is one of one column
            student_feature = self.projector(positions(student_feature).unsqueeze(3))
        logits = checkpoint(
            self._rest, student_feature, now.teacher_feature, now.batch,
            use_reentrant=False, preserve_rng_state=False,
        )  # fmt: skip
        return {"restyled_logits": logits}

    def _rest(self, student_feature: Tensor, teacher_feature: Tensor, batch: Batch) -> Tensor:
        model, task = self._teacher.model.eval(), self._teacher.task
        restyled = adain(student_feature, teacher_feature).to(teacher_feature.dtype)
        return self._tail(restyled, lambda: task.logits(task.call(model, batch)))


@final
class TeacherClassifier(Source):
    """The teacher's last linear layer, which SRRL has read the student's feature.

    That it reads the mean of what the teacher is tapped at is tried on a sample.
    """

    words = ("classifier_weight", "classifier_bias")

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        layer = last_linear(pair.teacher, pair.teacher_logits.shape[-1])
        if layer is None:
            raise RecipeError(
                f"The term {pair.term!r} has the teacher's classifier read the student's feature, "
                "but the teacher has no nn.Linear that gives its logits; choose another loss."
            )
        if not classifies(layer, pair.teacher_feature, pair.teacher_logits):
            raise RecipeError(
                f"The term {pair.term!r} has the teacher's classifier read the student's feature, "
                f"but the mean of what the teacher's tap {pair.tap!r} gives, "
                f"{tuple(pair.teacher_feature.shape)}, does not make it give the teacher's logits; "
                "tap the map or feature that the classifier reads."
            )
        self._classifier = (layer,)  # in a tuple, since it is no part of the system

    def forward(self, now: Seen) -> dict[str, Any]:
        """The layer's parameters."""
        (layer,) = self._classifier
        return {"classifier_weight": layer.weight, "classifier_bias": layer.bias}


@final
class Margins(Source):
    """OFD's margins, by the batch normalisation that the teacher is tapped at."""

    words = ("margins",)

    margin: Tensor

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        name = pair.tap.removesuffix(":output")
        norm = dict(bare(pair.teacher).named_modules()).get(name)
        if not isinstance(norm, _BatchNorm) or norm.weight is None:
            found = "an input" if norm is None else type(norm).__name__
            raise RecipeError(
                f"The term {pair.term!r} reads its margins off a batch normalisation before a "
                f"ReLU, but the teacher's tap {pair.tap!r} is {found}; tap the normalisation."
            )
        self.register_buffer("margin", ofd_margin(norm.weight, norm.bias))

    def forward(self, now: Seen) -> dict[str, Any]:
        """The margin of the level."""
        return {"margins": self.margin}
