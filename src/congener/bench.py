"""Compare methods fairly, and leave a record of each: ``congener bench``.

    out/control.json      the best method without a network, where one is known
    out/tune/<setting>/   the student alone under each setting, measured on a validation slice
    out/run/              every arm under the setting that served the student alone best
    records/<task>-<data>-<arm>/   summary.json, recipe.yaml, log.jsonl: one for each method
    records/index.html, README.md  all records there as a page

A fair comparison has a student alone that is tuned, hard pseudo-labels and plain KD beside the
method, something that is no network at all, and the same seeds, steps and settings for all.
"""

import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from congener.api import run
from congener.assembly import Assembly
from congener.engine import process_state
from congener.engine.feed import evaluation_batches
from congener.errors import CongenerError, NonFiniteLossError, RecipeError, RunError
from congener.recipe import Arm, Recipe, TaskSpec, dump_recipe
from congener.report import write_records
from congener.report.data import read_object
from congener.runlog import Event, read_json, write_text
from congener.runner import compare
from congener.task import Task
from congener.tasks.controls import best_of, scikit_learn

__all__ = ["Record", "bench", "control", "merge"]

BESIDE = ("hard", "kd")
"""Arms that every record shows beside its own: what a method has to beat."""

FACTORS = {"lr": (1 / 3, 1.0, 3.0), "weight_decay": (1 / 3, 1.0, 3.0)}
"""Settings of the student alone that are tried, as factors on the recipe's; ours."""


@dataclass(frozen=True, slots=True)
class Record:
    """What one method came to: the folder of its record, and its ``summary.json``."""

    folder: Path
    summary: dict[str, Any]


def bench(
    recipes: Sequence[Recipe],
    *,
    out: Path,
    records: Path,
    holdout: int = 500,
    resume: bool = False,
    trust: Collection[str] = (),
    observers: tuple[Callable[[Event], None], ...] = (),
    command: str | None = None,
) -> list[Record]:
    """Tune the student alone, run every arm under what was found, and write a record of each.

    Args:
        recipes: of one task, teacher, student and training; their arms are run together.
        out: where the runs go.
        records: where the records go, and the page of all that are there.
        holdout: how many of the last training samples (identities, where the data count these) are
            the validation slice for tuning.
        resume: go on with what is in ``out``.
        trust: packages outside congener whose code the recipes may name.
        observers: called with every event.
        command: how to repeat it, for the record.

    Returns:
        One record for each arm but ``hard`` and ``kd``, which stand beside them, and those that
        are only the start of another (on the first process; none on the others).

    Raises:
        RecipeError: recipes that do not share what makes them comparable.
        RunError: folders that hold another comparison.
        CongenerError: whatever else does not fit, before anything is trained.
    """
    recipe = merge(recipes)
    sliced = _sliced(recipe, holdout)
    _classifiers()
    assembly = Assembly(recipe, trust)
    assembly.check()
    task, held = assembly.task, Assembly(sliced, trust).task
    arms = _methods(recipe)
    _check_folders(recipe, arms, out, records, resume=resume)
    state = process_state(recipe.train)
    state.wait_for_everyone()  # so that nobody takes what the first one writes for older
    main = state.is_main_process
    floor = _control_once(task, held, out / "control.json", resume) if main else None
    options: dict[str, Any] = {"trust": trust, "observers": observers, "command": command}
    tried = _tune(recipe, out / "tune", holdout, options)
    best = _best(tried, higher=task.higher_is_better)
    changes = {"train": recipe.train.model_copy(update=best["settings"])}
    tuned = recipe.model_copy(update=changes)
    metrics = _run(tuned, out / "run", options)
    if not main:
        return []
    where = f"a slice of the training data, holdout={holdout}"
    tuning = {"on": where, "tried": tried, "chosen": best}
    written = [_record(records, arm, tuned, out / "run", metrics, tuning, floor) for arm in arms]
    write_records(records)
    return written


def _methods(recipe: Recipe) -> list[str]:
    """The arms that have a record: not those beside them, nor what is only another's start."""
    beside = {*BESIDE, *recipe.starts}
    return [arm for arm in recipe.contenders if arm not in beside] or list(recipe.contenders)


