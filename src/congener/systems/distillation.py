"""The default system: a student, a frozen teacher, and weighted terms between them.

    total = task_weight · task_loss + Σᵢ weightᵢ · scheduleᵢ(progress) · lossᵢ

Every published loss that needs nothing but tensors runs through it; so does a student alone (no
teacher, no terms). Where a loss asks for more, such as ND for class means, a source answers it (see
:mod:`congener.systems.sources`); KD++ is then the terms ``kd`` and ``nd``. *What it owns beyond a
loss*: the parameters of the losses that have any, and what the sources train or have measured.
*Frames that the task masks*, such as padding: see :func:`congener.ops.frames.counted_frames`.
*Terms* ``at`` *objects or proposals of an image*: see :mod:`congener.systems.regions`.
*What is saved*: student, losses and sources' answers; *what is exported*: the bare student.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from congener.errors import NonFiniteLossError, RecipeError, did_you_mean
from congener.ops.frames import counted_frames
from congener.system import Stage, System, TeacherLike
from congener.systems.answering import SOURCES
from congener.systems.probe import check_feature, probe
from congener.systems.regions import check_activation, few_regions, words_of_regions
from congener.systems.sources import Pair, Seen, Source
from congener.taps import Taps, statistics_kept
from congener.task import Task
from congener.teachers import FrozenTeacher, TeacherGroup
from congener.types import Batch, Outputs, Progress, StepResult, Term

__all__ = ["Distillation"]

WORDS = {
    "student_logits", "teacher_logits", "student_feature", "teacher_feature",
    "student_features", "teacher_features", "labels", "index", "mask",
}  # fmt: skip


class Distillation(System):
    """A student that learns from labels and from the terms.

    Args:
        student: the network to train.
        teacher: the trained network, or ``None`` for a student alone.
        terms: the distillation terms; their losses are bound by argument name, once, here.
        task: how networks are called, and the supervised loss.
        task_weight: factor of the supervised loss; there is no hidden ``1 - α``.
        teachers: further teachers by name, for terms that learn ``of`` one of them.

    Raises:
        RecipeError: a term without its taps, with taps that it does not read or cannot use, or with
            two names alike; terms without a teacher, or of a teacher that is not there.
        TapError: a tap that does not exist.
    """

    name = "distillation"
    equation = "L = w·task + Σᵢ wᵢ·scheduleᵢ(progress)·lossᵢ"
    sources: ClassVar = {
        "terms": "yours: what the student is to learn",
        "task_weight": "ours: 1; there is no hidden 1 − α",
        "teachers": "ours: none",
    }

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        terms: Sequence[Term],
        *,
        task: Task,
        task_weight: float = 1.0,
        teachers: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if terms and teacher is None:
            raise RecipeError(
                "There are distillation terms but no teacher to distil from; name one."
            )
        self.student = student
        self.task = task
        self.task_weight = task_weight
        self.terms = [_Bound(term, task) for term in terms]
        self._shares = task.shares if any("logits" in " ".join(b.words) for b in self.terms) else ""
        names = [bound.name for bound in self.terms]
        if len({"task", *names}) < 1 + len(names):
            raise RecipeError(
                f"The terms are called {', '.join(names)}; give each a `name` of its own "
                "(and not 'task', which is the supervised loss)."
            )
        self.losses = nn.ModuleDict()
        for name in names:
            if not name or "." in name or hasattr(self.losses, name):
                raise RecipeError(f"A term cannot be called {name!r}; give it another `name`.")
        self.losses.update({bound.name: bound.term.loss for bound in self.terms})
        self._taps = Taps(student, [path for bound in self.terms for path in bound.student])
        self.teacher = None if teacher is None else self._ask(teacher, teachers or {})
        self.answers = nn.ModuleDict()
        for bound in self.terms:
            network = teacher if bound.term.of is None else (teachers or {})[bound.term.of]
            if bound.kinds and network is not None:
                self.answers[bound.name] = bound.answers = self._answers(bound, network)

    def _ask(self, teacher: nn.Module, teachers: Mapping[str, nn.Module]) -> TeacherLike:
        """The teachers that the terms learn from, each with the taps they read."""
        asked: dict[str | None, nn.Module] = {None: teacher} | dict(teachers)
        taps: dict[str | None, list[str]] = {None: []}
        for bound in self.terms:
            if bound.term.of not in asked:
                raise RecipeError(
                    f"The term {bound.name!r} learns of a teacher {bound.term.of!r} that is not "
                    f"there; {did_you_mean(str(bound.term.of), teachers)}"
                )
            taps.setdefault(bound.term.of, []).extend(bound.teacher)
        frozen = {of: FrozenTeacher(asked[of], self.task, paths) for of, paths in taps.items()}
        main = frozen.pop(None)
        others = {of: each for of, each in frozen.items() if of is not None}
        return TeacherGroup(main, others) if others else main

    def _answers(self, bound: "_Bound", teacher: nn.Module) -> nn.ModuleList:
        """For each pair of a term's taps, what answers the further words of its loss."""
        if len(bound.student) > 1 and any(kind.lone for kind in bound.kinds):
            raise RecipeError(
                f"The term {bound.name!r} remembers one pair of taps and has {len(bound.student)}; "
                "write one term, with a loss and a `name` of its own, for each."
            )
        mine = probe(self.student, self.task, bound.student).features
        said = probe(teacher, self.task, bound.teacher)
        for tap, feature in (*mine.items(), *said.features.items()):
            check_feature(tap, feature)
        pairs = [
            Pair(
                bound.name, bound.term.loss, teacher, self.task, theirs,
                mine[path], said.features[theirs], said.logits,
            )
            for path, theirs in zip(bound.student, bound.teacher, strict=True)
        ]  # fmt: skip
        return nn.ModuleList(nn.ModuleList(kind(pair) for kind in bound.kinds) for pair in pairs)

    def _sources(self) -> list[Source]:
        return [each for each in self.answers.modules() if isinstance(each, Source)]

    def stages(self) -> Sequence[Stage]:
        """What the terms need measured before training."""
        return [stage for source in self._sources() for stage in source.stages()]

    def needs_live_teacher(self) -> str:
        """What the sources of its terms say, or the task, where they read logits."""
        return next((why for why in (*(s.live for s in self._sources()), self._shares) if why), "")

    def views(self, batch: Batch, progress: Progress) -> Batch:
        """The batch; where terms read logits, with what the student shares with its teacher."""
        if not self._shares:
            return batch
        with statistics_kept(self.student):
            return self.task.shared(self.student, batch)

    def weights(self, progress: Progress) -> dict[str, float]:
        """The factor of each term in the total."""
        return {"task": self.task_weight} | {b.name: b.weight(progress) for b in self.terms}

    def observe(self, batch: Batch) -> Outputs:
        """Run the student and read its taps."""
        result, features = self._taps(lambda: self.task.call(self.student, batch))
        return Outputs(self.task.logits(result), features)

    def score(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress
    ) -> StepResult:
        """The supervised loss and every term, each on the whole batch."""
        terms = {"task": self.task.loss(student.logits, batch)}
        for bound in self.terms:
            assert teacher is not None
            terms[bound.name] = bound(student, teacher, batch, progress)
        return self.weighted(terms, progress)


