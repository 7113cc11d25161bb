"""The page: which sections a run has, their charts and sentences; the template writes them."""

import math
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from congener.errors import RunError
from congener.report import charts, words
from congener.report.curves import loss_balance, loss_curves, metric_curves
from congener.report.data import Arm, Gram, Run, Term, read_run
from congener.report.exhibits import read_exhibits
from congener.report.svg import Chart, style

__all__ = ["WIDE", "Pair", "template", "write_report"]

WIDE = 920
MANY_CLASSES = 24


@dataclass(frozen=True, slots=True)
class Pair:
    """One picture in two widths; the style sheet shows the one that fits."""

    wide: Chart
    narrow: Chart


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run folder and return its path.

    The page is a pure function of the folder: the same folder gives the same bytes. It replaces
    an older one in one step, so that nobody ever reads half a page.

    Raises:
        RunError: the folder is not one of a finished run.
    """
    folder = Path(folder)
    run = read_run(folder)
    with style():
        page = template("template.html.jinja").render(_context(run))
    target = folder / "report.html"
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".report-", suffix=".html")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(page)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


def template(name: str) -> Template:
    """A template with the formats of the report as filters; whatever it is given is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        begin=words.begin,
        count=words.count,
        duration=words.duration,
        metric_name=words.metric_name,
        milliseconds=words.milliseconds,
        p_value=words.p_value,
        signed=words.signed,
        size=words.size,
    )
    return environment.get_template(name)


def _context(run: Run) -> dict[str, Any]:
    look = charts.looks({name: arm.role for name, arm in run.arms.items()})
    return {
        "run": run,
        "metrics": run.metrics,
        "metric": words.metric_name(run.metrics.metric),
        "unit": words.unit_of(run),
        "nothing": words.NOTHING,
        "best": run.best,
        "headline": words.headline(run),
        "tiles": words.tiles(run),
        "rows": words.summary_table(run),
        "tested": any(comparison.p is not None for comparison in run.metrics.comparisons.values()),
        "accuracy": _accuracy(run, look),
        "costs": _costs(run),
        "learning": _learning(run, look),
        "figures": _figures(run),
        "losses": _losses(run, look),
        "balance": _balance(run),
        "agreement": _agreement(run, look),
        "grams": _grams(run),
        "classes": _classes(run, look),
        "exhibits": _exhibits(run),
        "terms": _terms(run),
        "teachers": _teachers(run),
        "saved": run.events.saved if run.events else [],
    }


Looks = Mapping[str, charts.Look]


def _reference(run: Run) -> tuple[str, float] | None:
    teacher = run.first("teacher")
    return (teacher, run.arms[teacher].mean) if teacher else None


def _students(run: Run) -> dict[str, Arm]:
    return {name: arm for name, arm in run.arms.items() if arm.role != "teacher"}


def _accuracy(run: Run, look: Looks) -> Pair | None:
    unit, metric = words.unit_of(run), words.metric_name(run.metrics.metric)
    rows = {name: arm.values for name, arm in _students(run).items() if arm.role != "start"}
    if not rows:
        return None
    told = ", ".join(f"{name} {unit.text(run.arms[name].mean)}" for name in rows)
    reference = _reference(run)
    beside = f"; {reference[0]} {unit.text(reference[1])}" if reference else ""
    label = f"Dot chart of last-epoch {metric}, mean over seeds: {told}{beside}."

    def draw(width: float, name: str) -> Chart:
        return charts.dots(
            rows, look=look, unit=unit, width=width, name=name, label=label,
            references=dict([reference] if reference else []),
        )  # fmt: skip

    return Pair(draw(WIDE, "acc-w"), draw(charts.NARROW, "acc-n"))


def _figures(run: Run) -> dict[str, Any] | None:
    """Every figure of the last evaluation by arm, mean over seeds, if there are several."""
    found: dict[str, list[float]] = {}
    for arm in run.arms.values():
        for name, values in arm.metrics.items():
            found.setdefault(name, []).extend(values)
    if len(found) < 2:
        return None
    units = {name: words.unit_for(values) for name, values in found.items()}
    rows = []
    for name, arm in run.arms.items():
        means = {figure: math.fsum(v) / len(v) for figure, v in arm.metrics.items()}
        cells = [unit.number(means.get(figure)) for figure, unit in units.items()]
        rows.append({"name": name, "role": arm.role, "cells": cells})
    heads = [(words.metric_name(name), unit.suffix) for name, unit in units.items()]
    return {"heads": heads, "rows": rows}


def _costs(run: Run) -> list[dict[str, Any]]:
    """Cost per arm, and how many times less than the teacher."""
    teacher = run.first("teacher")
    whole = run.arms[teacher] if teacher else None
    rows = []
    for name, arm in run.arms.items():
        ratio = {}
        for key in ("parameters", "macs", "bytes", "latency_ms"):
            value, reference = getattr(arm, key), getattr(whole, key, None)
            if arm is not whole and value and reference:
                ratio[key] = words.times(reference / value)
        rows.append({"name": name, "arm": arm, "ratio": ratio})
    return rows


