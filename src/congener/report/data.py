"""Reads a run folder into plain records; knows nothing about pages or pictures."""

import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from congener.errors import RunError

__all__ = [
    "Analysis",
    "Arm",
    "Comparison",
    "Events",
    "Gram",
    "Metrics",
    "Run",
    "Term",
    "read_arrays",
    "read_object",
    "read_run",
    "validated",
]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Kept = TypeVar("Kept", bound=BaseModel)


class Record(BaseModel):
    """What a file of results holds; keys that are not known are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Term(Record):
    """One distillation term of an arm, as the runner described it."""

    name: str
    loss: str
    weight: float
    schedules: dict[str, str] = {}
    of: str | None = None
    student: str | list[str] | None = None
    teacher: str | list[str] | None = None
    equation: str | None = None
    paper: str | None = None


class Arm(Record):
    """One way of training and what came of it; ``values`` are last-epoch values, one per seed.

    ``metrics`` are all that was measured then, by name.
    """

    role: Literal["teacher", "alone", "distilled", "control", "start"]
    model: str
    parameters: int
    macs: float | None = None
    bytes: int | None = None
    latency_ms: float | None = None
    values: list[float] = Field(min_length=1)
    best: list[float] = Field(min_length=1)
    metrics: dict[str, Annotated[list[float], Field(min_length=1)]] = {}
    task_weight: float = 1.0
    terms: list[Term] = []
    seconds: list[float] = []
    trained: int | None = None

    @property
    def n(self) -> int:
        """How many independent trainings stand behind the values."""
        return self.trained or len(self.values)

    @property
    def mean(self) -> float:
        """Mean of the last-epoch values."""
        return math.fsum(self.values) / len(self.values)

    @property
    def best_mean(self) -> float:
        """Mean of the best-epoch values."""
        return math.fsum(self.best) / len(self.best)

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over seeds; none for a single training."""
        return float(np.std(self.values, ddof=1)) if self.n > 1 and len(self.values) > 1 else None


class Comparison(Record):
    """An arm against the student alone, seed by seed."""

    against: str
    mean_difference: float
    wins: int
    n: int
    p: float | None = None


class Published(Record):
    """The figures of somebody else's run of the same arms."""

    source: str
    arms: dict[str, float]
    note: str | None = None


class Metrics(Record):
    """``metrics.json``; ``classifies`` says whether each sample has one class."""

    name: str
    title: str
    metric: str
    higher_is_better: bool = True
    task: str = ""
    data: str = ""
    class_names: list[str] = []
    classifies: bool = True
    seeds: list[int]
    steps: int
    batch_size: int
    command: str = ""
    evaluated_on: str = "test"
    seconds: float | None = None
    arms: dict[str, Arm] = Field(min_length=1)
    comparisons: dict[str, Comparison] = {}
    published: Published | None = None


@dataclass(frozen=True, slots=True)
class Gram:
    """A row-normalised batch Gram matrix, its samples ordered by class."""

    values: NDArray[np.float32]
    labels: Integers
    tap: str

    def distance(self, other: "Gram") -> float | None:
        """The SP loss between the two: ‖G − G'‖²_F / m²; none when the samples differ."""
        if not np.array_equal(self.labels, other.labels):
            return None
        difference = self.values.astype(np.float64) - other.values
        return float(np.mean(difference**2))


@dataclass(frozen=True, slots=True)
class Analysis:
    """What an arm answered on the evaluated samples."""

    labels: Integers
    predictions: Integers  # (seeds, samples)
    teacher_predictions: Integers

    def agreement(self) -> Floats:
        """Fraction of samples on which each seed's prediction is the teacher's."""
        same = self.predictions == self.teacher_predictions
        return np.asarray(same.mean(axis=1), dtype=np.float64)

    def class_accuracy(self, classes: int) -> Floats:
        """Accuracy per class, mean over seeds; NaN for a class without labelled samples."""
        known = self.labels >= 0
        labels = self.labels[known]
        right = (self.predictions[:, known] == labels).mean(axis=0)
        total = np.bincount(labels, minlength=classes)[:classes]
        hits = np.bincount(labels, weights=right, minlength=classes)[:classes]
        return np.where(total > 0, hits / np.maximum(total, 1), np.nan)


