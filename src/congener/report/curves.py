"""From events to curves: mean and range over the seeds, few enough points to draw."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from congener.report.data import Floats, Run

__all__ = ["Balance", "Curve", "loss_balance", "loss_curves", "metric_curves"]

POINTS = 400

T = TypeVar("T")
Ends = tuple[float | None, float | None]
"""A figure at the beginning and at the end of training."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A quantity over steps: its mean over seeds between the smallest and the largest seed."""

    steps: Floats
    mean: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True, slots=True)
class Balance:
    """How one term pulled: each figure in the first record, and the mean of the last quarter.

    A mean over seeds, None where the figure is not defined. ``share`` is the term's part of the sum
    of all gradient norms of its arm.
    """

    arm: str
    term: str
    weighted: Ends
    gradient_norm: Ends
    share: Ends
    cosine: Ends


def loss_balance(run: Run) -> list[Balance]:
    """The loss balance of every student that has more than one term."""
    rows = []
    for arm, fits in ({} if run.events is None else _students(run, run.events.balance)).items():
        names = dict.fromkeys(term for fit in fits for record in fit.values() for term in record)
        if len(names) < 2:
            continue
        norms = {term: _ends(fits, term, "gradient_norm") for term in names}
        first, last = (sum(norm[end] or 0.0 for norm in norms.values()) for end in (0, 1))
        for term, norm in norms.items():
            share = _ratio(norm[0], first), _ratio(norm[1], last)
            value, cosine = _ends(fits, term, "weighted"), _ends(fits, term, "cosine")
            rows.append(Balance(arm, term, value, norm, share, cosine))
    return rows


def _ends(fits: list[dict[int, dict[str, dict[str, float | None]]]], term: str, key: str) -> Ends:
    """A figure in the first record, and its mean over the last quarter; means over the fits."""
    first, last = [], []
    for fit in fits:
        steps = sorted(fit)
        series = [fit[step].get(term, {}).get(key) for step in steps]
        first.append(series[0])
        last.append(_mean(series[-max(1, len(steps) // 4) :]))
    return _mean(first), _mean(last)


def _ratio(value: float | None, whole: float) -> float | None:
    return None if value is None or whole <= 0 else value / whole


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def metric_curves(run: Run) -> dict[str, Curve]:
    """The metric of every student over its training, by arm."""
    if run.events is None:
        return {}
    curves = {}
    for name, fits in _students(run, run.events.metric).items():
        curve = _over_seeds(fits)
        if curve is not None:
            keep = np.unique(np.linspace(0, len(curve.steps) - 1, POINTS).round().astype(int))
            curves[name] = Curve(
                curve.steps[keep], curve.mean[keep], curve.low[keep], curve.high[keep]
            )
    return curves


def loss_curves(run: Run) -> dict[str, dict[str, Curve]]:
    """The weighted loss terms of every student over its training: arm → term → curve."""
    if run.events is None:
        return {}
    result: dict[str, dict[str, Curve]] = {}
    for name, fits in _students(run, run.events.weighted).items():
        terms = dict.fromkeys(term for fit in fits for values in fit.values() for term in values)
        for term in terms:
            series = [
                {step: values[term] for step, values in fit.items() if term in values}
                for fit in fits
            ]
            curve = _over_seeds(series)
            if curve is not None:
                result.setdefault(name, {})[term] = _binned(curve, POINTS // 2)
    return result


def _students(run: Run, by_fit: Mapping[str, T]) -> dict[str, list[T]]:
    grouped: dict[str, list[T]] = {
        name: [] for name, arm in run.arms.items() if arm.role != "teacher"
    }
    for fit, values in by_fit.items():
        name = fit.rpartition("/")[0]
        if name in grouped:
            grouped[name].append(values)
    return {name: fits for name, fits in grouped.items() if fits}


def _over_seeds(fits: list[dict[int, float]]) -> Curve | None:
    steps = sorted(set.intersection(*(set(fit) for fit in fits)))
    if not steps:
        return None
    values = np.array([[fit[step] for step in steps] for fit in fits], dtype=np.float64)
    return Curve(
        np.array(steps, dtype=np.float64),
        values.mean(axis=0),
        values.min(axis=0),
        values.max(axis=0),
    )


def _binned(curve: Curve, bins: int) -> Curve:
    """Means of neighbouring steps: batch losses are noise around a trend."""
    groups = np.array_split(np.arange(len(curve.steps)), min(bins, len(curve.steps)))

    def average(values: Floats) -> Floats:
        return np.array([values[group].mean() for group in groups])

    return Curve(average(curve.steps), average(curve.mean), average(curve.low), average(curve.high))
