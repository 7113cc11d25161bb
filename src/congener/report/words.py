"""The words and numbers of the report: formats, the headline sentence, the summary table."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from congener.report.data import Arm, Comparison, Run, read_run

__all__ = [
    "NOTHING",
    "SummaryRow",
    "Unit",
    "begin",
    "count",
    "headline",
    "metric_name",
    "p_value",
    "signed",
    "size",
    "summary_table",
    "tiles",
    "unit_for",
    "unit_of",
]

NOTHING = "–"
SPELLED = {"auprc": "AUPRC", "auroc": "AUROC", "map": "mAP", "mrr": "MRR"}
"""Parts of the names of metrics that are not written as other words are."""


@dataclass(frozen=True, slots=True)
class Unit:
    """How values of the metric are written: fractions as percent, anything else as it is."""

    factor: float
    suffix: str
    digits: int
    difference: str

    def number(self, value: float | None) -> str:
        """The bare number, without its unit."""
        if value is None or not math.isfinite(value):
            return NOTHING
        return f"{value * self.factor:.{self.digits}f}"

    def text(self, value: float | None) -> str:
        """The number with its unit."""
        number = self.number(value)
        return number if number == NOTHING else number + self.suffix

    def change(self, value: float | None) -> str:
        """A difference with its sign and without its unit."""
        return signed(None if value is None else value * self.factor, self.digits)


PERCENT = Unit(100.0, " %", 1, " points")


def unit_of(run: Run) -> Unit:
    """Percent when every value of the run is a fraction."""
    return unit_for(value for arm in run.arms.values() for value in (*arm.values, *arm.best))


def unit_for(values: Iterable[float]) -> Unit:
    """Percent when every value is a fraction."""
    fractions = all(0.0 <= value <= 1.0 for value in values if math.isfinite(value))
    return PERCENT if fractions else Unit(1.0, "", 3, "")


def metric_name(key: str) -> str:
    """The name of a metric, in words.

    >>> metric_name("micro_auprc"), metric_name("recall_at_1"), metric_name("accuracy")
    ('micro AUPRC', 'recall@1', 'accuracy')
    """
    parts = key.replace("_at_", "@").split("_")
    return " ".join(SPELLED.get(part, part) for part in parts)


def begin(text: str) -> str:
    """Text at the beginning of a sentence: its first letter is a capital.

    >>> begin("micro AUPRC"), begin("mAP")
    ('Micro AUPRC', 'mAP')
    """
    first = text.partition(" ")[0]
    return text if first in SPELLED.values() else text[:1].upper() + text[1:]


def signed(value: float | None, digits: int = 1) -> str:
    """A number that always shows its sign.

    >>> signed(0.04), signed(-2.5)
    ('±0.0', '−2.5')
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    number = f"{abs(value):.{digits}f}"
    if float(number) == 0.0:
        return f"±{number}"
    return ("+" if value > 0 else "−") + number


def count(value: float | None) -> str:
    """A count in three digits with k, M or G.

    >>> count(61770), count(540), count(5_240_000)
    ('61.8k', '540', '5.24M')
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return _three_digits(value / factor) + letter
    return f"{value:.0f}"


def size(value: float | None) -> str:
    """A file size.

    >>> size(247_080), size(20_960_000)
    ('247 kB', '21.0 MB')
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    for factor, letter in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= factor:
            return f"{_three_digits(value / factor)} {letter}"
    return f"{value:.0f} B"


def _three_digits(value: float) -> str:
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def times(ratio: float) -> str:
    """How many times less.

    >>> times(84.83), times(992.84)
    ('84.8×', '993×')
    """
    return _three_digits(ratio) + "×"


def milliseconds(value: float | None) -> str:
    """A latency.

    >>> milliseconds(0.4213)
    '0.42 ms'
    """
    return NOTHING if value is None or not math.isfinite(value) else f"{_three_digits(value)} ms"


