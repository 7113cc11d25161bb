"""From a recipe to the objects that it names."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property
from typing import Any, NamedTuple

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

import congener.tasks
from congener.catalogue import losses_by_name, systems_by_name
from congener.engine import (
    FitConfig,
    check_groups,
    check_stage,
    check_teaching,
    load_weights,
    process_state,
    steps_per_epoch,
)
from congener.engine.feed import evaluation_batches, size
from congener.errors import CongenerError, DataError, RecipeError, did_you_mean
from congener.naming import accepted_names, bind, resolve
from congener.planning import fill_widths, lacks_widths, plan
from congener.recipe import (
    Arm,
    LossSpec,
    ModelSpec,
    Recipe,
    SystemSpec,
    TeacherSpec,
    TermSpec,
)
from congener.system import System
from congener.systems import Distillation
from congener.systems.probe import first_sample, probe
from congener.taps import bare, uncompiled
from congener.task import Task
from congener.teachers import bridge
from congener.types import Batch, Progress, Term

__all__ = ["Assembly", "Training", "tasks_by_name"]


class Training(NamedTuple):
    """What a fit trains on; the arguments of :func:`congener.engine.fit` of these names."""

    train: Dataset[Any]
    config: FitConfig
    labelled: Tensor | None
    groups: Tensor | None


class Assembly:
    """Builds what a recipe names, afresh on every call, so that arms and seeds share nothing.

    Args:
        recipe: the recipe.
        trust: packages outside congener whose code it may name.

    Raises:
        RecipeError: a name or argument that is not known, with its place in the recipe.
        CongenerError: data that cannot be used.
    """

    def __init__(self, recipe: Recipe, trust: Collection[str] = ()) -> None:
        self.recipe, self._trust = recipe, tuple(trust)
        self._settled: dict[int, TermSpec] = {}
        with _at(recipe, "task"):
            self.task = self._task()

    def check(self) -> None:
        """Build everything once and run two samples through every arm, before anything is trained.

        Raises:
            RecipeError, TapError, ShapeError: as the first thing that does not fit.
        """
        student = self.student(self.recipe.seeds[0])
        teacher = self.teacher()
        batch = self.sample(2, train=True)
        self._check_classes("student", student, batch)
        if teacher is not None:
            self._check_classes("teacher", teacher, batch)
        if isinstance(self.recipe.teacher, TeacherSpec) and self.recipe.teacher.train is not None:
            with _at(self.recipe, "teacher", "train"):
                self._check_training(self.recipe.teacher.train, teacher=True)
        for name, arm in self.recipe.all_arms.items():
            with _at(self.recipe, "train"):
                self._check_training(self.recipe.train, distilled=bool(arm.terms or arm.system))
            system = self.sketch(name, teacher)
            config, stages = self.recipe.train, system.stages()
            with _at(self.recipe, "train"):
                check_teaching(system.teacher, config, process_state(config).device)
            with _at(self.recipe, "arms", name), torch.no_grad():
                ready = [check_stage(stage, self.task, config, batch) for stage in stages]
                if all(ready):
                    system.eval()(batch, Progress(0, 1, 0))

    def sample(self, count: int, *, train: bool = False) -> Batch:
        """The first samples of the test set, prepared; with ``train`` as for training."""
        test = self.task.splits["test"]
        raw = next(evaluation_batches(self.task, test, batch_size=count, share=(0, 1), workers=0))
        return self.task.prepare(raw, train=train, seed=0, epoch=0)

    def student(self, seed: int) -> nn.Module:
        """The student as it is before training with a seed."""
        set_seed(seed)
        spec = self.recipe.student
        if not isinstance(spec, ModelSpec):
            return deepcopy(uncompiled(spec)).cpu()
        with _at(self.recipe, "student"):
            return self._model(spec)

    def teacher(self) -> nn.Module | None:
        """The teacher: with its weights, or as it is before it is trained; ``None`` without one."""
        spec = self.recipe.teacher
        if spec is None:
            return None
        if not isinstance(spec, ModelSpec):
            return uncompiled(spec).cpu()
        set_seed(getattr(spec, "seed", 0))
        with _at(self.recipe, "teacher"):
            return self._model(spec)

    def sketch(self, arm: str, teacher: nn.Module | None) -> System:
        """The system of an arm before anything is trained: what its sources export is untrained.

        Raises:
            RecipeError: an arm that starts from a network of another kind than the student.
        """
        described, seed = self.recipe.all_arms[arm], self.recipe.seeds[0]
        asked = teacher
        if described.learns_from is not None:
            asked = self.sketch(described.learns_from, teacher).student
        student = self.student(seed)
        if described.starts_from is not None:
            start = self.sketch(described.starts_from, teacher).student
            if _shapes(start) != _shapes(student):
                place = self.recipe.place("arms", arm, "starts_from")
                raise RecipeError(
                    f"{place}: the arm {arm!r} cannot start from {described.starts_from!r}, which "
                    f"exports another network ({type(start).__name__}) than the recipe's "
                    "`student`; start from an arm that exports the student, or from none."
                )
        return self.system(arm, student, asked)

    def system(self, arm: str, student: nn.Module, teacher: nn.Module | None) -> System:
        """The system that trains an arm."""
        described = self.recipe.all_arms[arm]
        place = ("arms", arm) if self.recipe.arms else ()
        with _at(self.recipe, *place, "inherits"):
            for path in described.inherits:
                _inherit(path, student, teacher)
        terms = []
        for position, term in enumerate(described.terms):
            with _at(self.recipe, *place, "terms", position):
                terms.append(self._term(term, student, teacher))
        if described.system is not None:
            with _at(self.recipe, *place, "system"):
                return self._system(described, described.system, student, teacher, terms)
        with _at(self.recipe, *place, "terms"):
            return Distillation(
                student,
                teacher if terms else None,
                terms,
                task=self.task,
                task_weight=described.task_weight,
                teachers=self.teachers,
            )

    def _system(
        self,
        arm: Arm,
        spec: SystemSpec,
        student: nn.Module,
        teacher: nn.Module | None,
        terms: list[Term],
    ) -> System:
        build = resolve("system", spec.name, systems_by_name(), trust=self._trust)
        own = {"student": student, "teacher": teacher, "task": self.task}
        beside: dict[str, Any] = {"terms": terms} if terms else {}
        if arm.task_weight != 1.0:
            beside["task_weight"] = arm.task_weight
        for key in (own | beside | {"terms": terms}).keys() & spec.arguments.keys():
            raise RecipeError(f"The system {spec.name!r} gets its {key} from the recipe's `{key}`.")
        if lacking := beside.keys() - accepted_names(build).keys():
            raise RecipeError(
                f"The system {spec.name!r} has weights of its own, and no `{min(lacking)}` beside "
                "it; give one or the other."
            )
        own |= beside
        if build is Distillation:
            raise RecipeError("The system 'distillation' is what `terms` make; list terms instead.")
        needs_teacher = accepted_names(build).get("teacher")
        if teacher is None and needs_teacher:
            raise RecipeError(
                f"The system {spec.name!r} needs a `teacher` to distil from; name one."
            )
        if arm.learns_from and not needs_teacher:
            raise RecipeError(
                f"The system {spec.name!r} has no teacher, so `learns_from` has no use; remove it."
            )
        arguments = bind("system", spec.name, build, spec.arguments, defaults=own)
        try:
            system: System = build(**arguments)
        except ValueError as error:
            if isinstance(error, CongenerError):
                raise
            raise RecipeError(f"The system {spec.name!r}: {error}") from error
        return system

    @cached_property
    def teachers(self) -> dict[str, nn.Module]:
        """The further teachers with their weights, read once for all fits: they are frozen."""
        found = {}
        for name, spec in self.recipe.teachers.items():
            with _at(self.recipe, "teachers", name):
                found[name] = self._model(spec) if isinstance(spec, ModelSpec) else uncompiled(spec)
        return found

    def training(
        self,
        config: FitConfig,
        *,
        teacher: bool = False,
        distilled: bool = False,
        superclasses: Tensor | None = None,
    ) -> Training:
        """What a fit trains on: the data set, the settings, which labels there are, and groups.

        Without a teacher's word, samples without labels teach nothing: such a fit gets the
        labelled samples only, for as many steps. ``superclasses`` are the groups of the sampler of
        that name, known once there is a teacher.
        """
        split = "teacher" if teacher and "teacher" in self.task.splits else "train"
        train = self.task.splits[split]
        labelled = self.task.labelled if split == "train" else None
        groups = superclasses
        if config.sampler == "class_uniform":
            groups = self._classes(split)
        if config.sampler == "by_length":
            groups = self._lengths(split)
        if labelled is None or distilled:
            return Training(train, config, labelled, groups)
        processes = process_state(config).num_processes
        unit = steps_per_epoch(train, config, labelled, processes=processes)
        groups = None if groups is None else groups[labelled]
        return Training(Subset(train, labelled.tolist()), _in_steps(config, unit), None, groups)

    def _classes(self, split: str) -> Tensor:
        labels = self.task.labels(split)
        if labels is None:
            raise DataError(
                "sampler='class_uniform' needs the labels of all samples, which this data set does "
                "not tell without loading them; give it the attribute `targets`, or use "
                "'superclass_uniform'."
            )
        return labels

    def _lengths(self, split: str) -> Tensor:
        lengths = self.task.lengths(split)
        if lengths is None:
            raise DataError(
                "sampler='by_length' needs samples of unlike lengths, such as texts, and this task "
                "tells none; use 'shuffle'."
            )
        return lengths

    def terms(self, arm: Arm) -> list[Term]:
        """The terms of an arm, as objects."""
        return [self._term(term) for term in arm.terms]

    def _task(self) -> Task:
        spec = self.recipe.task
        if isinstance(spec, Task):
            return spec
        found = resolve("task", spec.name, tasks_by_name(), trust=self._trust)
        pack = found() if spec.name in tasks_by_name() else found
        task: Task = pack(**bind("task", spec.name, pack, spec.arguments))
        return task

    def _model(self, spec: ModelSpec) -> nn.Module:
        if re.fullmatch(r"\w+(\.\w+)+", spec.name):
            build = resolve("network", spec.name, {}, trust=self._trust)
            model: nn.Module = build(**bind("network", spec.name, build, spec.arguments))
        else:
            model = self.task.build_model(spec.name, **spec.arguments)
        if spec.checkpoint is not None:
            load_weights(model, spec.checkpoint)
        if spec.preprocessing is None:
            return model
        return bridge(model, self.task.normalisation, spec.preprocessing)

    def _term(
        self,
        term: Term | TermSpec,
        student: nn.Module | None = None,
        teacher: nn.Module | None = None,
    ) -> Term:
        if isinstance(term, Term):
            return deepcopy(term)
        if student is not None and teacher is not None and id(term) not in self._settled:
            self._settled[id(term)] = self._settle(term, student, teacher)
        term = self._settled.get(id(term), term)
        return Term(
            self._loss(term.loss),
            term.weight,
            term.student or None,
            term.teacher or None,
            term.name,
            term.layer_weights,
            term.schedules,
            term.of,
            term.at,
        )

    def _settle(self, term: TermSpec, student: nn.Module, teacher: nn.Module) -> TermSpec:
        """The term with its taps and its loss' widths, the same for all fits of its arm."""
        asked = teacher if term.of is None else self.teachers.get(term.of)
        if asked is None and term.taps is None:
            return term  # the system says which teachers there are
        if asked is None:
            raise RecipeError(
                f"The term learns of a teacher {term.of!r} that is not there; "
                f"{did_you_mean(str(term.of), self.teachers)}"
            )
        build = resolve("loss", term.loss.name, losses_by_name(), trust=self._trust)
        if term.taps is not None:
            sample = self.sample(2)
            found = plan(student, asked, sample, task=self.task, losses=[term.loss.name])
            taps = found.proposals[0]
            if not taps.fits:
                raise RecipeError(f"`taps: auto` finds none for {term.loss.name!r}: {taps.note}")
            paths = {"student": taps.student, "teacher": taps.teacher, "taps": None}
            term = term.model_copy(update=paths)
        if not (lacks_widths(build, term.loss.arguments) and term.student and term.teacher):
            return term
        mine = probe(student, self.task, term.student).features
        theirs = probe(asked, self.task, term.teacher).features
        features = [[mine[p] for p in term.student], [theirs[p] for p in term.teacher]]
        if term.at == "objects":
            sample = first_sample(self.task)
            features = [[self.task.at_objects(x, sample) for x in each] for each in features]
        widths = fill_widths(build, term.loss.arguments, *features)
        loss = LossSpec(name=term.loss.name, **(term.loss.arguments | widths))
        return term.model_copy(update={"loss": loss})

    def _loss(self, spec: LossSpec) -> nn.Module:
        build = resolve("loss", spec.name, losses_by_name(), trust=self._trust)
        arguments = bind("loss", spec.name, build, spec.arguments)
        try:
            loss: nn.Module = build(**arguments)
        except ValueError as error:
            raise RecipeError(f"The loss {spec.name!r}: {error}") from error
        return loss

    def _check_training(
        self, config: FitConfig, *, teacher: bool = False, distilled: bool = False
    ) -> None:
        """Every fit must have a machine for its precision and a batch in each epoch."""
        processes = process_state(config).num_processes
        train, config, labelled, groups = self.training(
            config, teacher=teacher, distilled=distilled
        )
        steps_per_epoch(train, config, labelled, processes=processes)
        if config.sampler != "superclass_uniform":  # those groups await the teacher
            check_groups(config, groups, size(train), labelled=labelled, processes=processes)

    def _check_classes(self, who: str, model: nn.Module, batch: Batch) -> None:
        classes = len(self.task.class_names)
        was_training = model.training
        with torch.no_grad():
            logits: Tensor = self.task.logits(self.task.call(model.eval(), batch))
        model.train(was_training)
        if classes and logits.shape[-1] != classes:
            raise RecipeError(
                f"{self.recipe.place(who)}: the {who} gives {logits.shape[-1]} classes but the "
                f"data has {classes}; build it with num_classes={classes}."
            )


