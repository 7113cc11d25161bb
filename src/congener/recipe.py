"""A recipe: the frozen, validated description of a whole experiment.

YAML and Python build the same object. A recipe is data, not a program: names resolve among
congener's public names only, YAML tags are refused, and nothing is built until all of it is bound.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
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
from torch import nn

from congener.engine import FitConfig
from congener.errors import RecipeError, did_you_mean
from congener.naming import expected
from congener.recipe_text import Source, override_value, parse_yaml, plain
from congener.schedules import Schedule
from congener.task import Task
from congener.teachers import Preprocessing
from congener.types import Term

__all__ = [
    "Arm",
    "CacheSpec",
    "LossSpec",
    "ModelSpec",
    "Published",
    "Recipe",
    "SystemSpec",
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


def _folder(name: str) -> str:
    """A name that a folder can have, and that leads nowhere else."""
    odd = not name.isprintable() or {*name} & {*"/\\"}
    if odd or name[:1] in ("", ".") or len(name) > 100:
        raise ValueError(
            f"{name!r} names a folder: take a short name without slashes that starts with no dot"
        )
    return name


def _arm(name: str) -> str:
    if name in ("teacher", "alone"):
        raise ValueError(f"an arm cannot be called {name!r}, which every run has; rename it")
    return _folder(name)


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
        raise ValueError(f"the seed {twice[0]} is listed twice; list every seed once")
    return seeds


Seed = Annotated[int, Field(ge=0, lt=2**31)]
Spec = TypeVar("Spec")
Live = TypeVar("Live")
Either = Annotated[Spec | InstanceOf[Live], BeforeValidator(_named), PlainSerializer(_record)]
"""A description by name, or the object itself handed in from Python."""


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False
    )


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


class SystemSpec(_Named):
    """A system by name, for example ``{name: sskd, views: rotations}``."""


class ModelSpec(_Named):
    """A network by name, with its arguments and the checkpoint that its weights come from.

    Of a teacher, ``preprocessing`` says how it wants its images: mean, std and size, or ``own``,
    what the network carries; default: as the student sees them.
    """

    checkpoint: Path | None = None
    preprocessing: Preprocessing | Literal["own"] | None = None


class TeacherSpec(ModelSpec):
    """The teacher: from a ``checkpoint``, or trained first with settings of its own (``train``)."""

    train: FitConfig | None = None
    seed: Seed = 0

    @model_validator(mode="after")
    def _has_weights(self) -> "TeacherSpec":
        if (self.checkpoint is None) == (self.train is None):
            raise ValueError("the teacher needs either `checkpoint` or `train`, one of them")
        if self.train is not None and self.train.sampler == "superclass_uniform":
            raise ValueError(
                "`sampler: superclass_uniform` draws from clusters of what a trained teacher sees, "
                "so the teacher itself cannot learn with it; use `class_uniform` or `shuffle`"
            )
        return self


class TermSpec(_Strict):
    """One distillation term; see :class:`congener.types.Term`.

    ``taps: auto``: :func:`congener.plan` finds them. Widths not given are read off the networks.
    """

    loss: Annotated[LossSpec, BeforeValidator(_named)]
    weight: float = 1.0
    student: Annotated[tuple[str, ...], BeforeValidator(_tuple)] = ()
    teacher: Annotated[tuple[str, ...], BeforeValidator(_tuple)] = ()
    taps: Literal["auto"] | None = None
    name: str | None = None
    layer_weights: tuple[float, ...] | None = None
    schedules: dict[str, Schedule] = {}
    of: str | None = None
    at: Literal["objects", "proposals"] | None = None

    @model_validator(mode="after")
    def _tapped_once(self) -> "TermSpec":
        if self.taps and (self.student or self.teacher):
            raise ValueError(
                "`taps: auto` finds the taps, so `student` and `teacher` beside it have no use; "
                "give one or the other"
            )
        return self


AnyTerm = Annotated[TermSpec | InstanceOf[Term], PlainSerializer(_record)]


class Arm(_Strict):
    """One way to train the student: terms beside the supervised loss, or a system with its own.

    Args:
        task_weight: the weight of the supervised loss beside terms.
        terms: the distillation terms.
        system: a system that needs more than terms; some take ``terms`` and ``task_weight`` too.
        starts_from: an earlier arm; the student starts from its student of the same seed, as in
            FitNets' second stage.
        learns_from: an earlier arm; its student of the same seed is the teacher, as in born-again
            chains.
        inherits: modules that start with the teacher's weights, such as the neck and head of FGD's
            students: ``[backbone.fpn, head]``.
    """

    task_weight: float = 1.0
    terms: tuple[AnyTerm, ...] = ()
    system: Annotated[SystemSpec, BeforeValidator(_named)] | None = None
    starts_from: str | None = None
    learns_from: str | None = None
    inherits: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_way(self) -> "Arm":
        if self.learns_from and not (self.terms or self.system):
            raise ValueError("`learns_from` needs `terms` or a `system`, which say what is learnt")
        return self


class Published(_Strict):
    """Figures of the paper or benchmark that a recipe follows, as fractions."""

    source: str
    arms: dict[str, float]


class CacheSpec(_Strict):
    """How what the teacher says is kept, so that it runs once and not on every batch.

    Args:
        folder: where; default: ``cache`` in the run folder. Runs of one teacher, data set and
            views may share a folder.
        dtype: of the numbers kept: ``fp32`` is exact; ``fp16`` and ``bf16`` take half the space.
        top_k: how many logits of a sample are kept, beside the mass of the others, which is then
            shared evenly among them; default: all.
        temperature: at which that mass is right; take the loss' own.
        sampled: draw so many of the logits beyond ``top_k`` by what the teacher gives them, instead
            of sharing their mass evenly: no bias, for losses that learn from its probabilities
            linearly, such as KD. Without ``top_k``, all is drawn. Default: nothing.
    """

    folder: Path | None = None
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    top_k: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(gt=0)] = 1.0
    sampled: Annotated[int, Field(ge=1)] | None = None


class Recipe(_Strict):
    """A whole experiment: a task, a teacher, a student, and the arms that are compared.

    Args:
        name: of the run; default: the file's stem.
        title: one line for the report.
        task: a task pack with its arguments.
        teacher: a network with its checkpoint or training settings.
        teachers: further teachers by name, each with its checkpoint, for terms that say ``of``.
        student: the network that every arm trains.
        terms: the terms of a single arm, ``distilled``; short for ``arms``.
        task_weight: the weight of the supervised loss of that arm.
        system: the system of a single arm, instead of terms.
        arms: arms by name, for a comparison.
        alone: also train the student without a teacher, under the same settings.
        cache: ``auto`` keeps what the teacher says where that is exact, pays and takes less than
            1 GiB; ``off``; or how it is kept, of every arm.
        train: how every arm is trained.
        seeds: one run of each arm for each.
        published: the figures to print beside ours.
    """

    name: Annotated[str, AfterValidator(_folder)] = "run"
    title: str = ""
    task: Either[TaskSpec, Task]
    teacher: Either[TeacherSpec, nn.Module] | None = None
    teachers: dict[str, Either[ModelSpec, nn.Module]] = {}
    student: Either[ModelSpec, nn.Module]
    terms: tuple[AnyTerm, ...] = ()
    task_weight: float = 1.0
    system: Annotated[SystemSpec, BeforeValidator(_named)] | None = None
    arms: dict[Annotated[str, AfterValidator(_arm)], Arm] = {}
    alone: bool = True
    cache: Literal["auto", "off"] | CacheSpec = "auto"
    train: FitConfig
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_distinct)] = (0,)
    published: Published | None = None

    _source: "Source" = PrivateAttr(default_factory=lambda: Source("recipe", {}))

    def place(self, *path: int | str) -> str:
        """Where a key of this recipe stands: ``file, line n``, or ``recipe``."""
        return self._source.place(path)

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if self.arms and (self.terms or self.system or self.task_weight != 1.0):
            raise ValueError("give either `terms` (`system`, `task_weight`) or `arms`, not both")
        if not self.alone and not self.contenders:
            raise ValueError("there is nothing to train: no `terms`, no `arms`, and `alone` is off")
        self._check_sources()
        pupils = [arm for arm in self.contenders.values() if arm.terms and not arm.learns_from]
        if self.teacher is None and pupils:
            raise ValueError("there are distillation terms but no `teacher` to distil from")
        if self.teacher is None and self.train.sampler == "superclass_uniform":
            raise ValueError(
                "`sampler: superclass_uniform` draws from clusters of what the teacher sees; give "
                "a `teacher`, or use `class_uniform`"
            )
        if isinstance(self.student, ModelSpec) and self.student.preprocessing is not None:
            raise ValueError(
                "`preprocessing` is a teacher's; the student sees the images as the task gives them"
            )
        for name, spec in self.teachers.items():
            if isinstance(spec, ModelSpec) and spec.checkpoint is None:
                raise ValueError(f"the further teacher {name!r} needs a `checkpoint`")
        return self

    def _check_sources(self) -> None:
        """An arm may build on those before it, and on no other."""
        before: list[str] = []
        for name, arm in self.all_arms.items():
            for key in ("starts_from", "learns_from"):
                source = getattr(arm, key)
                if source is not None and source not in before:
                    raise ValueError(
                        f"the arm {name!r} {key.replace('_', ' ')} {source!r}, which is no arm "
                        f"before it (there are: {', '.join(before) or 'none'}); list that one first"
                    )
            before.append(name)

    @property
    def contenders(self) -> dict[str, Arm]:
        """The arms that distil, by name."""
        if self.terms or self.system:
            only = Arm(task_weight=self.task_weight, terms=self.terms, system=self.system)
            return {"distilled": only}
        return self.arms

    @property
    def starts(self) -> set[str]:
        """The arms that no label trains and others start from, such as FitNets' hints."""
        used = {arm.starts_from for arm in self.arms.values()}
        return {name for name, arm in self.arms.items() if name in used and not arm.task_weight}

    @property
    def all_arms(self) -> dict[str, Arm]:
        """Every arm in the order of the report: the student alone first."""
        return ({"alone": Arm()} if self.alone else {}) | self.contenders


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
    source = Source(str(path), parse_yaml(text, str(path)))
    values = plain(source.node, str(path))
    if not isinstance(values, dict):
        held = "is empty" if values is None else f"holds a {type(values).__name__}"
        raise RecipeError(
            f"{path} {held}; expected the keys of a recipe, such as task, student and train."
        )
    for override in overrides:
        override_value(values, override)
    values.setdefault("name", path.stem)
    return parse_recipe(values, source)


