"""The Python doors: ``run`` for a recipe, ``distill`` for networks and data at hand.

Both build a :class:`congener.recipe.Recipe` and hand it to the same runner, as the command does.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    default_collate,
    default_convert,
)

from congener.assembly import Assembly
from congener.errors import DataError, RecipeError
from congener.planning import plan
from congener.recipe import AnyTerm, Recipe, load_recipe, parse_recipe
from congener.report import write_report
from congener.runlog import Event
from congener.runner import Run, execute, load_student
from congener.task import Task
from congener.types import Term

__all__ = ["Distilled", "as_recipe", "describe", "distill", "run", "validate"]


class Distilled(NamedTuple):
    """What :func:`distill` returns: the trained student of the first seed, and the run."""

    student: nn.Module
    run: Run


def run(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    overrides: Sequence[str] = (),
    trust: Collection[str] = (),
    observers: tuple[Callable[[Event], None], ...] = (),
    command: str | None = None,
) -> Run:
    """Run a recipe and write its report.

    Args:
        recipe: a recipe, its plain values, or the path of its file.
        out: the run folder; default: ``runs/<name of the recipe>``.
        resume: go on with the run in ``out``.
        overrides: ``key.sub=value`` changes to a recipe file.
        trust: packages outside congener whose code the recipe may name.
        observers: called with every event.
        command: how to repeat the run, for the record.

    Returns:
        The run: its folder, which holds ``report.html``, and its metrics (on the first process;
        empty on the others).

    Raises:
        CongenerError: whatever does not fit, in one sentence.
    """
    recipe = as_recipe(recipe, overrides)
    folder = Path("runs") / recipe.name if out is None else Path(out)
    finished = execute(
        recipe, folder, resume=resume, trust=trust, observers=observers, command=command
    )
    if finished.metrics:
        write_report(folder)
    return finished


def validate(
    recipe: Recipe | Mapping[str, Any] | str | Path, *, trust: Collection[str] = ()
) -> None:
    """Build everything a recipe names and run two samples through every arm.

    Raises:
        CongenerError: the first thing that does not fit.
    """
    Assembly(as_recipe(recipe), trust).check()


def distill(
    student: nn.Module | str | Mapping[str, Any],
    teacher: nn.Module | Mapping[str, Any] | None,
    train: Task | Dataset[Any] | DataLoader[Any] | str | Mapping[str, Any],
    val: Dataset[Any] | DataLoader[Any] | None = None,
    *,
    terms: Sequence[AnyTerm | Mapping[str, Any]] | Literal["auto"] = (),
    system: str | Mapping[str, Any] | None = None,
    task_weight: float = 1.0,
    alone: bool = False,
    seeds: Sequence[int] = (0,),
    out: str | Path | None = None,
    resume: bool = False,
    **settings: Any,
) -> Distilled:
    """Distil a teacher into a student.

    Args:
        student: a network (left as it is; a copy is trained), or its name and arguments.
        teacher: the trained network (it is frozen and moved to the CPU), or a mapping of its
            ``name`` and ``checkpoint`` or ``train``.
        train: what the student learns from: a map-style data set of ``(image, label)`` (label -100
            where it has none), the name of a data set of ours, or a task. Of a loader, the data
            set and the batch size are taken; the order is the engine's, so that a run can be
            resumed, and a loader with a sampler or a ``collate_fn`` of its own is refused.
        val: the set to evaluate on; needed with a data set of yours.
        terms: :class:`congener.Term` objects, or mappings as in a recipe; ``"auto"``: what
            :func:`congener.plan` chooses for the two networks.
        system: instead of terms, a system by name, or a mapping of its ``name`` and arguments.
        task_weight: weight of the supervised loss.
        alone: also train the student without the teacher, for comparison.
        seeds: one run for each; a network given as an object starts from its own weights in each.
        out: the run folder; default: ``runs/distill``.
        resume: go on with the run in ``out``.
        **settings: fields of :class:`congener.engine.FitConfig`, such as ``epochs=30, lr=1e-3``.

    Returns:
        The trained student of the first seed, and the run.

    Raises:
        CongenerError: whatever does not fit, in one sentence.
    """
    recipe = describe(
        student, teacher, train, val,
        terms=terms, system=system, task_weight=task_weight, alone=alone, seeds=seeds,
        name="distill" if out is None else Path(out).resolve().name, **settings,
    )  # fmt: skip
    finished = run(recipe, out=out, resume=resume)
    arm = next(iter(recipe.contenders), "alone")
    trained = load_student(recipe, finished.folder, arm, recipe.seeds[0])
    return Distilled(trained, finished)


def describe(
    student: nn.Module | str | Mapping[str, Any],
    teacher: nn.Module | Mapping[str, Any] | None,
    train: Task | Dataset[Any] | DataLoader[Any] | str | Mapping[str, Any],
    val: Dataset[Any] | DataLoader[Any] | None = None,
    *,
    terms: Sequence[AnyTerm | Mapping[str, Any]] | Literal["auto"] = (),
    system: str | Mapping[str, Any] | None = None,
    task_weight: float = 1.0,
    alone: bool = False,
    seeds: Sequence[int] = (0,),
    name: str = "distill",
    **settings: Any,
) -> Recipe:
    """The recipe of :func:`distill`, which takes the same arguments, without running it.

    Raises:
        CongenerError: whatever does not fit, in one sentence.
    """
    if isinstance(train, DataLoader):
        settings.setdefault("batch_size", train.batch_size or 64)
        settings.setdefault("drop_last", train.drop_last)
    classes = _classes([teacher, student], train)
    described = {
        "name": name,
        "task": _task(train, val, classes),
        "teacher": teacher,
        "student": student,
        "system": system,
        "train": settings,
        "seeds": tuple(seeds),
    }
    if isinstance(terms, str):
        terms = _planned(terms, parse_recipe(described))
    more = {
        "terms": (terms,) if isinstance(terms, Term) else tuple(terms),
        "task_weight": task_weight,
        "alone": alone or not (terms or system),
    }
    return parse_recipe(described | more)


def _planned(word: str, recipe: Recipe) -> list[dict[str, Any]]:
    """The terms that the plan chooses for the networks of a recipe, as a recipe writes them."""
    if word != "auto" or recipe.teacher is None:
        raise RecipeError(
            f"terms={word!r} should be 'auto', with a teacher, or a list of terms, as in "
            "terms=[{'loss': 'kd'}]."
        )
    assembly = Assembly(recipe)
    student, teacher = assembly.student(recipe.seeds[0]), assembly.teacher()
    assert teacher is not None
    found = plan(student, teacher, assembly.sample(2), task=assembly.task, losses=())
    return [
        {"loss": p.loss, "weight": p.weight, "student": p.student, "teacher": p.teacher}
        for p in found.chosen
    ]


def as_recipe(
    recipe: Recipe | Mapping[str, Any] | str | Path, overrides: Sequence[str] = ()
) -> Recipe:
    """A recipe from whatever describes it: itself, plain values, or a file with overrides.

    Raises:
        RecipeError: whatever does not fit, in one sentence.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, str | Path):
        return load_recipe(recipe, overrides)
    return parse_recipe(recipe)