def _check_folders(
    recipe: Recipe, arms: Sequence[str], out: Path, records: Path, *, resume: bool
) -> None:
    """Refuse to mix two comparisons, or to write over the record of another one."""
    if not resume and any((out / part).exists() for part in ("tune", "run")):
        raise RunError(
            f"{out} already holds a comparison; add --resume to go on with it, or name another "
            "(in Python: resume=True, or out=...)."
        )
    for arm in arms:
        home = _home(records, recipe, arm)
        path = home / "summary.json"
        if path.exists() and read_object(path).get("setting") != _setting(recipe):
            raise RunError(
                f"{home} is the record of another task, teacher or student; name another folder "
                "with --records (in Python: records=...), or move that one away."
            )


def _run(recipe: Recipe, folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a run: of the one in the folder if it is finished, else after running it."""
    recorded, done = folder / "recipe.yaml", folder / "metrics.json"
    started = recorded.exists()
    same = started and recorded.read_text(encoding="utf-8") == dump_recipe(recipe)
    if not (same and done.exists()):
        run(recipe, out=folder, resume=started, **options)
    metrics: dict[str, Any] = read_json(done)
    return metrics


def merge(recipes: Sequence[Recipe]) -> Recipe:
    """One recipe with the arms of all.

    Raises:
        RecipeError: none, recipes that differ in more than their arms or lack the student alone,
            or an arm that two recipes describe differently.
    """
    if not recipes:
        raise RecipeError("There is nothing to compare; name one recipe or more.")
    first = recipes[0]
    arms: dict[str, Arm] = {}
    for recipe in recipes:
        if not recipe.alone:
            raise RecipeError(
                f"The recipe {recipe.name!r} says `alone: false`; a fair comparison has the "
                "student alone beside every arm: remove that line."
            )
        for key in ("task", "teacher", "teachers", "student", "train", "seeds"):
            mine, theirs = getattr(first, key), getattr(recipe, key)
            if mine != theirs:
                raise RecipeError(
                    f"The recipes {first.name!r} and {recipe.name!r} differ in {key!r}; a fair "
                    "comparison has one for all: make them the same, or compare them apart."
                )
        for name, arm in recipe.contenders.items():
            if arms.setdefault(name, arm) != arm:
                raise RecipeError(
                    f"The arm {name!r} of {recipe.name!r} differs from that of another recipe; "
                    "rename it, or make them the same."
                )
    if not arms:
        raise RecipeError(f"The recipe {first.name!r} has no arms to compare.")
    if "control" in arms:
        raise RecipeError(
            "An arm cannot be called 'control', which is what needs no network; rename it."
        )
    names = ", ".join(recipe.name for recipe in recipes)
    changes = {"arms": arms, "terms": (), "system": None, "task_weight": 1.0, "title": names}
    return first.model_copy(update=changes)


def control(task: Task, held: Task) -> dict[str, Any] | None:
    """The best of some methods without a network, chosen on the validation slice.

    A task may know its own; of images with one class each, it is the best of some classifiers.

    Args:
        task: trained on its labelled training samples, measured on its test set.
        held: the same without the slice, which is its test set.

    Returns:
        ``classifier``, its name; ``metric``, that of the task where it knows its own, else
        accuracy; ``value``, on the test set; ``chosen_on``, for each that was tried its figure on
        the slice; ``package``, whose they are. ``None``: no method is known.
    """
    own = task.control(held)
    if own is not None:
        return dict(own)
    if not (task.class_names and _are_images_of_classes(task)):
        return None
    candidates = _classifiers()
    x, y = _arrays(held, "train")
    slice_x, slice_y = _arrays(held, "test")
    chosen_on = {
        name: make().fit(x, y).score(slice_x, slice_y) for name, make in candidates.items()
    }

    def value(name: str) -> float:
        model = candidates[name]().fit(*_arrays(task, "train"))
        return float(model.score(*_arrays(task, "test")))

    return best_of(chosen_on, "accuracy", value)


def _are_images_of_classes(task: Task) -> bool:
    """Whether the samples are images, each with one label."""
    test = task.splits["test"]
    raw = next(evaluation_batches(task, test, batch_size=2, share=(0, 1), workers=0))
    return "image" in raw and raw["labels"].ndim == 1


def _control_once(task: Task, held: Task, path: Path, resume: bool) -> dict[str, Any] | None:
    """The control, from an earlier session where there was one."""
    if not (resume and path.exists()):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(control(task, held), indent=1))
    found: dict[str, Any] | None = read_json(path)
    return found


def _classifiers() -> dict[str, Callable[[], Any]]:
    with scikit_learn():
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.linear_model import LogisticRegression
        from sklearn.neighbors import KNeighborsClassifier
    return {
        "logistic regression, C=0.01": partial(LogisticRegression, C=0.01, max_iter=2000),
        "logistic regression, C=0.1": partial(LogisticRegression, C=0.1, max_iter=2000),
        "logistic regression, C=1": partial(LogisticRegression, C=1.0, max_iter=2000),
        "nearest neighbour": partial(KNeighborsClassifier, 1),
        "5 nearest neighbours": partial(KNeighborsClassifier, 5),
        "gradient boosting": partial(
            HistGradientBoostingClassifier, max_iter=100, early_stopping=False, random_state=0
        ),
    }


def _arrays(task: Task, split: str) -> tuple[Any, Any]:
    """The labelled images of a split, prepared as for a network and flattened."""
    data = task.splits[split]
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for raw in evaluation_batches(task, data, batch_size=512, share=(0, 1), workers=0):
        batch = task.prepare(raw, train=False, seed=0, epoch=0)
        known = batch["labels"] != task.ignore_label
        images.append(batch["image"][known].flatten(1))
        labels.append(batch["labels"][known])
    return torch.cat(images).numpy(), torch.cat(labels).numpy()


def _sliced(recipe: Recipe, holdout: int) -> Recipe:
    """The recipe with the last training samples as its test set."""
    task = recipe.task
    if not isinstance(task, TaskSpec) or "data" not in task.arguments:
        raise RecipeError(
            "congener bench needs a `task` by name with its `data`, to cut off a validation slice."
        )
    given = task.arguments["data"]
    data = dict(given) if isinstance(given, Mapping) else {"name": given}
    if data.get("holdout") is not None:
        raise RecipeError(
            f"{recipe.place('task', 'data')}: congener bench cuts off a validation slice of its "
            "own and measures on the test set; leave `holdout` out of the recipe."
        )
    sliced = TaskSpec.model_validate(
        {"name": task.name, **task.arguments, "data": data | {"holdout": holdout}}
    )
    return recipe.model_copy(update={"task": sliced})


def _tune(recipe: Recipe, out: Path, holdout: int, options: dict[str, Any]) -> list[dict[str, Any]]:
    """The student alone under each setting: its mean on the validation slice over two seeds."""
    sliced, seeds = _sliced(recipe, holdout), recipe.seeds[:2]
    # A sampler that draws from what the teacher sees needs the teacher, also for the student alone.
    teacher = recipe.teacher if recipe.train.sampler == "superclass_uniform" else None
    tried: list[dict[str, Any]] = []
    for factors in product(*FACTORS.values()):
        settings = {
            name: _scaled(getattr(recipe.train, name), factor)
            for name, factor in zip(FACTORS, factors, strict=True)
        }
        if any(settings == each["settings"] for each in tried):
            continue  # no weight decay has no multiples
        label = "-".join(f"{name}-{value:g}" for name, value in settings.items())
        alone = sliced.model_copy(
            update={
                "name": label, "teacher": teacher, "teachers": {}, "arms": {}, "published": None,
                "seeds": seeds, "train": recipe.train.model_copy(update=settings),
            }
        )  # fmt: skip
        mean = None
        try:
            metrics = _run(alone, out / label, options)
            mean = float(np.mean(metrics["arms"]["alone"][metrics["metric"]]))
        except NonFiniteLossError:
            pass  # a setting under which it diverges is not the best one
        tried.append({"settings": settings, "mean": mean, "seeds": list(seeds)})
    return tried


def _scaled(value: float, factor: float) -> float:
    """A multiple in three digits; the recipe's own value as it is."""
    return value if factor == 1 else float(f"{value * factor:.3g}")


def _best(tried: Sequence[dict[str, Any]], *, higher: bool) -> dict[str, Any]:
    """The setting with the best mean, of those that did not diverge."""
    finite = [each for each in tried if each["mean"] is not None and math.isfinite(each["mean"])]
    if not finite:
        raise CongenerError(
            "The student alone diverges under every setting that was tried; lower train.lr."
        )
    return (max if higher else min)(finite, key=lambda each: each["mean"])


def _setting(recipe: Recipe) -> dict[str, Any]:
    """What all records of a comparison share."""
    shared = {"task", "teacher", "teachers", "student"}
    return recipe.model_dump(mode="json", include=shared)


def _home(records: Path, recipe: Recipe, arm: str) -> Path:
    """The folder of a record: task, data and arm, of which a path keeps its last part."""
    task: Any = recipe.task
    data = task.arguments["data"]
    name = data.get("name", "") if isinstance(data, Mapping) else data
    parts = [re.sub(r"[^\w.+-]+", "_", Path(str(part)).name) for part in (task.name, name)]
    return records / "-".join([*parts, arm])


def _record(
    records: Path,
    arm: str,
    recipe: Recipe,
    folder: Path,
    metrics: Mapping[str, Any],
    tuning: Mapping[str, Any],
    floor: Mapping[str, Any] | None,
) -> Record:
    """Write the record of one arm, beside those that it has to beat; its summary comes last."""
    metric, rows = metrics["metric"], metrics["arms"]
    names = [name for name in dict.fromkeys(("alone", *BESIDE, arm)) if name in rows]
    values = {name: rows[name][metric] for name in names}
    levels = {name: values[name] for name in names if name != arm}
    if floor is not None and floor["metric"] == metric:
        values["control"] = [floor["value"]]
        levels["control"] = [floor["value"]] * len(values[arm])
    comparisons = {
        name: {
            "against": name,
            **compare(values[arm], level, higher=metrics["higher_is_better"]),
        }
        for name, level in levels.items()
    }
    described, teacher = recipe.contenders[arm], rows.get("teacher")
    summary = {
        "task": recipe.task.name if isinstance(recipe.task, TaskSpec) else metrics["task"],
        "data": metrics["data"],
        "system": arm,
        "metric": metric,
        "higher_is_better": metrics["higher_is_better"],
        "arms": values,
        "control": floor and dict(floor),
        "comparisons": comparisons,
        "paired_p": comparisons["alone"]["p"],
        "teacher": teacher[metric][:1] if teacher else [],
        "teacher_model": teacher["model"] if teacher else "",
        "starts_from": described.starts_from,
        "learns_from": described.learns_from,
        "student": rows[arm]["model"],
        "parameters": {name: rows[name]["parameters"] for name in names},
        "seeds": metrics["seeds"],
        "steps": metrics["steps"],
        "batch_size": metrics["batch_size"],
        "tuning": dict(tuning),
        "settings": recipe.train.model_dump(mode="json", exclude_defaults=True),
        "setting": _setting(recipe),
        "seconds": {name: rows[name]["seconds"] for name in names},
        "command": metrics["command"],
        "environment": read_json(folder / "environment.json"),
        "evaluated_on": "test, last step",
    }
    home = _home(records, recipe, arm)
    home.mkdir(parents=True, exist_ok=True)
    (home / "summary.json").unlink(missing_ok=True)
    only = _with_sources({name: recipe.contenders[name] for name in names[1:]}, recipe)
    write_text(home / "recipe.yaml", dump_recipe(recipe.model_copy(update={"arms": only})))
    write_text(home / "log.jsonl", _log(folder / "events.jsonl", {"alone", *only}))
    write_text(home / "summary.json", json.dumps(summary, indent=1) + "\n")
    return Record(home, summary)


def _with_sources(arms: dict[str, Arm], recipe: Recipe) -> dict[str, Arm]:
    """The arms, in their order, with those that they start or learn from."""
    wanted = set(arms)
    for name in reversed(recipe.contenders):
        if name in wanted:
            arm = recipe.contenders[name]
            wanted |= {source for source in (arm.starts_from, arm.learns_from) if source}
    return {name: arm for name, arm in recipe.contenders.items() if name in wanted}


def _log(events: Path, arms: Collection[str]) -> str:
    """The evaluations and ends of the fits of these arms, of the teacher, and of all stages.

    Arms share what a stage fitted, so a stage belongs to none of them alone.
    """
    kinds = ("fit_started", "evaluation", "fit_finished")
    kept = []
    for line in events.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            event = json.loads(line)
        except ValueError:
            continue  # torn when a session was killed
        owner = str(event.get("fit", "")).partition("/")[0]
        if event["event"] in kinds and owner in {"teacher", "stages", *arms}:
            kept.append(line)
    return "".join(kept)