def _learning(run: Run, look: Looks) -> Pair | None:
    curves, unit, metric = (
        metric_curves(run),
        words.unit_of(run),
        words.metric_name(run.metrics.metric),
    )
    if max((len(curve.steps) for curve in curves.values()), default=0) < 2:
        return None  # evaluated at the end only
    told = ", ".join(f"{name} {unit.text(float(c.mean[-1]))}" for name, c in curves.items())
    label = f"Line chart of {metric} over optimiser steps; at the end: {told}."

    def draw(width: float, name: str) -> Chart:
        return charts.learning(
            curves, look=look, unit=unit, width=width, name=name, label=label,
            reference=_reference(run),
        )  # fmt: skip

    return Pair(draw(WIDE, "learn-w"), draw(charts.NARROW, "learn-n"))


def _losses(run: Run, look: Looks) -> dict[str, Any] | None:
    curves = loss_curves(run)
    if not curves:
        return None
    means = np.concatenate([c.mean for terms in curves.values() for c in terms.values()])
    positive = means[np.isfinite(means) & (means > 0)]
    limits = None
    if positive.size and not np.any(means < 0):
        limits = (float(positive.min()) * 0.8, float(positive.max()) * 1.25)
    panels = {}
    for index, (name, terms) in enumerate(curves.items()):
        told = ", ".join(
            f"{term} from {c.mean[0]:.3g} to {c.mean[-1]:.3g}" for term, c in terms.items()
        )
        label = f"Line chart of the weighted loss terms of {name} over steps: {told}."
        panels[name] = charts.losses(
            terms, look=look[name], limits=limits, name=f"loss{index}", label=label
        )
    return {
        "panels": panels,
        "logarithmic": limits is not None,
        "columns": _columns(len(panels), 3),
    }


def _balance(run: Run) -> list[dict[str, Any]]:
    """The loss balance in words: from the first record to the end."""

    def both(figures: tuple[float | None, float | None], form: str) -> str:
        said = [words.NOTHING if x is None else format(x, form) for x in figures]
        return " → ".join(said).replace("-", "\N{MINUS SIGN}")

    return [
        {
            "arm": row.arm,
            "term": row.term,
            "weighted": both(row.weighted, ".3g"),
            "gradient": both(row.gradient_norm, ".2g"),
            "share": both(row.share, ".0%"),
            "cosine": both(row.cosine, "+.2f"),
        }
        for row in loss_balance(run)
    ]


def _agreement(run: Run, look: Looks) -> dict[str, Any]:
    students = _students(run)
    rows = {name: run.analyses[name].agreement() for name in students if name in run.analyses}
    missing = [run.missing[name] for name in students if name in run.missing]
    if not rows:
        return {"pair": None, "missing": missing}
    unit = words.PERCENT
    told = ", ".join(f"{name} {unit.text(float(values.mean()))}" for name, values in rows.items())
    label = f"Dot chart of the agreement with the teacher, mean over seeds: {told}."

    def draw(width: float, name: str) -> Chart:
        return charts.dots(rows, look=look, unit=unit, width=width, name=name, label=label)

    return {"pair": Pair(draw(WIDE, "agree-w"), draw(charts.NARROW, "agree-n")), "missing": missing}


def _grams(run: Run) -> dict[str, Any]:
    teacher = run.first("teacher")
    if teacher is None or teacher not in run.grams:
        why = run.missing.get(teacher or "", "the teacher's file holds no Gram matrix")
        return {"panels": [], "why": why if teacher else "this run has no teacher"}
    reference = run.grams[teacher]
    limits = charts.value_limits([gram.values for gram in run.grams.values()])
    alone = run.first("alone")
    base = reference.distance(run.grams[alone]) if alone in run.grams else None
    order = "class" if run.metrics.classifies else "label"
    panels: list[dict[str, Any]] = []
    for index, (name, gram) in enumerate(run.grams.items()):
        distance = None if name == teacher else reference.distance(gram)
        label = f"Batch Gram matrix of {name}, samples ordered by {order}."
        if distance is not None:
            label += f" Distance to the teacher's: {distance:.2e}."
        picture = charts.gram_picture(gram, limits=limits, name=f"gram{index}", label=label)
        relative = distance / base if distance is not None and base else None
        panels.append(
            {
                "name": name,
                "tap": gram.tap,
                "picture": picture,
                "distance": distance,
                "relative": relative if name != alone else None,
            }
        )
    largest = max((panel["distance"] or 0.0 for panel in panels), default=0.0)
    exponent = math.floor(math.log10(largest)) if largest > 0 else 0
    return {
        "panels": panels,
        "columns": _columns(len(panels), 5),
        "power": 10.0**exponent,
        "exponent": str(exponent).replace("-", "−"),
        "scale": charts.colour_scale(limits, name="scale"),
        "samples": reference.labels.size,
        "by": order,
        "order": _class_order(run, reference),
        "without": [name for name in run.arms if name not in run.grams],
    }