def _task(train: Any, val: Any, classes: int | None) -> Any:
    """The task that a user's data make."""
    if isinstance(train, Task):
        return train
    if isinstance(train, str | Mapping):
        return {"name": "image_classification", "data": train}
    if val is None:
        raise DataError("With a data set of yours, distill() needs `val`, the set to evaluate on.")
    from congener.tasks.image_classification import ImageClassification  # behind its extra

    return ImageClassification.from_datasets(_dataset(train), _dataset(val), num_classes=classes)


def _classes(networks: list[Any], train: Any) -> int | None:
    """How many classes the first network at hand tells apart on a user's data, if there is one."""
    if isinstance(train, Task | str | Mapping):
        return None
    sample = _dataset(train)[0]
    image = sample["image"] if isinstance(sample, Mapping) else sample[0]
    for network in networks:
        if isinstance(network, nn.Module) and isinstance(image, Tensor):
            was_training = network.training
            device = next((p.device for p in network.parameters()), image.device)
            with torch.no_grad():
                answer = network.eval()(image[None].float().to(device))
            network.train(was_training)
            logits = answer if isinstance(answer, Tensor) else getattr(answer, "logits", None)
            return None if logits is None else logits.shape[-1]
    return None


def _dataset(data: Dataset[Any] | DataLoader[Any]) -> Dataset[Any]:
    """The data set of a loader: the engine makes the batches, so that a run can be resumed."""
    if not isinstance(data, DataLoader):
        return data
    if isinstance(data.sampler, SubsetRandomSampler):
        return Subset(data.dataset, data.sampler.indices)
    own = {
        "a sampler": type(data.sampler) not in (RandomSampler, SequentialSampler),
        "a batch_sampler": type(data.batch_sampler) not in (BatchSampler, type(None)),
        "a collate_fn": data.collate_fn not in (default_collate, default_convert),
    }
    for what, is_own in own.items():
        if is_own:
            raise DataError(
                f"The loader has {what} of its own, which congener would not use (it makes the "
                "batches itself); put what it does into the data set and pass that."
            )
    return data.dataset
