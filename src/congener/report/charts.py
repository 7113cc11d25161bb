"""The pictures of a report: one function each, records in, a chart out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from congener.report.curves import Curve
from congener.report.data import Floats, Gram
from congener.report.svg import FAINT, INK, MUTED, PAGE, SERIES, Chart, axes, figure, finish
from congener.report.words import Unit

__all__ = [
    "SIMILARITY",
    "Look",
    "class_changes",
    "colour_scale",
    "dots",
    "gram_picture",
    "learning",
    "looks",
    "losses",
    "swatch",
    "value_limits",
]

NARROW = 340
GRAM_SIDE = 192
SIMILARITY = "viridis"
FLAG = 16
_SOLID: Any = "-"
_DOTS: Any = (0, (1, 2))
_DASHES: tuple[Any, ...] = (_SOLID, (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 2, 2)))
_MARKERS = ("o", "D", "^", "v", "P", "X")
_LARGER = {"^": 1.35, "v": 1.35, "P": 1.2, "X": 1.2, "D": 0.9}


@dataclass(frozen=True, slots=True)
class Look:
    """How an arm is drawn everywhere: with its marker and dash it is known without colour."""

    colour: str
    dash: Any
    marker: str

    @property
    def larger(self) -> float:
        """Factor that makes all markers look equally large."""
        return _LARGER.get(self.marker, 1.0)


def looks(roles: Mapping[str, str]) -> dict[str, Look]:
    """Ink for the teacher, grey for the student alone, colours for the arms in their order."""
    result, index = {}, 0
    for name, role in roles.items():
        if role == "teacher":
            result[name] = Look(INK, _DOTS, "*")
        elif role == "alone":
            result[name] = Look(MUTED, _SOLID, "s")
        else:
            colour = SERIES[index % len(SERIES)]
            turn = index + index // len(SERIES)  # the seventh arm has the first's colour only
            result[name] = Look(colour, _DASHES[turn % 4], _MARKERS[turn % len(_MARKERS)])
            index += 1
    return result


def shorten(name: str, limit: int) -> str:
    """A name that fits beside a chart."""
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _say(plot: Axes, x: float, y: float, words: str, **settings: Any) -> None:
    """Text that is never read as a formula: names come from the user."""
    plot.text(x, y, words, parse_math=False, **settings)


def _ticks(plot: Axes, axis: str, count: int, form: str = "{:g}") -> None:
    which = plot.xaxis if axis == "x" else plot.yaxis
    which.set_major_locator(MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]))
    which.set_major_formatter(
        FuncFormatter(
            lambda value, _: (form.format(value) if value else "0").replace("-", "\N{MINUS SIGN}")
        )
    )


def dots(
    rows: Mapping[str, Sequence[float] | Floats],
    *,
    look: Mapping[str, Look],
    unit: Unit,
    width: float,
    name: str,
    label: str,
    references: Mapping[str, float] | None = None,
) -> Chart:
    """One row per arm: a small dot per seed, a large one for the mean, the mean as a number.

    Each reference is a line with its name at its top.
    """
    levels = {arm: value for arm, value in (references or {}).items() if np.isfinite(value)}
    narrow = width <= NARROW
    limit = 11 if narrow else 22
    left = 16 + 7.2 * max(min(len(arm), limit) for arm in rows)
    pitch, top = 34, 8 + FLAG * len(levels) if levels else 6
    fig = figure(width, top + 30 + pitch * len(rows))
    plot = axes(fig, left=left, right=50, top=top, bottom=30)
    plot.set_ylim(len(rows) - 0.5, -0.5)
    plot.yaxis.set_major_locator(NullLocator())
    plot.spines["left"].set_visible(False)
    _ticks(plot, "x", 3 if narrow else 6)
    for place, (arm, values) in enumerate(rows.items()):
        points = np.asarray(values, dtype=np.float64) * unit.factor
        points = points[np.isfinite(points)]
        plot.axhline(place, color=FAINT, linewidth=1, zorder=0)
        _say(
            plot, -10 / (width - left - 50), place, shorten(arm, limit),
            transform=plot.get_yaxis_transform(), ha="right", va="center_baseline", fontsize=13,
        )  # fmt: skip
        if not points.size:
            continue
        colour, mean = look[arm].colour, float(points.mean())
        if points.size > 1:
            across = np.linspace(-0.2, 0.2, points.size)
            plot.scatter(points, place + across, s=18, color=colour, alpha=0.55, linewidths=0)
        plot.scatter(
            [mean], [place], s=95 * look[arm].larger, marker=look[arm].marker, color=colour,
            edgecolors=PAGE, linewidths=1.5, zorder=3,
        )  # fmt: skip
        _say(
            plot, 1 + 46 / (width - left - 50), place, unit.number(mean / unit.factor),
            transform=plot.get_yaxis_transform(), ha="right", va="center_baseline", fontsize=13,
        )  # fmt: skip
    for value in levels.values():
        plot.axvline(value * unit.factor, color=INK, linewidth=1.2, linestyle=_DOTS)
    plot.margins(x=0.06)
    # Little room for several names has none for their figures.
    bare = narrow and len(levels) > 1
    names = {
        arm: shorten(arm, 22) + ("" if bare else f" {unit.text(value)}")
        for arm, value in levels.items()
    }
    places = {names[arm]: value * unit.factor for arm, value in levels.items()}
    _flags(plot, places, FLAG / (pitch * len(rows)))
    return finish(fig, name=name, label=label)


def _flags(plot: Axes, places: Mapping[str, float], row: float) -> None:
    """The names of reference lines above the frame, in rows of their own.

    A line goes up to its name. The outermost is the highest, and names point to the middle, so
    that none is crossed by a line on its own side.
    """
    low, high = plot.get_xlim()
    middle = (low + high) / 2
    inwards = sorted(places, key=lambda name: abs(places[name] - middle))
    across = plot.get_xaxis_transform()
    for place, name in enumerate(inwards):
        value, foot = places[name], 1 + row * place
        side = "right" if value > middle else "left"
        nudge = (high - low) * 0.012 * (-1 if side == "right" else 1)
        if place:
            plot.plot(
                [value, value], [1, foot + 0.7 * row], transform=across, clip_on=False,
                color=INK, linewidth=1.2, linestyle=_DOTS,
            )  # fmt: skip
        _say(
            plot, value + nudge, foot, name,
            transform=across, ha=side, va="bottom", fontsize=12, color=MUTED,
        )  # fmt: skip


def learning(
    curves: Mapping[str, Curve],
    *,
    look: Mapping[str, Look],
    unit: Unit,
    width: float,
    name: str,
    label: str,
    reference: tuple[str, float] | None = None,
) -> Chart:
    """The metric over steps: mean line, band from the smallest to the largest seed."""
    narrow = width <= NARROW
    limit = 9 if narrow else 18
    longest = max(min(len(arm), limit) for arm in curves)
    fig = figure(width, 300 if narrow else 380)
    right = 18 + 7 * longest
    plot = axes(fig, left=34, right=right, top=14, bottom=42)
    plot.grid(visible=True, axis="y")
    for index, (arm, curve) in enumerate(curves.items()):
        style, mean = look[arm], curve.mean * unit.factor
        band = (curve.low * unit.factor, curve.high * unit.factor)
        veil = 0.14 if len(curves) <= 5 else 0.07
        plot.fill_between(curve.steps, *band, color=style.colour, alpha=veil, linewidth=0)
        every = max(1, len(mean) // 7)
        plot.plot(
            curve.steps, mean, color=style.colour, linestyle=style.dash, marker=style.marker,
            markersize=6, markeredgecolor=PAGE, markeredgewidth=1,
            markevery=(min(index * every // max(1, len(curves)), len(mean) - 1), every),
        )  # fmt: skip
    low, high = _window(curves, unit, reference)
    plot.set_ylim(low, high)
    last = max(1.0, *(float(curve.steps[-1]) for curve in curves.values()))
    plot.set_xlim(0, last)
    if reference is not None:
        value = reference[1] * unit.factor
        inside = low <= value <= high
        arrow = "" if inside else "  ↑" if value > high else "  ↓"
        height = value + (high - low) * 0.01 if inside else high
        if inside:
            plot.axhline(value, color=INK, linewidth=1.2, linestyle=_DOTS)
        words = f"{reference[0]} {unit.text(reference[1])}{arrow}"
        _say(
            plot, last * 0.01, height, words,
            va="bottom" if inside else "top", color=MUTED, fontsize=12,
        )  # fmt: skip
    ends = {
        arm: float(curve.mean[-1]) * unit.factor
        for arm, curve in curves.items()
        if np.isfinite(curve.mean[-1])
    }
    gap = (high - low) * 16 / (fig.get_figheight() * 72 - 56)
    for arm, height in _spread(ends, gap).items():
        _say(
            plot, 1 + 8 / (width - 34 - right), height, shorten(arm, limit), color=look[arm].colour,
            transform=plot.get_yaxis_transform(), va="center_baseline", fontsize=13,
        )  # fmt: skip
    _ticks(plot, "y", 5)
    _ticks(plot, "x", 3 if narrow else 6, "{:,.0f}")
    plot.set_xlabel("optimiser steps")
    return finish(fig, name=name, label=label)


def _window(
    curves: Mapping[str, Curve], unit: Unit, reference: tuple[str, float] | None
) -> tuple[float, float]:
    """Room for what comes after the first quarter of the training, where arms differ.

    The teacher is inside when it does not take more than half of the room from the students.
    """
    late = []
    for curve in curves.values():
        after = curve.steps >= 0.25 * curve.steps[-1]
        late += [curve.low[after], curve.high[after]]
    values = np.concatenate(late) * unit.factor
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    if reference is not None and np.isfinite(reference[1]):
        value, reach = reference[1] * unit.factor, high - low
        if low - reach <= value <= high + reach:
            low, high = min(low, value), max(high, value)
    room = 0.06 * (high - low) or 1.0
    return low - room / 2, high + 1.5 * room


def _spread(ends: Mapping[str, float], gap: float) -> dict[str, float]:
    """Heights of labels that do not overlap, as near to the line ends as that allows."""
    order = sorted(ends, key=lambda arm: ends[arm])
    places = [ends[arm] for arm in order]
    for _ in range(100):
        for below in range(len(places) - 1):
            overlap = gap - (places[below + 1] - places[below])
            if overlap > 1e-9 * gap:
                places[below] -= overlap / 2
                places[below + 1] += overlap / 2
    return dict(zip(order, places, strict=True))


def losses(
    terms: Mapping[str, Curve], *, look: Look, limits: tuple[float, float] | None, name: str,
    label: str,
) -> Chart:  # fmt: skip
    """The weighted loss terms of one arm; logarithmic when ``limits`` (all positive) are given."""
    limit = 10
    right = 16 + 7 * max(min(len(term), limit) for term in terms)
    width, height = NARROW, 210
    fig = figure(width, height)
    plot = axes(fig, left=44, right=right, top=8, bottom=26)
    plot.grid(visible=True, axis="y")
    ends = {}
    for index, (term, curve) in enumerate(terms.items()):
        colour, dash = (MUTED, _SOLID) if term == "task" else (look.colour, _DASHES[index % 4])
        values = np.where(curve.mean > 0, curve.mean, np.nan) if limits else curve.mean
        plot.plot(curve.steps, values, color=colour, linestyle=dash, linewidth=1.8)
        seen = values[np.isfinite(values)]
        if seen.size:
            ends[term] = (float(seen[-1]), colour)
    if limits is not None:
        plot.set_yscale("log")
        plot.set_ylim(*limits)
        plot.yaxis.set_major_locator(LogLocator(numticks=6))
        plot.yaxis.set_minor_locator(NullLocator())
        plot.yaxis.set_major_formatter(FuncFormatter(_power))
    else:
        _ticks(plot, "y", 4)
    _ticks(plot, "x", 3, "{:,.0f}")
    plot.set_xlim(0, max(1.0, *(float(curve.steps[-1]) for curve in terms.values())))
    to_axes = plot.transData + plot.transAxes.inverted()
    heights = {term: float(to_axes.transform((0.0, value))[1]) for term, (value, _) in ends.items()}
    for term, place in _spread(heights, 16 / (height - 34)).items():
        _say(
            plot, 1 + 7 / (width - 44 - right), place, shorten(term, limit),
            transform=plot.transAxes, color=ends[term][1], va="center_baseline", fontsize=12,
        )  # fmt: skip
    return finish(fig, name=name, label=label)


def _power(value: float, _: int | None) -> str:
    exponent = round(np.log10(value))
    if -3 <= exponent <= 3:
        return f"{value:g}"
    return f"1e{exponent}".replace("-", "\N{MINUS SIGN}")


def gram_picture(gram: Gram, *, limits: tuple[float, float], name: str, label: str) -> Chart:
    """A batch Gram matrix as an image; lines where one class ends and the next begins."""
    keep = np.unique(np.linspace(0, gram.labels.size - 1, GRAM_SIDE).round().astype(int))
    values, labels = gram.values[np.ix_(keep, keep)], gram.labels[keep]
    fig = figure(240, 240)
    plot = axes(fig)
    plot.set_axis_off()
    plot.imshow(values, cmap=SIMILARITY, norm=Normalize(*limits), interpolation="none")
    borders = np.flatnonzero(np.diff(labels)) + 0.5
    for border in borders if borders.size < 40 else ():
        plot.axhline(border, color="#ffffff", linewidth=0.7, alpha=0.65)
        plot.axvline(border, color="#ffffff", linewidth=0.7, alpha=0.65)
    return finish(fig, name=name, label=label)


def colour_scale(limits: tuple[float, float], *, name: str) -> Chart:
    """The colour scale that all Gram pictures share."""
    fig = figure(240, 36)
    plot = axes(fig, left=14, right=14, top=2, bottom=22)
    shades = np.linspace(0.0, 1.0, 128)[None, :]
    plot.imshow(shades, cmap=SIMILARITY, aspect="auto", extent=(*limits, 0.0, 1.0))
    plot.yaxis.set_major_locator(NullLocator())
    for side in plot.spines.values():
        side.set_visible(False)
    _ticks(plot, "x", 3)
    low, high = (f"{limit:.2g}" for limit in limits)
    return finish(fig, name=name, label=f"Colour scale from {low} (dark) to {high} (bright).")


def class_changes(
    rows: Mapping[str, Mapping[str, float]],
    *,
    look: Mapping[str, Look],
    width: float,
    name: str,
    label: str,
) -> Chart:
    """One row per class, one mark per arm: percentage points against the student alone."""
    narrow = width <= NARROW
    limit, pitch = 10 if narrow else 20, 28
    left = 18 + 7 * max(min(len(row), limit) for row in rows)
    fig = figure(width, 46 + pitch * len(rows))
    plot = axes(fig, left=left, right=14, top=4, bottom=42)
    plot.set_ylim(len(rows) - 0.5, -0.5)
    plot.yaxis.set_major_locator(NullLocator())
    plot.spines["left"].set_visible(False)
    plot.axvline(0, color=MUTED, linewidth=1.2)
    for place, (row, changes) in enumerate(rows.items()):
        points = 100 * np.array(list(changes.values()))
        plot.axhline(place, color=FAINT, linewidth=1, zorder=0)
        _say(
            plot, -10 / (width - left - 14), place, shorten(row, limit),
            transform=plot.get_yaxis_transform(), ha="right", va="center_baseline", fontsize=13,
        )  # fmt: skip
        for arm, point in zip(changes, points, strict=True):
            style = look[arm]
            plot.scatter(
                [point], [place], s=62 * style.larger, marker=style.marker,
                color=style.colour, edgecolors=PAGE, linewidths=1, zorder=3,
            )  # fmt: skip
    plot.margins(x=0.05)
    _ticks(plot, "x", 4 if narrow else 8, "{:+g}")
    plot.set_xlabel("percentage points")
    return finish(fig, name=name, label=label)


def swatch(look: Look, *, name: str) -> Chart:
    """An arm's mark, for a legend."""
    fig = figure(16, 16)
    plot = axes(fig)
    plot.set_axis_off()
    plot.scatter(
        [0],
        [0],
        s=70 * look.larger,
        marker=look.marker,
        color=look.colour,
        linewidths=0,
    )
    return finish(fig, name=name, label="")


def value_limits(pictures: Sequence[NDArray[Any]]) -> tuple[float, float]:
    """One colour scale for all: up to the brightest percent, in a Gram matrix the diagonal."""
    values = np.concatenate([picture.ravel() for picture in pictures])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = float(np.quantile(values, 0.005)), float(np.quantile(values, 0.99))
    low = 0.0 if low >= 0 else low
    return (low, high) if high > low else (low, low + 1.0)
