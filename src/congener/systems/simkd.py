r"""Knowledge Distillation with the Reused Teacher Classifier, SimKD (Chen et al., CVPR 2022).

The student does not learn to classify: it keeps the teacher's classifier as it is and learns to
feed it. A projector takes its last map to the teacher's, and matching the two is all there is.

    total = meanᵢ ‖ P(Fˢᵢ) − Fᵗᵢ ‖² / D          prediction = teacher's classifier( mean of P(Fˢ) )

What it owns beyond a loss
    The student that is evaluated and exported, :class:`SimKDStudent`: the network up to a tap, the
    projector P, and a frozen copy of the teacher's classifier. *Up to a tap* means that all of the
    network runs and the tensor at the tap is taken. What lies behind it, such as the network's own
    classifier, has no say: its weights are frozen as they come, and stay in the state.

Differences from the authors' code, and what is ours
    None in value where the maps keep the size of the probed sample: theirs runs the teacher at
    test time too, for the size of its map, to which a larger map of the student is pooled first.
    That the teacher's classifier reads the average of the tapped map is checked on a sample when
    the system is built, and refused where it does not. Vectors are taken as maps of one position
    and series as maps one position high. Gradients accumulate with the projector's normalisation
    over the whole batch.

What is saved, what is exported
    Both times :class:`SimKDStudent`: backbone, projector and the copy of the classifier.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from congener.errors import RecipeError, ShapeError, did_you_mean
from congener.losses import SimKDLoss, SimKDProjector, simkd_loss
from congener.system import System
from congener.systems.probe import classifies, first_sample, last_linear, probe
from congener.taps import Taps, bare
from congener.task import Task
from congener.teachers import FrozenTeacher
from congener.types import Batch, Outputs, Progress, StepResult

__all__ = ["SimKD", "SimKDStudent"]


@final
class SimKD(System):
    """A student that learns to feed the teacher's classifier, without labels.

    Args:
        student: the network to train; ``system.student`` is it within a :class:`SimKDStudent`.
        teacher: the trained network; it is frozen.
        task: how networks are called.
        student_tap: the student's last map, (batch, channels, height, width); or (batch, channels)
            or (batch, channels, length).
        teacher_tap: the map that the teacher averages and classifies, or the vector that it
            classifies.
        classifier: path of the teacher's module that reads the average; default: the last linear
            layer with as many outputs as classes.
        factor: how many times fewer channels the projector's middle has than the teacher's map.

    Raises:
        RecipeError: a classifier that is not there, or that does not give the teacher's logits for
            the average at the tap; a student of which nothing lies before its tap.
        ShapeError: a tap that gives no feature of the shapes above.
        TapError: a tap that does not exist.
        ValueError: a factor that leaves the projector no channels.
    """

    name = "simkd"
    paper = SimKDLoss.paper
    equation = SimKDLoss.equation
    sources: ClassVar = {
        "student_tap": "yours: the last map in your student",
        "teacher_tap": "yours: the map that your teacher averages and classifies",
        "classifier": "ours: the last linear layer of as many outputs as classes",
        "factor": "authors' code: 2",
    }

    student: "SimKDStudent"

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        task: Task,
        student_tap: str,
        teacher_tap: str,
        classifier: str | None = None,
        factor: int = 2,
    ) -> None:
        super().__init__()
        self.student_tap, self.teacher_tap = student_tap, teacher_tap
        self.classifier, self.factor = classifier, factor
        self.task = task
        self.teacher = FrozenTeacher(teacher, task, [teacher_tap])
        theirs = probe(teacher, task, [teacher_tap])
        their_map = _as_map(theirs.features[teacher_tap], teacher_tap)
        reused = deepcopy(_classifier(teacher, classifier, theirs.logits.shape[-1])).eval()
        if not classifies(reused, their_map, theirs.logits):
            raise RecipeError(
                f"The teacher's classifier, applied to the average of what its tap {teacher_tap!r} "
                "gives, does not give the teacher's logits; as `teacher_tap`, name the map that it "
                "averages (or the vector that it classifies), and as `classifier` the module that "
                "reads this."
            )
        mine = probe(student, task, [student_tap]).features[student_tap]
        my_channels, their_channels = _as_map(mine, student_tap).shape[1], their_map.shape[1]
        projector = SimKDProjector(my_channels, their_channels, factor)
        _freeze_behind(student, task, student_tap)
        self.student = SimKDStudent(
            student, projector, reused, tap=student_tap, size=tuple(their_map.shape[2:])
        )

    def weights(self, progress: Progress) -> dict[str, float]:
        """The factor of each term in the total: there is one term."""
        return {"simkd": 1.0}

    def observe(self, batch: Batch) -> Outputs:
        """Run the student up to its tap; its own logits are not used."""
        run = self.student.backbone
        result, features = self.student.taps(lambda: self.task.call(run, batch))
        return Outputs(self.task.logits(result), features)

    def score(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress
    ) -> StepResult:
        """The projected map against the teacher's."""
        assert teacher is not None
        projected = self.student.project(student.features[self.student_tap])
        target = _as_map(teacher.features[self.teacher_tap], self.teacher_tap)
        loss = simkd_loss(projected, target)
        return StepResult(loss, {"simkd": loss})

    def extra_repr(self) -> str:
        """Name the hyper-parameters."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.sources)


@final
class SimKDStudent(nn.Module):
    """What SimKD exports: a network up to a tap, a projector, and the teacher's classifier.

    Args:
        backbone: the student.
        projector: takes its map to the teacher's channels.
        classifier: reads the average of the projected map; it is frozen and stays in evaluation
            mode.
        tap: the backbone's map.
        size: height and width of the teacher's map, to which a larger one is pooled first.
    """

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        classifier: nn.Module,
        *,
        tap: str,
        size: Sequence[int],
    ) -> None:
        super().__init__()
        self.backbone, self.projector = backbone, projector
        self.classifier = classifier.requires_grad_(False).eval()
        self.tap, self.size = tap, tuple(size)
        self.taps = Taps(backbone, [tap])

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """The teacher's classifier on the projected map of what the backbone is given."""
        _, features = self.taps(lambda: self.backbone(*inputs, **named))
        pooled = self.project(features[self.tap]).mean(dim=(2, 3))
        weight = next(self.classifier.parameters(), pooled)
        logits: Tensor = self.classifier(pooled.to(weight.dtype))
        return logits

    def project(self, feature: Tensor) -> Tensor:
        """A tapped feature as a map of the teacher's channels, no larger than the teacher's."""
        feature = _as_map(feature, self.tap)
        size = min(feature.shape[2], self.size[0]), min(feature.shape[3], self.size[1])
        if feature.shape[2:] != size:
            feature = F.adaptive_avg_pool2d(feature, size)
        projected: Tensor = self.projector(feature)
        return projected

    def train(self, mode: bool = True) -> "SimKDStudent":
        """Set the mode of all but the classifier."""
        super().train(mode)
        self.classifier.eval()
        return self

    def extra_repr(self) -> str:
        """Name the tap and the size."""
        return f"tap={self.tap!r}, size={self.size}"