def duration(seconds: float | None) -> str:
    """A time span in its two largest units.

    >>> duration(0.13), duration(38.2), duration(754), duration(7384)
    ('0.1 s', '38 s', '12 min 34 s', '2 h 3 min')
    """
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    whole = round(seconds)
    if whole < 1:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def p_value(value: float | None) -> str:
    """A p-value in at most three decimals.

    >>> p_value(0.04321), p_value(0.00002)
    ('0.043', '<0.001')
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def seeds(number: int) -> str:
    """How many seeds, in words that agree."""
    return "one seed" if number == 1 else f"{number} seeds"


def headline(run: Run) -> str:
    """The result in one or two sentences, whichever way it went."""
    unit, metric = unit_of(run), metric_name(run.metrics.metric)
    teacher = run.first("teacher")
    tail = f"; the teacher has {unit.text(run.arms[teacher].mean)}" if teacher else ""
    lone, sign = run.first("alone"), 1 if run.metrics.higher_is_better else -1
    if teacher and lone and sign * (run.arms[teacher].mean - run.arms[lone].mean) <= 0:
        tail += ", no better than the student alone"
    best = run.best
    if best is None:
        return f"This run has no distilled student with a finite {metric}{tail}."
    arm, comparison = run.arms[best], run.metrics.comparisons.get(best)
    name = _acronym(best)
    alone = run.arms.get(comparison.against) if comparison else None
    if comparison is None or alone is None:
        return (
            f"{name} brings the {arm.model} student to {unit.text(arm.mean)} {metric}{tail}; "
            "no student was trained alone to compare it with."
        )
    change = _change(unit, comparison)
    if sign * comparison.mean_difference <= 0:
        which = "Distillation" if _distilled(run) > 1 else name
        subject = f"the best arm, {best}, ends" if _distilled(run) > 1 else "it ends"
        return (
            f"{which} does not help here: {subject} at {unit.text(arm.mean)} {metric} where the "
            f"same {arm.model} student alone has {unit.text(alone.mean)} ({change}){tail}."
        )
    if comparison.wins < comparison.n or change.startswith("±"):
        return (
            f"{name} makes no clear difference here: {unit.text(arm.mean)} {metric} against "
            f"{unit.text(alone.mean)} of the {arm.model} student alone ({change}){tail}."
        )
    verb = "lifts" if run.metrics.higher_is_better else "brings"
    return (
        f"{name} {verb} the {arm.model} student from {unit.number(alone.mean)} to "
        f"{unit.text(arm.mean)} {metric} ({change}){tail}.{_control(run, arm, unit)}"
    )


def _change(unit: Unit, comparison: Comparison) -> str:
    parts = [unit.change(comparison.mean_difference) + unit.difference]
    if comparison.n == 1:
        parts.append("one seed")
    else:
        won_all = comparison.wins == comparison.n
        parts.append(f"{'' if won_all else 'better in '}{comparison.wins} of {comparison.n} seeds")
    if comparison.p is not None and comparison.p >= 0.05:
        parts.append(f"p = {p_value(comparison.p)}")
    return ", ".join(parts)


def _control(run: Run, best: Arm, unit: Unit) -> str:
    """A control that does as well says that the gain is not the teacher's."""
    sign = 1 if run.metrics.higher_is_better else -1
    for name, arm in run.arms.items():
        if arm.role == "control" and sign * (arm.mean - best.mean) >= 0:
            return f" But the control {name} does as well ({unit.text(arm.mean)})."
    return ""


def _distilled(run: Run) -> int:
    return sum(arm.role == "distilled" for arm in run.arms.values())


def _acronym(name: str) -> str:
    return name.upper() if re.fullmatch(r"[a-z]{2,4}(\+[a-z]{2,4})*", name) else name


