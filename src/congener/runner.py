"""Run a recipe: train the teacher and every arm with every seed, and leave a run folder.

    recipe.yaml  environment.json  events.jsonl      what was run, and what happened
    teacher/  arms/<arm>/seed-<n>/                   checkpoint.pt, weights.safetensors, result.json
    stages/<name>-<key>.safetensors                  what systems fitted or measured first
    cache/<teacher>/                                 what the teacher said, where that is kept
    analysis/<arm>.npz                               predictions and Gram matrices, for the report
    exhibits.json  exhibits.npz                      what the task shows there, if it shows any
    metrics.json  summary.json                       the results; last epoch, one value a seed

Each fit leaves ``result.json`` when it is done, so a resumed run repeats nothing but the steps
since the last checkpoint.
"""

import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from scipy import stats
from torch import Tensor, nn

from congener.analysis import Analysis
from congener.assembly import Assembly, Training
from congener.caching import Answers
from congener.catalogue import systems_by_name
from congener.engine import (
    FitConfig,
    build_accelerator,
    check_alike,
    company,
    evaluate,
    fit,
    load_weights,
    on_first,
    prepare,
    process_state,
    superclasses,
)
from congener.engine.measure import cost
from congener.errors import RecipeError, did_you_mean
from congener.losses import HardLabelLoss
from congener.recipe import Arm, CacheSpec, Recipe, TeacherSpec, dump_recipe
from congener.run_folder import is_done, open_folder, read_result, save_weights
from congener.runlog import Event, RunLog, environment, versions, write_text
from congener.system import System
from congener.systems import Distillation
from congener.task import Task
from congener.types import Term

