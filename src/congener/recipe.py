"""A recipe: the frozen, validated description of a whole experiment.

YAML and Python build the same object. A recipe is data, not a program: names resolve among
congener's public names only, YAML tags are refused, and nothing is built until all of it is bound.
"""

import difflib
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PlainSerializer,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from torch import nn

from congener.engine import FitConfig
from congener.errors import RecipeError, did_you_mean
from congener.task import Task
from congener.types import Term

__all__ = [
    "Arm",
    "LossSpec",
    "ModelSpec",
    "Published",
    "Recipe",
    "TaskSpec",
    "TeacherSpec",
    "TermSpec",
    "dump_recipe",
    "load_recipe",
    "parse_recipe",
]


def _named(value: Any) -> Any:
    """``mlp`` is short for ``{name: mlp}``."""
    return {"name": value} if isinstance(value, str) else value


def _tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _record(value: Any) -> Any:
    """How the recorded recipe shows a value: an object from Python stands as a remark."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return value if value is None else f"<{type(value).__name__} given in Python>"


Spec = TypeVar("Spec")
Live = TypeVar("Live")
Either = Annotated[
    Spec | InstanceOf[Live], BeforeValidator(_named), PlainSerializer(_record)
]
"""A description by name, or the object itself handed in from Python."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class _Named(BaseModel):
    """A name and the keyword arguments of what it names."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments: every key that is not this record's own."""
        return dict(self.model_extra or {})


class TaskSpec(_Named):
    """A task by name, for example ``{name: image_classification, data: mnist1d}``."""


class LossSpec(_Named):
    """A loss by name, for example ``{name: kd, temperature: 4}``."""


class ModelSpec(_Named):
    """A network by name, with its arguments and the checkpoint that its weights come from."""

    checkpoint: Path | None = None


class TeacherSpec(ModelSpec):
    """The teacher: from a ``checkpoint``, or trained first with settings of its own (``train``)."""

    train: FitConfig | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _has_weights(self) -> "TeacherSpec":
        if (self.checkpoint is None) == (self.train is None):
            raise ValueError("the teacher needs either `checkpoint` or `train`")
        return self


class TermSpec(_Strict):
    """One distillation term; see :class:`congener.types.Term`."""

    loss: Annotated[LossSpec, BeforeValidator(_named)]
    weight: float = 1.0
    student: Annotated[tuple[str, ...], BeforeValidator(_tuple)] = ()
    teacher: Annotated[tuple[str, ...], BeforeValidator(_tuple)] = ()
    name: str | None = None


AnyTerm = Annotated[TermSpec | InstanceOf[Term], PlainSerializer(_record)]


class Arm(_Strict):
    """One way to train the student: the supervised loss' weight, and the terms beside it."""

    task_weight: float = 1.0
    terms: tuple[AnyTerm, ...] = ()


class Published(_Strict):
    """Figures of the paper or benchmark that a recipe follows, as fractions."""

    source: str
    arms: dict[str, float]


class Recipe(_Strict):
    """A whole experiment: a task, a teacher, a student, and the arms that are compared.

    Args:
        name: of the run; default: the file's stem.
        title: one line for the report.
        task: a task pack with its arguments.
        teacher: a network with its checkpoint or training settings.
        student: the network that every arm trains.
        terms: the terms of a single arm, ``distilled``; short for ``arms``.
        task_weight: the weight of the supervised loss of that arm.
        arms: arms by name, for a comparison.
        alone: also train the student without a teacher, under the same settings.
        train: how every arm is trained.
        seeds: one run of each arm for each.
        published: the figures to print beside ours.
    """

    name: str = "run"
    title: str = ""
    task: Either[TaskSpec, Task]
    teacher: Either[TeacherSpec, nn.Module] | None = None
    student: Either[ModelSpec, nn.Module]
    terms: tuple[AnyTerm, ...] = ()
    task_weight: float = 1.0
    arms: dict[str, Arm] = {}
    alone: bool = True
    train: FitConfig
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    published: Published | None = None

    _source: "_Source | None" = PrivateAttr(default=None)

    def place(self, *path: int | str) -> str:
        """Where a key of this recipe stands: ``file, line n``, or ``recipe``."""
        return (self._source or _Source("recipe", {})).place(path)

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if self.arms and self.terms:
            raise ValueError("give either `terms` (one arm) or `arms`, not both")
        if reserved := {"teacher", "alone"} & set(self.arms):
            raise ValueError(f"an arm cannot be called {sorted(reserved)[0]!r}; rename it")
        if bad := [name for name in self.arms if not name or set(name) & set("/\\.")]:
            raise ValueError(f"an arm cannot be called {bad[0]!r}: it names a folder; rename it")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("every seed may be listed once only")
        if not self.alone and not self.contenders:
            raise ValueError("there is nothing to train: no `terms`, no `arms`, and `alone` is off")
        if self.teacher is None and any(arm.terms for arm in self.contenders.values()):
            raise ValueError("there are distillation terms but no `teacher` to distil from")
        return self

    @property
    def contenders(self) -> dict[str, Arm]:
        """The arms that have terms, by name."""
        if self.terms:
            return {"distilled": Arm(task_weight=self.task_weight, terms=self.terms)}
        return self.arms

    @property
    def all_arms(self) -> dict[str, Arm]:
        """Every arm in the order of the report: the student alone first."""
        return ({"alone": Arm()} if self.alone else {}) | self.contenders