def tiles(run: Run) -> list[tuple[str, str]]:
    """At most four figures that carry the result: (figure, what it is)."""
    best, teacher_name = run.best, run.first("teacher")
    if best is None:
        return []
    unit, metric, arm = unit_of(run), metric_name(run.metrics.metric), run.arms[best]
    comparison = run.metrics.comparisons.get(best)
    teacher = run.arms[teacher_name] if teacher_name else None
    over = f"mean of {seeds(arm.n)}" if arm.n > 1 else "one seed"
    result = [(unit.text(arm.mean), f"{metric} of {best}, last epoch, {over}")]
    if comparison is not None:
        words = f"{unit.difference.strip() or metric} against the same student trained alone"
        result.append((unit.change(comparison.mean_difference), words))
    if comparison is not None and teacher is not None and comparison.against in run.arms:
        gap = teacher.mean - run.arms[comparison.against].mean
        sign = 1 if run.metrics.higher_is_better else -1
        better = sign * comparison.mean_difference > 0 and comparison.wins == comparison.n
        if sign * gap > 0 and better:
            closed = f"{100 * comparison.mean_difference / gap:.0f} %"
            result.append((closed, "of the student's gap to the teacher closed"))
    if teacher is not None and teacher.parameters > arm.parameters > 0:
        ratio = times(teacher.parameters / arm.parameters)
        result.append((ratio, f"fewer parameters than the teacher ({count(arm.parameters)})"))
    return result


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """One arm of the headline table. Values are fractions of one where the metric is.

    Attributes:
        difference: mean paired difference to the student alone.
        p: of the paired t-test behind it.
        wins: seeds in which the arm is better, of ``pairs``.
        agreement: fraction of samples on which the prediction is the teacher's.
        cells: the same as text, in the order of ``COLUMNS``.
    """

    arm: str
    role: str
    model: str
    n: int
    mean: float
    sd: float | None
    best: float
    difference: float | None
    p: float | None
    wins: int | None
    pairs: int | None
    agreement: float | None
    parameters: int
    macs: float | None
    bytes: int | None
    latency_ms: float | None
    published: float | None
    cells: tuple[str, ...]

    COLUMNS = (
        "arm",
        "last epoch",
        "best epoch",
        "vs alone",
        "p",
        "wins",
        "agreement",
        "parameters",
        "CPU latency",
    )


def summary_table(run: Run | Path) -> list[SummaryRow]:
    """The headline table as records, in the order of the run.

    Args:
        run: a run folder, or one that was already read.

    Raises:
        RunError: the folder is not one of a finished run.
    """
    if isinstance(run, Path):
        run = read_run(run)
    unit = unit_of(run)
    return [_row(run, unit, name, arm) for name, arm in run.arms.items()]


def _row(run: Run, unit: Unit, name: str, arm: Arm) -> SummaryRow:
    comparison = run.metrics.comparisons.get(name)
    analysis = run.analyses.get(name)
    difference = comparison.mean_difference if comparison else None
    agreement = None
    if analysis is not None and arm.role != "teacher":
        agreement = float(np.mean(analysis.agreement()))
    spread = "" if arm.sd is None else f" ± {unit.number(arm.sd)}"
    published = run.metrics.published
    return SummaryRow(
        arm=name,
        role=arm.role,
        model=arm.model,
        n=arm.n,
        mean=arm.mean,
        sd=arm.sd,
        best=arm.best_mean,
        difference=difference,
        p=comparison.p if comparison else None,
        wins=comparison.wins if comparison else None,
        pairs=comparison.n if comparison else None,
        agreement=agreement,
        parameters=arm.parameters,
        macs=arm.macs,
        bytes=arm.bytes,
        latency_ms=arm.latency_ms,
        published=published.arms.get(name) if published else None,
        cells=(
            name,
            unit.number(arm.mean) + spread,
            unit.number(arm.best_mean),
            unit.change(difference),
            p_value(comparison.p if comparison else None),
            f"{comparison.wins} of {comparison.n}" if comparison else NOTHING,
            PERCENT.number(agreement),
            count(arm.parameters),
            milliseconds(arm.latency_ms),
        ),
    )
