"""The records of comparisons as one table and one picture: ``index.html`` and ``README.md``."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
from pydantic import Field, model_validator

from congener.errors import RunError
from congener.report import charts
from congener.report.data import Comparison, Record, read_object, validated
from congener.report.page import WIDE, Pair, template
from congener.report.svg import SERIES, Chart, style
from congener.report.words import NOTHING, Unit, count, metric_name, p_value, signed, unit_for
from congener.runlog import write_text

__all__ = ["holds_records", "read_records", "write_records"]

SIGNIFICANT = 0.05
BESIDE = {
    "alone": "the student alone",
    "control": "the control",
    "hard": "hard pseudo-labels",
    "kd": "KD",
}
LEVELS = {"alone": "alone", "control": "control", "hard": "hard labels", "kd": "KD"}
NOTES = (
    "Every system learns with the seeds, steps and settings of the student alone, whose learning "
    "rate and weight decay were chosen on a validation slice of the training data. Figures are "
    "those of the last step on the test set.",
    "Bold is what a paired t-test over the seeds tells apart at p < 0.05; of twenty comparisons of "
    "equals, one looks so by chance. The control is the best method without a network; hard labels "
    "and KD are the plain ways to learn from the same teacher.",
)
Verdict = Literal["better than", "not separated from", "worse than"]


class Control(Record):
    """The best method without a network; its metric may be another than the record's."""

    classifier: str
    metric: str
    value: float


class Summary(Record):
    """``summary.json`` of a record; ``arms`` holds one value for each seed."""

    task: str
    data: str
    system: str
    metric: str
    higher_is_better: bool = True
    arms: dict[str, list[float]]
    comparisons: dict[str, Comparison]
    control: Control | None = None
    teacher: tuple[float, ...] = ()
    teacher_model: str = ""
    learns_from: str | None = None
    student: str
    parameters: dict[str, int] = Field(default_factory=dict)
    seeds: list[int] = Field(min_length=1)
    steps: int
    batch_size: int
    command: str = ""

    @model_validator(mode="after")
    def _whole(self) -> "Summary":
        for name in ("alone", self.system):
            if name not in self.arms:
                raise ValueError(f"arms has no {name!r}")
        for name, values in self.arms.items():
            expected = 1 if name == "control" else len(self.seeds)
            if len(values) != expected:
                raise ValueError(f"arms.{name} has {len(values)} values for {expected} seeds")
        for name in self.others:
            if name not in self.comparisons:
                raise ValueError(f"comparisons has no {name!r}")
        return self

    @property
    def values(self) -> list[float]:
        """What the system came to, one value for each seed."""
        return self.arms[self.system]

    @property
    def others(self) -> dict[str, float]:
        """The mean of everything beside the system, in the order of the table."""
        beside = {name for name in BESIDE if name in self.arms and name != self.system}
        return {name: float(np.mean(self.arms[name])) for name in BESIDE if name in beside}

    @property
    def best_other(self) -> str:
        """Which of the others is the best one."""
        sign, means = 1 if self.higher_is_better else -1, self.others
        finite = [name for name in means if math.isfinite(means[name])] or ["alone"]
        return max(finite, key=lambda name: sign * means[name])

    @property
    def leads(self) -> bool:
        """Whether it is better than everything beside it."""
        return all(self.verdict(name) == "better than" for name in self.others)

    def verdict(self, name: str) -> Verdict:
        """How the system stands to another, as far as the paired test can tell."""
        comparison = self.comparisons[name]
        if comparison.p is None or not comparison.p < SIGNIFICANT:
            return "not separated from"
        ahead = (comparison.mean_difference > 0) == self.higher_is_better
        return "better than" if ahead else "worse than"


@dataclass(frozen=True, slots=True)
class Versus:
    """A comparison as text; ``clear`` when the test tells the two apart."""

    name: str
    change: str
    evidence: str
    clear: bool


@dataclass(frozen=True, slots=True)
class Row:
    """A record as text, for the page and for Markdown alike."""

    link: str
    system: str
    result: str
    spread: str
    levels: dict[str, str]
    best: Versus
    alone: Versus
    seeds: int
    teacher: str
    learns_from: str
    words: str
    leads: bool


@dataclass(frozen=True, slots=True)
class Group:
    """The records of one comparison: they share everything but their system."""

    first: Summary
    unit: Unit
    rows: list[Row]
    pair: Pair


