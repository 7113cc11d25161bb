"""A name and keyword arguments from a recipe, bound to a public callable before it is called."""

import importlib
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, get_args, get_type_hints

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from congener.errors import RecipeError, did_you_mean

__all__ = ["accepted_names", "bind", "expected", "resolve"]

KINDS = {
    "bool": "true or false", "int": "a whole number", "float": "a number", "finite_number": "a "
    "finite number", "string": "text", "path": "a path", "tuple": "a list, as in [0, 1]",
    "list": "a list, as in [0, 1]", "sequence": "a list, as in [0, 1]",
    "sequence_str": "a list, as in [0, 1]", "dict": "a mapping of names to values",
    "mapping": "a mapping of names to values", "model": "a mapping of names to values",
    "unexpected_keyword_argument": "no key of that name",
    "dataclass": "'own', or a mapping of mean, std and size",
}  # fmt: skip
"""What a value should have been, by the kind of pydantic's error."""


def resolve(kind: str, name: str, public: Mapping[str, Any], *, trust: Collection[str] = ()) -> Any:
    """The public object called ``name``, or what a dotted path of a trusted package leads to.

    Args:
        kind: what is looked for, for the error.
        name: a name among ``public``, or ``package.module.object``.
        public: names to objects.
        trust: packages whose code a recipe may name.

    Raises:
        RecipeError: no such name (with the nearest known one), or a package that is not trusted.
    """
    if name in public:
        return public[name]
    if not re.fullmatch(r"\w+(\.\w+)+", name):
        raise RecipeError(f"There is no {kind} named {name!r}; {did_you_mean(name, public)}")
    package = name.split(".")[0]
    if package not in trust:
        raise RecipeError(
            f"The {kind} {name!r} is code outside congener, which a recipe runs only on request; "
            f"add `--trust {package}` if you trust it."
        )
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"The {kind} {name!r} cannot be found ({error}).") from error


def accepted_names(function: Callable[..., Any]) -> dict[str, bool]:
    """Names that ``function`` takes by keyword, and whether each is required.

    Options that are passed on as ``**options: Unpack[SomeTypedDict]`` count one by one.
    """
    names: dict[str, bool] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            for options in get_args(parameter.annotation):
                names |= dict.fromkeys(options.__annotations__, False)
        else:
            names[parameter.name] = parameter.default is inspect.Parameter.empty
    return names


def bind(
    kind: str,
    name: str,
    function: Callable[..., Any],
    given: Mapping[str, Any],
    *,
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Keyword arguments for ``function``: those given, and those defaults that it knows.

    Text and numbers are passed as what they stand for, such as 8 for "8" or 8.0.

    Raises:
        RecipeError: an argument that it does not take, lacks, or whose type differs, before
            anything is built.
    """
    accepted = accepted_names(function)
    for key in given:
        if key not in accepted:
            raise RecipeError(
                f"The {kind} {name!r} takes no argument {key!r}; {did_you_mean(key, accepted)} "
                f"It takes: {', '.join(accepted) or 'none'}."
            )
    arguments = {k: v for k, v in (defaults or {}).items() if k in accepted} | dict(given)
    for key, required in accepted.items():
        if required and key not in arguments:
            raise RecipeError(f"The {kind} {name!r} needs the argument {key!r}.")
    return arguments | _checked(kind, name, function, given)


def expected(problem: Mapping[str, Any]) -> str:
    """What one of pydantic's errors asks for, in a recipe's words."""
    kind = str(problem["type"])
    if str(problem.get("ctx", {}).get("class_name")).endswith("Spec"):
        return "expected a name, or a mapping of names to values"
    for start, words in KINDS.items():
        if kind == start or kind.startswith((f"{start}_type", f"{start}_parsing", f"{start}_from")):
            return f"expected {words}"
    message = str(problem["msg"])
    return message.replace("Input should be", "expected", 1).removeprefix("Value error, ")


def _checked(
    kind: str, name: str, function: Callable[..., Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The values given, as ``function`` wants them."""
    checked = dict(given)
    annotated = function.__init__ if inspect.isclass(function) else function
    hints = get_type_hints(annotated)
    for hint in list(hints.values()):
        for options in get_args(hint):
            if inspect.isclass(options) and issubclass(options, dict):
                hints |= get_type_hints(options)
    for key, value in given.items():
        if key not in hints:
            continue
        try:
            adapter = TypeAdapter(hints[key], config=ConfigDict(arbitrary_types_allowed=True))
        except (PydanticSchemaGenerationError, TypeError):
            continue  # a type that cannot be checked from outside, such as a record of ours
        try:
            found = adapter.validate_python(value)
        except ValidationError as error:
            problems = error.errors()  # of a union, one for each alternative
            told = [p for p in problems if not str(p["type"]).startswith("dataclass")] or problems
            raise RecipeError(
                f"The argument {key!r} of the {kind} {name!r} is {value!r}: {expected(told[0])}."
            ) from error
        if isinstance(value, str | float):
            checked[key] = found
    return checked