class _Bound:
    """A term whose loss arguments are known."""

    def __init__(self, term: Term, task: Task) -> None:
        self.term, self.task = term, task
        self.name = term.name or str(getattr(term.loss, "name", type(term.loss).__name__))
        self.student, self.teacher = _paths(term.student), _paths(term.teacher)
        parameters = inspect.signature(term.loss.forward).parameters.values()
        self.masks_frames = bool(getattr(term.loss, "masks_frames", False))
        known = (WORDS | SOURCES.keys()) - (set() if self.masks_frames else {"mask"})
        known = known if term.at is None else words_of_regions(term, self.name, task)
        check_activation(term, self.name, task)
        self.words = [p.name for p in parameters if p.name in known]
        self.kinds = list(dict.fromkeys(SOURCES[w] for w in self.words if w in SOURCES))
        known = known | {"mask"}
        required = [p.name for p in parameters if p.default is p.empty and p.name not in known]
        if required or not self.words:
            raise RecipeError(
                f"The loss of the term {self.name!r} should take arguments among "
                f"{', '.join(sorted(known - SOURCES.keys()))}"
                f"{f' at {term.at}' if term.at else ''}; it asks for "
                f"{', '.join(required) or 'nothing'}."
            )
        reads_taps = bool(self.kinds) or any("feature" in word for word in self.words)
        self.pairwise = reads_taps and "student_features" not in self.words
        if reads_taps and not (self.student and len(self.student) == len(self.teacher)):
            raise RecipeError(
                f"The term {self.name!r} compares features, so it needs a `student` tap and a "
                f"`teacher` tap for each (it has {len(self.student)} and {len(self.teacher)})."
            )
        if not reads_taps and (self.student or self.teacher):
            raise RecipeError(
                f"The term {self.name!r} compares logits and reads no taps; remove its "
                "`student` and `teacher`."
            )
        self.answers: Any = ((),) * len(self.student)  # of each pair, its sources
        self.layers = term.layer_weights or (1.0,) * len(self.student)
        if term.layer_weights and not (self.pairwise and len(self.layers) == len(self.student)):
            raise RecipeError(
                f"The term {self.name!r} has {len(term.layer_weights)} `layer_weights` for "
                f"{len(self.student)} pairs of taps; give one for each pair, to a loss that "
                "compares one pair at a time."
            )
        self._given = {name: self._hyperparameter(name) for name in term.schedules}

    def _hyperparameter(self, name: str) -> float:
        """What a schedule starts from."""
        if name == "weight":
            return self.term.weight
        value: Any = getattr(self.term.loss, name, None)
        if not _is_number(value):
            known = [k for k, v in vars(self.term.loss).items() if _is_number(v) and k[0] != "_"]
            raise RecipeError(
                f"The term {self.name!r} schedules {name!r}, which is no number of its loss; "
                f"{did_you_mean(name, ['weight', *known])}"
            )
        return float(value)

    def _scheduled(self, name: str, progress: Progress) -> float:
        schedule = self.term.schedules[name]
        factor = schedule.factor(progress.step, progress.steps, progress.epoch)
        return self._given[name] * factor

    def weight(self, progress: Progress) -> float:
        """The factor of this term in the total."""
        return self._scheduled("weight", progress) if "weight" in self._given else self.term.weight

    def __call__(
        self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress
    ) -> Tensor:
        for name in self._given.keys() - {"weight"}:
            setattr(self.term.loss, name, self._scheduled(name, progress))
        if self.term.of is not None:
            teacher = teacher.members[self.term.of]
        mine = [student.features[path] for path in self.student]
        theirs = [teacher.features[path] for path in self.teacher]
        logits = student.logits, teacher.logits
        if self.term.at == "objects":
            mine, theirs = ([self.task.at_objects(x, batch) for x in xs] for xs in (mine, theirs))
        elif self.term.at == "proposals":
            logits = self.task.at_proposals(*logits)
        known: dict[str, Any] = {
            "student_logits": logits[0], "teacher_logits": logits[1],
            "student_features": mine, "teacher_features": theirs,
            "labels": self.task.targets(batch), "index": batch.get("index"),
        }  # fmt: skip
        pairs: list[dict[str, Any]] = []
        for s, t, sources in zip(mine, theirs, self.answers, strict=True):
            now = Seen(s, t, batch, progress, student.logits, teacher.logits)
            s, t = self._counted(s, batch), self._counted(t, batch)
            pairs.append({"student_feature": s, "teacher_feature": t})
            if self.masks_frames:
                pairs[-1]["mask"] = self.task.mask(batch, s)
            for source in sources:
                pairs[-1] |= source(now)
        if not self.pairwise:
            further = [word for word in self.words if word in SOURCES]
            return self._call(known | {word: [pair[word] for pair in pairs] for word in further})
        values = [self._call(known | pair) for pair in pairs]
        weighted = zip(self.layers, values, strict=True)
        values = [value if weight == 1.0 else weight * value for weight, value in weighted]
        return sum(values[1:], start=values[0])

    def _counted(self, feature: Tensor, batch: Batch) -> Tensor:
        mask = None if self.masks_frames or feature.dim() != 3 else self.task.mask(batch, feature)
        lone = getattr(self.term.loss, "batch_coupled", None) is False
        return counted_frames(feature, mask, rows=lone)

    def _call(self, known: dict[str, Any]) -> Tensor:
        try:
            with few_regions(self.term, known["student_features"]):
                value: Tensor = self.term.loss(**{word: known[word] for word in self.words})
        except NonFiniteLossError as error:
            raise NonFiniteLossError(f"The loss term {self.name!r}: {error}") from error
        return value


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)


def _paths(paths: str | Sequence[str] | None) -> tuple[str, ...]:
    return (paths,) if isinstance(paths, str) else tuple(paths or ())