@dataclass(frozen=True, slots=True)
class Events:
    """What ``events.jsonl`` says, per fit and step: the metric, the terms, and their balance.

    And per fit, how the teacher ran, where it did not as it is, and what keeping its answers saved;
    and why the task has no exhibits, where they failed.
    """

    metric: dict[str, dict[int, float]]
    weighted: dict[str, dict[int, dict[str, float]]]
    balance: dict[str, dict[int, dict[str, dict[str, float | None]]]]
    teacher: dict[str, str] = field(default_factory=dict)
    saved: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    torn_lines: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder; ``missing`` says in one sentence per arm why its analysis is not there."""

    folder: Path
    metrics: Metrics
    events: Events | None
    analyses: dict[str, Analysis]
    grams: dict[str, Gram]
    missing: dict[str, str]
    recipe: str | None
    environment: dict[str, str]

    @property
    def arms(self) -> dict[str, Arm]:
        """The arms in the order of the run."""
        return self.metrics.arms

    def first(self, role: str) -> str | None:
        """Name of the first arm with this role."""
        return next((name for name, arm in self.arms.items() if arm.role == role), None)

    @property
    def best(self) -> str | None:
        """The distilled arm with the best last-epoch mean."""
        sign = 1 if self.metrics.higher_is_better else -1
        means = {
            name: sign * arm.mean
            for name, arm in self.arms.items()
            if arm.role == "distilled" and math.isfinite(arm.mean)
        }
        return max(means, key=lambda name: means[name]) if means else None


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Args:
        folder: what ``congener run`` wrote.

    Raises:
        RunError: no such folder, no ``metrics.json`` in it, or JSON that cannot be read.
    """
    if not folder.is_dir():
        raise RunError(f"{folder} is not a run folder: there is no such directory.")
    if not (folder / "metrics.json").is_file():
        raise RunError(
            f"{folder} has no metrics.json: not a run folder, or not finished yet; nor does it "
            "hold records, each a folder with a summary.json."
        )
    metrics = _metrics(folder / "metrics.json")
    analyses: dict[str, Analysis] = {}
    grams: dict[str, Gram] = {}
    missing: dict[str, str] = {}
    for name, arm in metrics.arms.items():
        try:
            arrays = _arrays(folder / "analysis", name)
            gram = _gram(arrays)
            if gram is not None:
                grams[name] = gram
            if metrics.classifies:
                analyses[name] = _analysis(arrays, name, arm)
        except RunError as error:
            missing[name] = str(error)
    environment = folder / "environment.json"
    recipe = folder / "recipe.yaml"
    facts = read_object(environment) if environment.is_file() else {}
    return Run(
        folder=folder,
        metrics=metrics,
        events=_events(folder / "events.jsonl", metrics.metric),
        analyses=analyses,
        grams=grams,
        missing=missing,
        recipe=recipe.read_text("utf-8", errors="replace") if recipe.is_file() else None,
        environment={str(key): str(value) for key, value in facts.items()},
    )


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        RunError: a file that holds none.
    """
    try:
        node = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is not readable JSON: {error}.") from error
    if not isinstance(node, dict):
        raise RunError(f"{path} must hold a JSON object, not a {type(node).__name__}.")
    return node


def _metrics(path: Path) -> Metrics:
    node = read_object(path)
    arms, metric = node.get("arms"), node.get("metric")
    for arm in arms.values() if isinstance(arms, dict) else ():
        # The values stand under the metric's own name.
        if isinstance(arm, dict) and metric in arm:
            arm["values"] = arm[metric]
    return validated(Metrics, node, path, "a run")


def validated(model: type[Kept], node: Mapping[str, Any], path: Path, writer: str) -> Kept:
    """What a file holds, as a record.

    Raises:
        RunError: what is not as ``writer`` writes it, in one sentence.
    """
    try:
        return model.model_validate(node)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the top"
        message = first["msg"].removeprefix("Value error, ")
        raise RunError(f"{path} is not what {writer} writes: {place}: {message}.") from error


def _arrays(folder: Path, arm: str) -> dict[str, NDArray[Any]]:
    path = folder / f"{arm}.npz"
    # An arm's name is data: it must not lead out of the folder.
    if path.parent != folder or not path.is_file():
        raise RunError(f"analysis/{arm}.npz is not there")
    return read_arrays(path, f"analysis/{arm}.npz")


def read_arrays(path: Path, name: str) -> dict[str, NDArray[Any]]:
    """The arrays of a file, nothing of which is unpickled.

    Raises:
        RunError: a file that is damaged, called ``name``.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return {key: np.asarray(stored[key]) for key in stored.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise RunError(f"{name} cannot be read") from error


def _analysis(arrays: dict[str, NDArray[Any]], name: str, arm: Arm) -> Analysis:
    if arm.role == "teacher" and "predictions" in arrays:
        arrays.setdefault("teacher_predictions", np.atleast_2d(arrays["predictions"])[0])
    for key in ("labels", "predictions", "teacher_predictions"):
        if key not in arrays:
            raise RunError(f"analysis/{name}.npz has no {key}")
    labels = arrays["labels"].astype(np.int64)
    predictions = np.atleast_2d(arrays["predictions"]).astype(np.int64)
    teacher = arrays["teacher_predictions"].astype(np.int64)
    if labels.ndim != 1 or predictions.shape[1:] != labels.shape or teacher.shape != labels.shape:
        raise RunError(f"analysis/{name}.npz has predictions that do not fit its labels")
    return Analysis(labels, predictions, teacher)


def _gram(arrays: Mapping[str, NDArray[Any]]) -> Gram | None:
    values, labels = arrays.get("gram"), arrays.get("gram_labels")
    if values is None or labels is None or values.shape != (labels.size, labels.size):
        return None
    if not labels.size or not np.isfinite(values).all():
        return None
    tap = str(arrays["gram_tap"]) if "gram_tap" in arrays else ""
    return Gram(values.astype(np.float32), labels.astype(np.int64), tap)


def _events(path: Path, metric: str) -> Events | None:
    if not path.is_file():
        return None
    found, torn = Events({}, {}, {}), 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                # A resumed fit repeats steps; the later line is the one that counted.
                _take_event(json.loads(line), metric, found)
            except (ValueError, KeyError, TypeError, AttributeError):
                torn += 1
    return replace(found, torn_lines=torn)


def _take_event(event: Mapping[str, Any], metric: str, found: Events) -> None:
    if event["event"] == "evaluation" and metric in event["metrics"]:
        steps = found.metric.setdefault(str(event["fit"]), {})
        steps[int(event["step"])] = float(event["metrics"][metric])
    elif event["event"] == "step":
        terms = {str(name): float(value) for name, value in event["weighted"].items()}
        found.weighted.setdefault(str(event["fit"]), {})[int(event["step"])] = terms
    elif event["event"] == "balance":
        found.balance.setdefault(str(event["fit"]), {})[int(event["step"])] = event["terms"]
    elif event["event"] == "teacher_error":
        found.teacher[str(event["fit"])] = str(event["line"])
    elif event["event"] == "teacher_saved":
        found.saved.append(str(event["line"]))
    elif event["event"] == "exhibits_failed":
        found.failed[:] = [str(event["line"])]