def _as_map(feature: Tensor, tap: str) -> Tensor:
    """A vector or a series as a map; a map as it is."""
    if not 2 <= feature.dim() <= 4:
        raise ShapeError(
            f"The tap {tap!r} gives {tuple(feature.shape)}; SimKD matches (batch, channels, "
            "height, width), (batch, channels, length) or (batch, channels): tap another module."
        )
    while feature.dim() < 4:
        feature = feature.unsqueeze(2)
    return feature


def _classifier(teacher: nn.Module, path: str | None, classes: int) -> nn.Module:
    """The module at a path, or the last linear layer of so many classes."""
    if path is None:
        layer = last_linear(teacher, classes)
        if layer is None:
            raise RecipeError(
                f"The teacher has no linear layer of {classes} outputs to reuse; name the module "
                "that classifies by its path, `classifier`."
            )
        return layer
    modules: dict[str, nn.Module] = dict(bare(teacher).named_modules())
    if not path or path not in modules:
        known = [name for name in modules if name]
        raise RecipeError(f"The teacher has no module {path!r}; {did_you_mean(path, known)}")
    return modules[path]


def _freeze_behind(student: nn.Module, task: Task, tap: str) -> None:
    """Freeze the parameters that the tensor at a tap does not depend on."""
    twin = deepcopy(student).cpu().eval()
    with torch.enable_grad():
        _, features = Taps(twin, [tap])(lambda: task.call(twin, first_sample(task)))
    trained = {name: p for name, p in twin.named_parameters() if p.requires_grad}
    if not features[tap].requires_grad:
        raise RecipeError(
            f"Nothing before the student's tap {tap!r} can be trained; tap a module behind some of "
            "its layers."
        )
    wanted = list(trained.values())
    reached = torch.autograd.grad(features[tap].sum(), wanted, allow_unused=True)
    gradients: dict[str, Tensor | None] = dict(zip(trained, reached, strict=True))
    for name, gradient in gradients.items():
        if gradient is None:
            student.get_parameter(name).requires_grad_(False)