class _Source:
    """A recipe's text: plain values, and where each key stands."""

    def __init__(self, label: str, node: Any) -> None:
        self.label, self._node = label, node

    def place(self, path: Sequence[int | str]) -> str:
        """``file, line n`` of the deepest key of ``path`` that the text has."""
        node, line = self._node, None
        for key in path:
            try:
                position = node.lc.key(key) if isinstance(node, Mapping) else node.lc.item(key)
                line, node = position[0] + 1, node[key]
            except (AttributeError, KeyError, IndexError, TypeError):
                continue
        return self.label if line is None else f"{self.label}, line {line}"


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe file, with ``key.sub=value`` overrides applied to it.

    Raises:
        RecipeError: naming the file and line, what was expected, what came, and the nearest name.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is no text file ({error.reason}); expected YAML.") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise RecipeError(f"Cannot read the recipe {path}: {reason}.") from error
    source = _Source(str(path), _parse(text, str(path)))
    values = _plain(source._node, str(path))
    if not isinstance(values, dict):
        raise RecipeError(f"{path} holds {type(values).__name__}, not the mapping of a recipe.")
    for override in overrides:
        _override(values, override)
    values.setdefault("name", path.stem)
    return parse_recipe(values, source)


def parse_recipe(values: Mapping[str, Any], source: _Source | None = None) -> Recipe:
    """Validate plain values; an error is told as one sentence."""
    source = source or _Source("recipe", {})
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(_sentence(error, source)) from error
    recipe._source = source
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe, every default written out, as YAML."""
    stream = StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(recipe.model_dump(mode="json"), stream)
    return stream.getvalue()


def _parse(text: str, label: str) -> Any:
    try:
        return YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        problem = str(error.problem or error.context).strip().splitlines()[0]
        raise RecipeError(f"{label}{line}: this is no valid YAML ({problem}).") from error
    except YAMLError as error:
        problem = str(error).strip().splitlines()[0]
        raise RecipeError(f"{label}: this is no valid YAML ({problem}).") from error


def _plain(node: Any, label: str) -> Any:
    """Plain Python values; a tag would be a request to build an object, and is refused."""
    tag = getattr(getattr(node, "tag", None), "value", None)
    if tag:
        raise RecipeError(f"{label}: the tag {tag!r} is refused; a recipe holds plain values only.")
    if isinstance(node, Mapping):
        return {str(key): _plain(value, label) for key, value in node.items()}
    if isinstance(node, str):
        return str(node)
    if isinstance(node, Sequence):
        return [_plain(value, label) for value in node]
    for kind in (bool, int, float):
        if isinstance(node, kind):
            return kind(node)
    return node


def _override(values: dict[str, Any], override: str) -> None:
    """Set ``a.b.0.c=value`` in place; the value is read as YAML."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise RecipeError(f"The override {override!r} should read key=value, as in train.lr=0.1.")
    value = _plain(_parse(text, f"override {override!r}"), f"override {override!r}")
    node: Any = values
    keys = path.split(".")
    for position, key in enumerate(keys):
        last = position == len(keys) - 1
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise RecipeError(
                    f"The override {override!r} asks for item {key!r} of a list of {len(node)}."
                )
            slot: Any = int(key)
        else:
            slot = key
        if last:
            node[slot] = value
            return
        child = node[slot] if isinstance(node, list) else node.get(slot)
        if child is None or isinstance(child, str):
            child = {} if child is None else {"name": child}
            node[slot] = child
        if not isinstance(child, dict | list):
            raise RecipeError(
                f"The override {override!r} looks inside {'.'.join(keys[: position + 1])!r}, "
                f"which is {child!r}."
            )
        node = child


def _sentence(error: ValidationError, source: _Source) -> str:
    """The most telling problem of a validation, as one sentence with its place."""
    problems = error.errors()
    # A union reports every alternative; those for objects given in Python are never the point.
    problems = [p for p in problems if p["type"] != "is_instance_of"] or problems
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    fields = [str(k) for k in problem["loc"]]
    path = [k for k in problem["loc"] if isinstance(k, int) or not k.endswith(("Spec", "]"))]
    key = ".".join(str(k) for k in path)
    place = source.place(path)
    if problem["type"] == "extra_forbidden":
        known = _fields_at(fields[:-1])
        return f"{place}: unknown key {key!r}; {did_you_mean(fields[-1], known)}"
    if problem["type"] == "missing":
        return f"{place}: the key {key!r} is missing."
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{place}: {f'{key}: ' if key else ''}{message}."
    got = repr(problem["input"])
    close = ""
    if problem["type"] == "literal_error" and isinstance(problem["input"], str):
        options = str(problem.get("ctx", {}).get("expected", "")).replace("'", "")
        near = difflib.get_close_matches(problem["input"], options.replace(" or ", ", ").split(", "))
        close = f"; did you mean {near[0]!r}?" if near else ""
    return f"{place}: {key!r} is {got}: {message[:1].lower()}{message[1:]}{close}."


def _fields_at(path: Sequence[str]) -> list[str]:
    """The keys that a recipe has at a path of a validation error."""
    inside: dict[str, type[BaseModel]] = {
        "train": FitConfig, "published": Published, "TermSpec": TermSpec, "arms": Arm,
    }  # fmt: skip
    for step in reversed(path):
        if step in inside:
            return list(inside[step].model_fields)
    return list(Recipe.model_fields)