__all__ = ["Run", "compare", "execute", "keep_answers", "load_student"]


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: its folder and its metrics (the contents of ``metrics.json``)."""

    folder: Path
    metrics: dict[str, Any]


@company()
def execute(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    trust: Collection[str] = (),
    observers: tuple[Callable[[Event], None], ...] = (),
    command: str | None = None,
) -> Run:
    """Run a recipe into the folder ``out``.

    Args:
        recipe: the recipe.
        out: the run folder; it must not hold a run yet, unless ``resume``.
        resume: go on with the run in ``out``, which the same recipe started.
        trust: packages outside congener whose code the recipe may name.
        observers: called with every event, on the first process only.
        command: how to repeat the run, for the record; default: this process' command line.

    Raises:
        CongenerError: whatever does not fit, before anything is written.
    """
    started = time.time()
    runner = _begin(recipe, out, resume=resume, trust=trust, observers=observers)
    runner.log.forget(event="run_finished")
    teacher = runner.teacher()
    runner.answers.plan(teacher)
    for arm in recipe.all_arms:
        for seed in recipe.seeds:
            runner.student(arm, seed, teacher)
    runner.answers.tell()
    main = runner.state.is_main_process
    if main:
        metrics = runner.summarise(teacher, command or shlex.join(sys.argv))
        runner.log.emit("run_finished", seconds=round(time.time() - started, 1))
    runner.state.wait_for_everyone()
    return Run(out, metrics if main else {})


@company()
def keep_answers(
    recipe: Recipe,
    out: Path,
    *,
    trust: Collection[str] = (),
    observers: tuple[Callable[[Event], None], ...] = (),
) -> Answers:
    """Do what a run does before its first student: have the teacher, and ask it everything.

    Args:
        recipe: the recipe.
        out: the run folder, new or of the same recipe; the run then goes on from there.
        trust: as for :func:`execute`.
        observers: likewise.

    Raises:
        CongenerError: whatever does not fit.
    """
    runner = _begin(recipe, out, resume=None, trust=trust, observers=observers)
    teacher = runner.teacher()
    runner.answers.plan(teacher)
    if teacher is not None:
        runner.answers.build(teacher)
    runner.state.wait_for_everyone()
    return runner.answers


def _begin(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool | None,
    trust: Collection[str],
    observers: tuple[Callable[[Event], None], ...],
) -> "_Runner":
    """Check the recipe, then make its folder or go on with it; ``resume=None``: as it is there."""
    state, text = process_state(recipe.train), dump_recipe(recipe)
    check_alike({"the recipe": text, "versions": json.dumps(versions(), indent=1)})
    assembly = Assembly(recipe, trust)
    assembly.check()
    if isinstance(recipe.cache, CacheSpec):  # what it demands is refused before anything is trained
        Answers(recipe, assembly, out, RunLog(None)).plan(assembly.teacher())
    on_first(lambda: open_folder(out, text, resume=resume))
    main = state.is_main_process
    log = RunLog(out, observers) if main else RunLog(None)
    if main:
        write_text(out / "environment.json", json.dumps(environment(), indent=1))
    if main and not log.length:
        log.emit("run_started", name=recipe.name, arms=list(recipe.all_arms), seeds=recipe.seeds)
    log.show("machine", processes=state.num_processes, device=state.device.type)
    return _Runner(recipe, assembly, out, log, state)


def load_student(
    recipe: Recipe, folder: Path, arm: str, seed: int, *, trust: Collection[str] = ()
) -> nn.Module:
    """The student that an arm of a finished run exports, with its trained weights.

    Args:
        recipe: the recipe of the run.
        folder: the run folder.
        arm: the name of the arm.
        seed: one of the recipe's seeds.
        trust: packages outside congener whose code the recipe may name.

    Raises:
        RecipeError: an arm that the recipe does not have.
        CheckpointError: weights that are missing or damaged.
    """
    if arm not in recipe.all_arms:
        raise RecipeError(f"There is no arm {arm!r}; {did_you_mean(arm, recipe.all_arms)}")
    assembly, state = Assembly(recipe, trust), process_state(recipe.train)
    runner = _Runner(recipe, assembly, folder, RunLog(None), state)
    return runner.trained(arm, seed, assembly.teacher(), alone=True)


class _Runner:
    """The fits of one run, and what is made of them."""

    def __init__(
        self, recipe: Recipe, assembly: Assembly, out: Path, log: RunLog, state: PartialState
    ) -> None:
        self.recipe, self.assembly, self.out, self.log = recipe, assembly, out, log
        self.state = state
        self.task: Task = assembly.task
        self.answers = Answers(recipe, assembly, out, log)
        self.superclasses: Tensor | None = None  # for a sampler that draws from them
        self.teacher_figures: dict[str, float] = {}
        self.student_costs: dict[int, dict[str, Any]] = {}  # of a network that many arms train

    def teacher(self) -> nn.Module | None:
        """The teacher, trained first where the recipe says so."""
        model, spec = self.assembly.teacher(), self.recipe.teacher
        if model is not None and isinstance(spec, TeacherSpec) and spec.train is not None:
            system = Distillation(model, None, [], task=self.task)
            training = self.assembly.training(spec.train, teacher=True)
            self._fit("teacher", self.out / "teacher", system, spec.seed, training)
        elif model is not None:  # it came with its weights: all processes measure it together
            self.teacher_figures = _measure(model, self.task, self.recipe.train)
        if model is not None and self.recipe.train.sampler == "superclass_uniform":
            self.superclasses = superclasses(
                model, self.task, self.recipe.train, train=self.task.splits["train"],
                tap=self._tap("teacher"), folder=self.out / "stages",
            )  # fmt: skip
        return None if model is None else model.cpu()

    def student(self, arm: str, seed: int, teacher: nn.Module | None) -> None:
        """Train one arm with one seed, unless that is done already."""
        system = self._system(arm, seed, teacher)
        training = self.assembly.training(
            self.recipe.train, distilled=system.distils, superclasses=self.superclasses
        )
        self._fit(f"{arm}/{seed}", self._folder(arm, seed), system, seed, training, arm)

    def _system(
        self, arm: str, seed: int, teacher: nn.Module | None, *, alone: bool = False
    ) -> System:
        """The system of an arm, its student and its teacher where they come from."""
        described = self.recipe.all_arms[arm]
        if described.learns_from is not None:
            teacher = self.trained(described.learns_from, seed, teacher, alone=alone)
        student = self.assembly.student(seed)
        if described.starts_from is not None:
            path = self._weights(described.starts_from, seed)
            load_weights(student, path, from_first=not alone)
        return self.assembly.system(arm, student, teacher)

    def _weights(self, arm: str, seed: int) -> Path:
        return self._folder(arm, seed) / "weights.safetensors"

    def _folder(self, arm: str, seed: int) -> Path:
        return self.out / "arms" / arm / f"seed-{seed}"

    def _fit(
        self,
        name: str,
        folder: Path,
        system: System,
        seed: int,
        training: Training,
        arm: str | None = None,
    ) -> None:
        """Fit a system in a folder of its own, or load what an earlier session fitted there."""
        if on_first(lambda: is_done(folder)):
            load_weights(system.student, folder / "weights.safetensors", from_first=True)
            return
        if self.state.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "checkpoint.pt").exists():
                self.log.forget(fit=name)
        self.state.wait_for_everyone()
        train, config, labelled, groups = training
        prepare(
            system, self.task, config,
            train=train, seed=seed, folder=self.out / "stages", log=self.log,
        )  # fmt: skip
        if arm is not None:
            self.answers.give(system, arm, seed)
        result = fit(
            system, self.task, config,
            train=train, test=self.task.splits["test"], labelled=labelled, groups=groups,
            seed=seed, name=name, log=self.log, checkpoint=folder / "checkpoint.pt",
            folder=self.out / "stages",
        )  # fmt: skip
        system.student.cpu()
        if self.state.is_main_process:
            save_weights(system.student, folder / "weights.safetensors")
            write_text(folder / "result.json", json.dumps(asdict(result), indent=1))
        self.state.wait_for_everyone()

    def summarise(self, teacher: nn.Module | None, command: str) -> dict[str, Any]:
        """Write the analysis, the metrics and the summary."""
        (self.out / "analysis").mkdir(exist_ok=True)
        teacher = None if teacher is None else teacher.cpu()  # the fits took it to their device
        arms: dict[str, Any] = {}
        eyes = Analysis(self.task, self._tap("student"), self._tap("teacher"), self.state.device)
        if teacher is not None:
            arms["teacher"] = self._teacher_row(teacher)
            eyes.see_teacher(teacher, self.out / "analysis" / "teacher.npz")
        for arm in self.recipe.all_arms:
            seeds = self.recipe.seeds
            students = [self.trained(arm, seed, teacher, alone=True) for seed in seeds]
            arms[arm] = self._arm_row(arm, students[0])
            eyes.see(students, self.out / "analysis" / f"{arm}.npz", self._tap("student", arm))
        eyes.exhibit(self.out, self.log)
        metric = self.task.metric
        first = self._folder(next(iter(self.recipe.all_arms)), self.recipe.seeds[0])
        metrics = {
            "name": self.recipe.name,
            "title": self.recipe.title or self.recipe.name,
            "metric": metric,
            "higher_is_better": self.task.higher_is_better,
            "task": _describe(self.recipe.task),
            "data": _describe(getattr(self.recipe.task, "arguments", {}).get("data", "")),
            "class_names": list(self.task.class_names),
            "classifies": eyes.classifies,
            "seeds": list(self.recipe.seeds),
            "steps": read_result(first)["steps"],
            "batch_size": self.recipe.train.batch_size,
            "command": command,
            "evaluated_on": "test",
            "arms": arms,
            "comparisons": _comparisons(arms, metric, higher=self.task.higher_is_better),
            "published": self.recipe.published and self.recipe.published.model_dump(),
        }
        metrics["seconds"] = sum(sum(row["seconds"]) for row in arms.values())
        summary = {arm: {metric: row[metric], "best": row["best"]} for arm, row in arms.items()}
        write_text(self.out / "metrics.json", json.dumps(metrics, indent=1))
        write_text(self.out / "summary.json", json.dumps(summary, indent=1))
        return metrics

    def trained(self, arm: str, seed: int, teacher: nn.Module | None, *, alone: bool) -> nn.Module:
        """What an arm exports, its system says which network; for one process or for all."""
        student = self._system(arm, seed, teacher, alone=alone).student
        load_weights(student, self._weights(arm, seed), from_first=not alone)
        return student

    def _cost(self, model: nn.Module) -> dict[str, Any]:
        return cost(model, self.task, self.assembly.sample(1))

    def _teacher_row(self, teacher: nn.Module) -> dict[str, Any]:
        """The teacher's row: one teacher, so the same figure for every student that it taught."""
        if (self.out / "teacher" / "result.json").exists():
            result = read_result(self.out / "teacher")
        else:
            figures = self.teacher_figures
            result = {"metrics": figures, "best": figures, "seconds": 0.0}
        metric, times = self.task.metric, len(self.recipe.seeds)
        return {
            "role": "teacher",
            "model": _describe(self.recipe.teacher),
            **self._cost(teacher),
            metric: [result["metrics"][metric]] * times,
            "best": [result["best"][metric]] * times,
            "metrics": _figures([result] * times),
            "trained": 1,
            "task_weight": 1.0,
            "terms": [],
            "seconds": [result["seconds"]],
        }

    def _arm_row(self, arm: str, student: nn.Module) -> dict[str, Any]:
        described, metric = self.recipe.all_arms[arm], self.task.metric
        results = [read_result(self._folder(arm, seed)) for seed in self.recipe.seeds]
        terms = self.assembly.terms(described)
        size = sum(parameter.numel() for parameter in student.parameters())
        if size not in self.student_costs:
            self.student_costs[size] = self._cost(student)
        return {
            "role": "start" if arm in self.recipe.starts else _role(described, terms),
            "model": _describe(self.recipe.student),
            **self.student_costs[size],
            metric: [result["metrics"][metric] for result in results],
            "best": [result["best"][metric] for result in results],
            "metrics": _figures(results),
            "task_weight": described.task_weight,
            "terms": [
                {
                    "name": term.name or getattr(term.loss, "name", type(term.loss).__name__),
                    "loss": f"{type(term.loss).__name__}({term.loss.extra_repr()})",
                    "weight": term.weight,
                    "schedules": {name: str(each) for name, each in term.schedules.items()},
                    "of": term.of or described.learns_from,
                    "student": term.student,
                    "teacher": term.teacher,
                    "equation": getattr(term.loss, "equation", ""),
                    "paper": str(getattr(term.loss, "paper", "")),
                }
                for term in terms
            ]
            + self._system_row(described),
            "seconds": [result["seconds"] for result in results],
        }

    def _system_row(self, arm: Arm) -> list[dict[str, Any]]:
        """How the report shows a system: as one term that is all of the loss."""
        if arm.system is None:
            return []
        known = systems_by_name().get(arm.system.name)
        return [
            {
                "name": arm.system.name,
                "loss": _describe(arm.system),
                "weight": 1.0,
                "schedules": {},
                "of": arm.learns_from,
                "student": None,
                "teacher": None,
                "equation": getattr(known, "equation", ""),
                "paper": str(getattr(known, "paper", None) or ""),
            }
        ]

    def _tap(self, side: str, of: str | None = None) -> str | None:
        """The first tap that an arm, or any, reads on one side: where Gram matrices are taken."""
        arms = self.recipe.contenders if of is None else {of: self.recipe.all_arms[of]}
        for arm in arms.values():
            for term in self.assembly.terms(arm):
                paths: Any = getattr(term, side)
                if paths and not (side == "teacher" and (term.of or arm.learns_from)):
                    return paths if isinstance(paths, str) else str(paths[-1])
        return None


