"""From a recipe to the objects that it names."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

import congener.tasks
from congener.catalogue import losses_by_name, systems_by_name
from congener.engine import FitConfig, load_weights, process_state, steps_per_epoch
from congener.engine.feed import evaluation_batches
from congener.errors import CongenerError, RecipeError
from congener.naming import bind, resolve
from congener.recipe import (
    Arm,
    LossSpec,
    ModelSpec,
    Recipe,
    SystemSpec,
    TeacherSpec,
    TermSpec,
)
from congener.system import FitStage, System
from congener.systems import Distillation
from congener.task import Task
from congener.types import Batch, Progress, Term

__all__ = ["Assembly", "tasks_by_name"]


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
        with _at(recipe, "task"):
            self.task = self._task()

    def check(self) -> None:
        """Build everything once and run two samples through every arm, before anything is trained.

        Raises:
            RecipeError, TapError, ShapeError: as the first thing that does not fit.
        """
        student = self.student(self.recipe.seeds[0])
        teacher = self.teacher()
        batch = self.sample(2)
        self._check_classes("student", student, batch)
        if teacher is not None:
            self._check_classes("teacher", teacher, batch)
        if isinstance(self.recipe.teacher, TeacherSpec) and self.recipe.teacher.train is not None:
            with _at(self.recipe, "teacher", "train"):
                self._check_training(self.recipe.teacher.train, teacher=True)
        for name, arm in self.recipe.all_arms.items():
            with _at(self.recipe, "train"):
                self._check_training(self.recipe.train, distilled=bool(arm.terms or arm.system))
            source = deepcopy(student) if arm.learns_from else teacher
            system = self.system(name, student, source)
            # What awaits a stage cannot run yet; what is fitted in the stage can.
            first = [stage.system for stage in system.stages() if isinstance(stage, FitStage)]
            with _at(self.recipe, "arms", name), torch.no_grad():
                for each in first if system.stages() else [system]:
                    each.eval()(batch, Progress(0, 1, 0))

    def sample(self, count: int) -> Batch:
        """The first samples of the test set, prepared."""
        test = self.task.splits["test"]
        raw = next(evaluation_batches(self.task, test, batch_size=count, share=(0, 1), workers=0))
        return self.task.prepare(raw, train=False, seed=0, epoch=0)

    def student(self, seed: int) -> nn.Module:
        """The student as it is before training with a seed."""
        set_seed(seed)
        spec = self.recipe.student
        if not isinstance(spec, ModelSpec):
            return deepcopy(spec).cpu()
        with _at(self.recipe, "student"):
            return self._model(spec)

    def teacher(self) -> nn.Module | None:
        """The teacher: with its weights, or as it is before it is trained; ``None`` without one."""
        spec = self.recipe.teacher
        if spec is None:
            return None
        if not isinstance(spec, ModelSpec):
            return spec.cpu()
        set_seed(getattr(spec, "seed", 0))
        with _at(self.recipe, "teacher"):
            return self._model(spec)

    def system(self, arm: str, student: nn.Module, teacher: nn.Module | None) -> System:
        """The system that trains an arm."""
        described = self.recipe.all_arms[arm]
        if described.system is not None:
            key = ("arms", arm, "system") if self.recipe.arms else ("system",)
            with _at(self.recipe, *key):
                return self._system(described.system, student, teacher)
        key = ("arms", arm, "terms") if self.recipe.arms else ("terms",)
        terms = []
        for position, term in enumerate(described.terms):
            with _at(self.recipe, *key, position):
                terms.append(self._term(term))
        with _at(self.recipe, *key):
            return Distillation(
                student,
                teacher if terms else None,
                terms,
                task=self.task,
                task_weight=described.task_weight,
                teachers=self._teachers,
            )

    def _system(self, spec: SystemSpec, student: nn.Module, teacher: nn.Module | None) -> System:
        build = resolve("system", spec.name, systems_by_name(), trust=self._trust)
        own = {"student": student, "teacher": teacher, "task": self.task}
        for key in own.keys() & spec.arguments.keys():
            raise RecipeError(f"The system {spec.name!r} gets its {key} from the recipe's `{key}`.")
        if build is Distillation:
            raise RecipeError("The system 'distillation' is what `terms` make; list terms instead.")
        arguments = bind("system", spec.name, build, spec.arguments, defaults=own)
        try:
            system: System = build(**arguments)
        except ValueError as error:
            if isinstance(error, CongenerError):
                raise
            raise RecipeError(f"The system {spec.name!r}: {error}") from error
        return system

    @cached_property
    def _teachers(self) -> dict[str, nn.Module]:
        """The further teachers with their weights, read once for all fits: they are frozen."""
        found = {}
        for name, spec in self.recipe.teachers.items():
            with _at(self.recipe, "teachers", name):
                found[name] = self._model(spec) if isinstance(spec, ModelSpec) else spec
        return found

    def training(
        self, config: FitConfig, *, teacher: bool = False, distilled: bool = False
    ) -> tuple[Dataset[Any], FitConfig, Tensor | None]:
        """What a fit trains on: the data set, the settings, and its positions that have labels.

        Without a teacher's word, samples without labels teach nothing: such a fit gets the
        labelled samples only, for as many steps.
        """
        own = teacher and "teacher" in self.task.splits
        train = self.task.splits["teacher" if own else "train"]
        labelled = None if own else self.task.labelled
        if labelled is None or distilled:
            return train, config, labelled
        processes = process_state(config).num_processes
        unit = steps_per_epoch(train, config, labelled, processes=processes)
        return Subset(train, labelled.tolist()), _in_steps(config, unit), None

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
        return model

    def _term(self, term: Term | TermSpec) -> Term:
        if isinstance(term, Term):
            return deepcopy(term)
        return Term(
            self._loss(term.loss),
            term.weight,
            term.student or None,
            term.teacher or None,
            term.name,
            term.layer_weights,
            term.schedules,
            term.of,
        )

    def _loss(self, spec: LossSpec) -> nn.Module:
        build = resolve("loss", spec.name, losses_by_name(), trust=self._trust)
        arguments = bind("loss", spec.name, build, spec.arguments)
        try:
            loss: nn.Module = build(**arguments)
        except ValueError as error:
            raise RecipeError(f"The loss {spec.name!r}: {error}") from error
        return loss

    def _check_training(self, config: FitConfig, **whose: bool) -> None:
        """Every fit must have a machine for its precision and a batch in each epoch."""
        processes = process_state(config).num_processes
        steps_per_epoch(*self.training(config, **whose), processes=processes)

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