def parse_recipe(values: Mapping[str, Any], source: Source | None = None) -> Recipe:
    """Validate plain values; an error is told as one sentence."""
    source = source or Source("recipe", {})
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(" ".join(_sentence(error, source).splitlines())) from error
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


def _sentence(error: ValidationError, source: Source) -> str:
    """The most telling problem of a validation, as one sentence with its place."""
    problems = error.errors()
    # A union reports every alternative; those for objects given in Python are never the point.
    problems = [p for p in problems if p["type"] != "is_instance_of"] or problems
    # Nor is a word that might have stood in the place of a mapping.
    wordless = [p for p in problems if p["type"] != "literal_error" or isinstance(p["input"], str)]
    problems = wordless or problems
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    fields = [str(k) for k in problem["loc"]]
    own = ("Spec", "Preprocessing", "]")  # names of types, which no recipe has
    path = [k for k in problem["loc"] if isinstance(k, int) or not k.endswith(own)]
    key = ".".join(str(k) for k in path)
    place = source.place(path)
    if problem["type"] == "extra_forbidden":
        known = _fields_at(fields[:-1])
        return f"{place}: unknown key {key!r}; {did_you_mean(fields[-1], known)}"
    if problem["type"] == "missing":
        return f"{place}: the key {key!r} is missing."
    message = problem["msg"].removeprefix("Value error, ").removesuffix(".")
    if problem["type"] == "value_error":
        return f"{place}: {f'{key}: ' if key else ''}{message}."
    options = str(problem.get("ctx", {}).get("expected", "")).replace("'", "")
    near = difflib.get_close_matches(str(problem["input"]), re.split(", | or ", options))
    close = f"; did you mean {near[0]!r}?" if near else "."
    return f"{place}: {key!r} is {problem['input']!r}: {expected(problem)}{close}"


def _fields_at(path: Sequence[str]) -> list[str]:
    """The keys that a recipe has at a path of a validation error."""
    inside: dict[str, type[BaseModel]] = {
        "train": FitConfig, "published": Published, "TermSpec": TermSpec, "arms": Arm,
        "CacheSpec": CacheSpec,
    }  # fmt: skip
    for step in (each.removesuffix("]").rpartition(" ")[2] for each in reversed(path)):
        if step in inside:
            return list(inside[step].model_fields)
    return list(Recipe.model_fields)