def holds_records(folder: Path) -> bool:
    """Whether there is a record in a folder, and not a run."""
    return not (folder / "metrics.json").exists() and bool(_summaries(folder))


def read_records(folder: Path) -> dict[str, Summary]:
    """The records in a folder, by the names of theirs.

    Raises:
        RunError: none, or one that is damaged.
    """
    paths = _summaries(folder)
    if not paths:
        raise RunError(
            f"{folder} holds no records; congener bench writes them, each a folder with a "
            "summary.json."
        )
    return {
        path.parent.name: validated(Summary, read_object(path), path, "congener bench")
        for path in paths
    }


def write_records(folder: Path) -> Path:
    """Write ``index.html`` and ``README.md`` into a folder of records.

    Both are pure functions of the records, and say the same.

    Returns:
        The path of the page.

    Raises:
        RunError: there are no records, or one is damaged.
    """
    folder = Path(folder)
    records = read_records(folder)
    with style():
        groups = [_group(each, f"g{index}") for index, each in enumerate(_grouped(records))]
        headline = _headline(records.values())
        page = template("records.html.jinja").render(
            groups=groups, headline=headline, notes=NOTES, levels=LEVELS
        )
    write_text(folder / "README.md", _markdown(groups, headline))
    write_text(folder / "index.html", page)
    return folder / "index.html"


def _summaries(folder: Path) -> list[Path]:
    """The summaries of records; a run has a summary, too, but beside its metrics."""
    found = sorted(folder.glob("*/summary.json"))
    return [path for path in found if not (path.parent / "metrics.json").exists()]


def _grouped(records: Mapping[str, Summary]) -> list[dict[str, Summary]]:
    """Records that stand beside the very same values, ordered by their data."""
    groups: dict[str, dict[str, Summary]] = {}
    for name, record in sorted(records.items(), key=lambda pair: (pair[1].data, pair[0])):
        shared = {"arms": {arm: record.arms.get(arm) for arm in BESIDE}}
        own = {"system", "comparisons", "learns_from", "arms", "parameters", "command"}
        key = record.model_dump_json(exclude=own) + repr(shared)
        groups.setdefault(key, {})[name] = record
    return list(groups.values())


def _group(records: Mapping[str, Summary], name: str) -> Group:
    first = next(iter(records.values()))
    unit = unit_for(
        value for record in records.values() for values in record.arms.values() for value in values
    )
    sign = -1 if first.higher_is_better else 1
    ranked = sorted(records, key=lambda each: _rank(sign * float(np.mean(records[each].values))))
    rows = [_row(each, records[each], unit) for each in ranked]
    return Group(first, unit, rows, _picture([records[each] for each in ranked], unit, name))