def _role(arm: Arm, terms: list[Term]) -> str:
    """What an arm is in the comparison; hard pseudo-labels are what soft targets must beat."""
    if not terms:
        return "distilled" if arm.system else "alone"
    return "control" if all(isinstance(t.loss, HardLabelLoss) for t in terms) else "distilled"


def _measure(model: nn.Module, task: Task, config: FitConfig) -> dict[str, float]:
    accelerator = build_accelerator(config.model_copy(update={"precision": "fp32"}))
    model = model.to(accelerator.device)
    return evaluate(model, task, task.splits["test"], accelerator, batch_size=512)


def _figures(results: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """All that the last evaluation measured, one value a seed, where each seed has a number."""
    every: dict[str, list[float]] = {
        name: [result["metrics"].get(name, math.nan) for result in results]
        for name in results[0]["metrics"]
    }
    return {name: values for name, values in every.items() if all(map(math.isfinite, values))}


def _comparisons(arms: dict[str, Any], metric: str, *, higher: bool) -> dict[str, Any]:
    """Each arm that is a method against the student alone, paired over the seeds."""
    if "alone" not in arms:
        return {}
    alone = arms["alone"][metric]
    return {
        arm: {"against": "alone", **compare(row[metric], alone, higher=higher)}
        for arm, row in arms.items()
        if arm not in ("teacher", "alone") and row["role"] != "start"
    }


def compare(mine: Sequence[float], theirs: Sequence[float], *, higher: bool) -> dict[str, Any]:
    """One way of training against another, paired over the seeds.

    Args:
        mine: the values of one, one for each seed.
        theirs: the values of the other, with the same seeds.
        higher: whether more is better.

    Returns:
        ``mean_difference``; ``wins``, in how many of ``n`` seeds it is better; ``p`` of the paired
        t-test, none where there is one pair, or no spread.
    """
    difference = np.array(mine) - np.array(theirs)
    p = None
    # Equal differences are not evidence without end, and rounding is no spread.
    if len(difference) > 1 and not np.allclose(difference, difference[0], rtol=1e-9, atol=1e-12):
        p = float(stats.ttest_rel(mine, theirs).pvalue)
    return {
        "mean_difference": float(difference.mean()),
        "wins": int(((difference if higher else -difference) > 0).sum()),
        "n": len(difference),
        "p": p,
    }


def _describe(spec: Any) -> str:
    """A network, task or data set in one line: its name and arguments."""
    if isinstance(spec, str):
        return spec
    if isinstance(spec, dict):
        arguments = dict(spec)
        name = str(arguments.pop("name", ""))
    elif hasattr(spec, "arguments"):
        name, arguments = spec.name, spec.arguments
    else:
        return type(spec).__name__
    inside = ", ".join(f"{key}={value}" for key, value in arguments.items())
    return f"{name}({inside})" if inside else name