def _columns(panels: int, most: int) -> int:
    """Rows of nearly equal length."""
    return math.ceil(panels / math.ceil(panels / most))


def _class_order(run: Run, gram: Gram) -> list[str]:
    """The names of the labels from the top; none where they have no names."""
    found = dict.fromkeys(gram.labels[gram.labels >= 0].tolist())
    named = run.metrics.classifies or run.metrics.class_names
    return [_class_name(run, label) for label in found] if named else []


def _class_name(run: Run, label: int) -> str:
    names = run.metrics.class_names
    return names[label] if 0 <= label < len(names) else f"class {label}"


def _classes(run: Run, look: Looks) -> dict[str, Any] | None:
    """Accuracy per class of the student alone, and the change of every other student."""
    alone = run.first("alone")
    if alone not in run.analyses:
        return None
    base = run.analyses[alone]
    number = max(len(run.metrics.class_names), int(base.labels.max(initial=-1)) + 1)
    start = base.class_accuracy(number)
    changes = {
        name: run.analyses[name].class_accuracy(number) - start
        for name in _students(run)
        if name in run.analyses and name != alone
    }
    known = [index for index in range(number) if np.isfinite(start[index])]
    if not changes or not known:
        return None
    leader = changes.get(run.best or "", next(iter(changes.values())))
    order = sorted(known, key=lambda index: -leader[index])
    shown = order
    if len(order) > MANY_CLASSES:
        shown = order[: MANY_CLASSES // 2] + order[-MANY_CLASSES // 2 :]
    drawn = {
        _class_name(run, index): {name: float(change[index]) for name, change in changes.items()}
        for index in shown
    }
    gained = sum(float(leader[index]) > 0 for index in known)
    label = (
        f"Dot plot of the change of accuracy per class against {alone}; {run.best or 'the arm'} "
        f"gains on {gained} of {len(known)} classes. The table below has all numbers."
    )

    def draw(width: float, name: str) -> Chart:
        return charts.class_changes(drawn, look=look, width=width, name=name, label=label)

    table: list[dict[str, Any]] = [
        {
            "name": _class_name(run, index),
            "start": float(start[index]),
            "changes": [float(change[index]) for change in changes.values()],
        }
        for index in known
    ]
    return {
        "pair": Pair(draw(WIDE, "class-w"), draw(charts.NARROW, "class-n")),
        "alone": alone,
        "arms": {
            name: charts.swatch(look[name], name=f"swatch{index}")
            for index, name in enumerate(changes)
        },
        "table": table,
        "most": max(0.01, max(abs(value) for row in table for value in row["changes"])),
        "left_out": len(order) - len(shown),
    }


def _teachers(run: Run) -> dict[str, str]:
    """How the teacher ran where it did not as it is: each line once, with the arms it is of."""
    arms: dict[str, list[str]] = {}
    for fit, line in run.events.teacher.items() if run.events else ():
        arms.setdefault(line, []).append(fit.rpartition("/")[0] or fit)
    return {line: ", ".join(dict.fromkeys(names)) for line, names in arms.items()}


def _exhibits(run: Run) -> dict[str, Any]:
    """What the task shows, or in a sentence each why it does not."""
    missing = list(run.events.failed) if run.events else []
    try:
        return {"shown": read_exhibits(run.folder), "missing": missing}
    except RunError as error:
        return {
            "shown": [],
            "missing": [*missing, f"Exhibits are left out: {error}".rstrip(".") + "."],
        }


def _terms(run: Run) -> dict[str, Any]:
    """Every arm's total loss, and every distinct loss with its equation and paper once."""
    rows = []
    for name, arm in _students(run).items():
        rows.append({"name": name, "arm": arm, "terms": [_term(term) for term in arm.terms]})
    seen: dict[str, dict[str, Any]] = {}
    for arm in run.arms.values():
        for term in arm.terms:
            loss = term.loss.partition("(")[0]
            if loss not in seen and (term.equation or term.paper):
                paper, link = _paper(term.paper)
                seen[loss] = {
                    "name": loss,
                    # "‖x‖²_F": every second piece is a subscript
                    "equation": re.split(r"_(\w+)", term.equation or ""),
                    "paper": paper,
                    "link": link,
                }
    return {"arms": rows, "losses": list(seen.values())}


def _term(term: Term) -> dict[str, Any]:
    def taps(value: str | list[str] | None) -> str:
        return ", ".join([value] if isinstance(value, str) else value or [])

    loss, _, settings = term.loss.partition("(")
    return {
        "term": term,
        "loss": loss,
        "settings": settings.removesuffix(")"),
        "student": taps(term.student),
        "teacher": taps(term.teacher),
    }


def _paper(text: str | None) -> tuple[str, str | None]:
    """A paper's words and its link, when there is one."""
    found = re.search(r"https?://[^\s<>\"]+", text or "")
    if text is None or found is None:
        return text or "", None
    link = found.group().rstrip(".,;)")
    return (text.replace(link, "").strip(" .,;()") or link), link