def _rank(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _picture(records: Sequence[Summary], unit: Unit, name: str) -> Pair:
    """Every system's seeds, and lines at the levels that they have to beat."""
    rows = {record.system: record.values for record in records}
    look = dict.fromkeys(rows, charts.Look(SERIES[0], "-", "o"))
    levels = {LEVELS[other]: mean for record in records for other, mean in record.others.items()}
    told = [f"{system} {unit.text(float(np.mean(values)))}" for system, values in rows.items()]
    told += [f"{level} {unit.text(mean)}" for level, mean in levels.items()]
    label = f"Dot chart of {metric_name(records[0].metric)}, mean over seeds: {', '.join(told)}."

    def draw(width: float, kind: str) -> Chart:
        return charts.dots(
            rows, look=look, unit=unit, width=width, name=f"{name}-{kind}", label=label,
            references=levels,
        )  # fmt: skip

    return Pair(draw(WIDE, "w"), draw(charts.NARROW, "n"))


def _row(name: str, record: Summary, unit: Unit) -> Row:
    values = np.asarray(record.values)
    others = record.others
    levels = {each: unit.number(others.get(each)) for each in BESIDE}
    if record.control is not None and "control" not in others:
        levels["control"] = f"{unit_for([record.control.value]).text(record.control.value)}"
        levels["control"] += f" {metric_name(record.control.metric)}"
    taught = unit.number(record.teacher[0]) if record.teacher else NOTHING
    return Row(
        link=quote(f"{name}/recipe.yaml"),
        system=record.system,
        result=unit.number(float(values.mean())),
        spread=f"± {unit.number(float(values.std(ddof=1)))}" if values.size > 1 else "",
        levels=levels,
        best=_versus(record, record.best_other, unit),
        alone=_versus(record, "alone", unit),
        seeds=len(record.seeds),
        teacher=taught,
        learns_from=record.learns_from or "",
        words=_words(record),
        leads=record.leads,
    )


def _versus(record: Summary, name: str, unit: Unit) -> Versus:
    comparison = record.comparisons[name]
    evidence = f"{comparison.wins} of {comparison.n}"
    if comparison.p is not None and math.isfinite(comparison.p):
        said = p_value(comparison.p)
        evidence = f"p {said if said.startswith('<') else f'= {said}'}, {evidence}"
    return Versus(
        name=LEVELS[name],
        change=signed(comparison.mean_difference * unit.factor, unit.digits),
        evidence=evidence,
        clear=record.verdict(name) != "not separated from",
    )


def _words(record: Summary) -> str:
    """Whether the system helps, and how it stands to everything beside it."""
    found: dict[Verdict, list[str]] = {}
    for name in record.others:
        found.setdefault(record.verdict(name), []).append(BESIDE[name])
    parts = [
        f"{verdict} {_listed(found[verdict])}"
        for verdict in ("better than", "not separated from", "worse than")
        if verdict in found
    ]
    missing = [BESIDE[name] for name in BESIDE if name not in {*record.arms, record.system}]
    if missing:
        parts.append(f"not compared with {_listed(missing)}")
    return f"{_lead(record)}: {'; '.join(parts)}.{_larger(record)}"


def _larger(record: Summary) -> str:
    """What a system needs that exports more than the bare student, as SimKD does."""
    mine, alone = (record.parameters.get(name, 0) for name in (record.system, "alone"))
    if mine <= alone:
        return ""
    return f" Its network is larger: {count(mine)} parameters, {count(alone)} of the student alone."


def _lead(record: Summary) -> str:
    if len(record.seeds) == 1:
        return "One seed, no test"
    change = record.comparisons["alone"].mean_difference
    if record.verdict("alone") == "better than":
        return "Helps"
    ahead = change > 0 if record.higher_is_better else change < 0
    return "No clear gain" if ahead else "Does not help"


def _listed(names: Sequence[str]) -> str:
    """Names as a sentence has them.

    >>> _listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _headline(records: Iterable[Summary]) -> str:
    found = list(records)
    helps = [record for record in found if record.verdict("alone") == "better than"]
    leads = [record for record in found if record.leads]
    said = f"{len(found)} record{'' if len(found) == 1 else 's'}"
    return (
        f"Of {said}, {_many(helps)} better than the student alone, and {_many(leads)} better than "
        "everything beside it."
    )


def _many(things: Sequence[Any]) -> str:
    return {0: "none is", 1: "one is"}.get(len(things), f"{len(things)} are")


def _markdown(groups: Sequence[Group], headline: str) -> str:
    """The same as the page, without its pictures."""
    lines = ["# Records", "", headline]
    for note in NOTES:
        lines += ["", note]
    head = ["data", "system", "result", *(f"{LEVELS[name]}" for name in BESIDE),
            "vs best other", "vs alone", "teacher", "seeds", "in words"]  # fmt: skip
    rows = [head, ["---"] * len(head)]
    for group in groups:
        for row in group.rows:
            result = f"**{row.result}**" if row.leads else row.result
            rows.append(
                [
                    _plain(
                        f"{group.first.data}, {group.first.student}, "
                        f"{metric_name(group.first.metric)}{group.unit.suffix}"
                    ),
                    f"[{_plain(row.system)}]({row.link})",
                    f"{result} {row.spread}".strip(),
                    *(_plain(level) for level in row.levels.values()),
                    f"{_stressed(row.best)} ({row.best.name}; {row.best.evidence})",
                    f"{_stressed(row.alone)} ({row.alone.evidence})",
                    _plain(row.learns_from or row.teacher),
                    str(row.seeds),
                    _plain(row.words),
                ]
            )
    table = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", *table, ""])


def _stressed(versus: Versus) -> str:
    return f"**{versus.change}**" if versus.clear else versus.change


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, in one cell of a table."""
    return re.sub(r"([\\`*_\[\]<>|#~$&])", r"\\\1", " ".join(text.split()))
