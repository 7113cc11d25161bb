"""The options of SKD as a recipe or Python gives them: numbers, schedules, weights, the loss."""

import math
from collections.abc import Mapping
from copy import copy
from numbers import Real
from typing import Any

from torch import nn

from congener.errors import RecipeError, did_you_mean
from congener.losses import GKDLoss, KDLoss, SkewKLLoss, TotalVariationLoss
from congener.naming import bind, resolve
from congener.schedules import Schedule
from congener.types import Progress

__all__ = ["WEIGHTS", "at", "number", "scheduled", "token_loss", "weights_of"]

NUMBERS: Any = Real  # NumPy's too
WEIGHTS = {"task": 0.0, "kd": 1.0}
LOSSES = {loss.name: loss for loss in (GKDLoss, KDLoss, SkewKLLoss, TotalVariationLoss)}


def number(name: str, value: float, most: float = math.inf) -> float:
    """A number that is not negative, nor above a limit.

    Raises:
        RecipeError: another one, or none.
    """
    if isinstance(value, bool) or not isinstance(value, NUMBERS):
        raise RecipeError(f"{name} must be a number, not {value!r}.")
    if not 0 <= value <= most or not math.isfinite(value):
        limit = "" if most == math.inf else f" and at most {most:g}"
        raise RecipeError(f"{name} must be finite, at least 0{limit}, not {value}.")
    return value


def scheduled(
    name: str, value: float | Schedule | Mapping[str, Any], most: float = math.inf
) -> float | Schedule:
    """A number, or a schedule that gives it, within limits from its start to its end.

    Raises:
        RecipeError: one outside them, or none, or an unknown argument of the schedule.
    """
    if isinstance(value, Mapping):
        value = Schedule(**bind("part", name, Schedule, value))
    ends = (value.start, value.end) if isinstance(value, Schedule) else (value,)
    for each in ends:
        number(name, each, most)
    return value


def at(value: float | Schedule, progress: Progress) -> float:
    """What a number is at some point of the training."""
    if isinstance(value, Schedule):
        return value.factor(progress.step, progress.steps, progress.epoch)
    return value


def weights_of(given: Mapping[str, float]) -> dict[str, float]:
    """The factor of each term; one that is not named keeps its default.

    Raises:
        RecipeError: an unknown term, a weight that is negative or no number, or none at all.
    """
    if not isinstance(given, Mapping):
        raise RecipeError(f"term_weights must give terms their factors, not be {given!r}.")
    for name, weight in given.items():
        if name not in WEIGHTS:
            raise RecipeError(f"SKD has no term {name!r} to weigh; {did_you_mean(name, WEIGHTS)}")
        number(f"The weight of {name!r}", weight)
    weights = {**WEIGHTS, **given}
    if not any(weights.values()):
        raise RecipeError("All term_weights are 0, so nothing would be learnt; give one a weight.")
    return weights


def token_loss(given: nn.Module | str | Mapping[str, Any]) -> nn.Module:
    """A loss that gives a number for each token, itself or by its name and arguments.

    Raises:
        RecipeError: an unknown name or argument, or a loss that does not reduce.
    """
    loss: Any
    if isinstance(given, nn.Module):
        loss = copy(given)
    else:
        if not isinstance(given, str | Mapping):
            raise RecipeError(f"loss must be a loss, or its name and arguments, not {given!r}.")
        arguments = {"name": given} if isinstance(given, str) else dict(given)
        name = arguments.pop("name", "gkd")
        build = resolve("loss of token logits", name, LOSSES)
        loss = build(**bind("loss", name, build, arguments))
    if getattr(loss, "reduction", None) != "mean":
        raise RecipeError(
            f"The system 'skd' reduces its loss itself, by `reduction`, so {loss} must have the "
            "reduction 'mean' to begin with."
        )
    loss.reduction = "none"
    found: nn.Module = loss
    return found