def _in_steps(config: FitConfig, unit: int) -> FitConfig:
    """The same training on labelled samples alone: in steps, of which ``unit`` were an epoch."""
    if config.epochs is None:
        return config.model_copy(update={"labelled_per_batch": 0})
    changes = {
        "labelled_per_batch": 0,
        "epochs": None,
        "steps": config.epochs * unit,
        "milestones": tuple(milestone * unit for milestone in config.milestones),
        "evaluate_every": config.evaluate_every * unit,
    }
    return config.model_copy(update=changes)


def tasks_by_name() -> dict[str, Any]:
    """Every task pack, as a function that imports it and returns its task."""
    packs = [info.name for info in pkgutil.iter_modules(congener.tasks.__path__) if info.ispkg]
    return {name: lambda name=name: _pack(name) for name in packs}


def _pack(name: str) -> type[Task]:
    module = importlib.import_module(f"congener.tasks.{name}")
    public = [getattr(module, attribute) for attribute in module.__all__]
    return next(thing for thing in public if inspect.isclass(thing) and issubclass(thing, Task))


def _inherit(path: str, student: nn.Module, teacher: nn.Module | None) -> None:
    """Give a module of the student the teacher's weights.

    Raises:
        RecipeError: no teacher, no such module, or one of another shape.
    """
    if teacher is None:
        raise RecipeError(f"There is no `teacher` whose {path!r} could be inherited; name one.")
    sides = {"student": bare(student), "teacher": bare(teacher)}
    found = {}
    for side, network in sides.items():
        modules = {name: module for name, module in network.named_modules() if name}
        if path not in modules:
            raise RecipeError(f"The {side} has no module {path!r}; {did_you_mean(path, modules)}")
        found[side] = modules[path]
    mine, theirs = (_shapes(module) for module in found.values())
    if mine != theirs:
        name = min(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
        raise RecipeError(
            f"The student cannot inherit {path!r}: its {name!r} is {_shape(mine, name)} and the "
            f"teacher's {_shape(theirs, name)}; build both networks with the same widths there."
        )
    found["student"].load_state_dict(found["teacher"].state_dict())


def _shape(shapes: dict[str, torch.Size], name: str) -> str:
    return str(tuple(shapes[name])) if name in shapes else "not there"


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in bare(network).state_dict().items()}


@contextmanager
def _at(recipe: Recipe, *path: int | str) -> Iterator[None]:
    """Put the place in the recipe before what went wrong while building it."""
    try:
        yield
    except CongenerError as error:
        place = recipe.place(*path)
        if place == "recipe" or str(error).startswith(place):
            raise
        raise type(error)(f"{place}: {error}") from error
