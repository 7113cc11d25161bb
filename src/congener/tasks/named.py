"""What a recipe names of a pack: a public function with its arguments, checked before any call."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any

from torch import Tensor

from congener.errors import CongenerError, RecipeError, did_you_mean
from congener.naming import accepted_names, bind, resolve

__all__ = ["augmentation", "named"]

DRAWN = ("ids", "seed", "epoch")
"""What every augmentation is told beside the samples."""


def named(
    kind: str,
    given: str | Mapping[str, Any],
    modules: Sequence[ModuleType],
    *,
    own: Collection[str] = (),
) -> "partial[Any]":
    """The public function of one of some modules that a recipe names, with its arguments.

    Args:
        kind: what it is, for the errors.
        given: its name, or a mapping with its ``name`` and arguments.
        modules: whose ``__all__`` has it.
        own: names of the arguments that the pack passes later, which a recipe cannot.

    Raises:
        RecipeError: an unknown name or argument, or a value of another type.
    """
    arguments = {"name": given} if isinstance(given, str) else dict(given)
    name = arguments.pop("name", None)
    if not isinstance(name, str):
        raise RecipeError(
            f"The {kind} is a mapping without a 'name'; expected {{'name': ..., ...}}."
        )
    public = {known: getattr(module, known) for module in modules for known in module.__all__}
    function = resolve(kind, name, public)
    options = [option for option in accepted_names(function) if option not in own]
    for key in arguments:
        if key not in options:
            raise RecipeError(
                f"The {kind} {name!r} takes no argument {key!r}; {did_you_mean(key, options)} "
                f"It takes: {', '.join(options) or 'none'}."
            )
    bound = bind(kind, name, function, arguments, defaults=dict.fromkeys(own))
    return partial(function, **{key: value for key, value in bound.items() if key not in own})


def augmentation(
    given: str | Mapping[str, Any],
    modules: Sequence[ModuleType],
    try_it: Callable[["partial[Tensor]"], Tensor],
    *,
    own: Collection[str],
) -> "partial[Tensor]":
    """The augmentation that a recipe names, tried so that a wrong value shows before training.

    Args:
        given: as for :func:`named`.
        modules: likewise.
        try_it: calls it on a sample.
        own: names of the tensors that it takes.
    """
    chosen = named("augmentation", given, modules, own=[*own, *DRAWN])
    try:
        try_it(chosen)
    except CongenerError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise RecipeError(
            f"The augmentation {given!r} does not work on samples of this data: {error}"
        ) from error
    return chosen
