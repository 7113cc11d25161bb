"""The examination: a recipe is built, looked at in every way, and nothing is trained."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from congener.api import as_recipe
from congener.assembly import Assembly
from congener.engine.feed import epoch_batches
from congener.errors import CongenerError
from congener.preflight.data import examine_data, examine_stages
from congener.preflight.finding import BROKEN, Finding, Patient, untouched
from congener.preflight.teachers import examine_teacher
from congener.preflight.terms import cannot_run, examine_arm
from congener.recipe import Recipe

__all__ = ["doctor"]

MOST = 128  # samples of the batch that is looked at


def doctor(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    *,
    out: str | Path | None = None,
    trust: Collection[str] = (),
) -> list[Finding]:
    """Find what would silently ruin a run, in seconds, before anything is trained.

    It looks at the teacher (mode, drifting statistics, knowledge, normalisation, order of classes),
    at the data (order, duplicates between training and test set, labels) and at every arm (taps
    that are dead or tied to a mode, gradients that reach the teacher, nothing, or too far, parts
    that are hidden from the optimiser, batches that are too small, results kept of other runs).

    Args:
        recipe: a recipe, its plain values, or the path of its file;
            :func:`congener.as_recipe` makes one of networks and data at hand.
        out: the run folder, whose kept results are looked at; default: ``runs/<name>``.
        trust: packages outside congener whose code the recipe may name.

    Returns:
        What was found; an empty list where all is well. What needs a trained teacher is not looked
        at where the run itself trains it. Networks given as objects are as before.

    Raises:
        CongenerError: the recipe cannot be built at all.
    """
    recipe = as_recipe(recipe)
    given = (recipe.teacher, recipe.student, *recipe.teachers.values())
    with untouched(network for network in given if isinstance(network, nn.Module)):
        return list(_findings(recipe, out, trust))


def _findings(recipe: Recipe, out: str | Path | None, trust: Collection[str]) -> Iterator[Finding]:
    assembly = Assembly(recipe, trust)
    task = assembly.task
    config = recipe.train
    groups = task.labels("train") if config.sampler == "class_uniform" else None
    each = 1 if groups is None else config.per_class
    size = min(config.batch_size, MOST) // each * each
    few = 0 if task.labelled is None else min(len(task.labelled), size // 2) // each * each
    raw = next(
        epoch_batches(
            task, task.splits["train"], batch_size=size, seed=recipe.seeds[0], epoch=0,
            first=0, last=1, share=(0, 1), workers=0, labelled=task.labelled,
            labelled_per_batch=few, groups=groups, per_group=each,
        )
    )  # fmt: skip
    batch = task.prepare(raw, train=True, seed=recipe.seeds[0], epoch=0)
    folder = Path("runs") / recipe.name if out is None else Path(out)
    patient = Patient(recipe, assembly, task, assembly.teacher(), batch, folder)
    yield from examine_data(patient)
    try:
        assembly.check()
    except BROKEN as error:
        if isinstance(error, CongenerError):
            raise
        yield cannot_run("recipe", error)
        return
    yield from examine_teacher(patient)
    for arm, system in patient.systems():
        yield from examine_arm(patient, arm, system)
    yield from examine_stages(patient)
