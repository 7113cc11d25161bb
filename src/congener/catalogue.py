"""What congener has: every loss and system, described from its code."""

import inspect
import re
import sys
import typing
import unicodedata
from dataclasses import dataclass, field
from typing import Any, Literal

import congener.losses
import congener.systems
from congener.types import Paper

__all__ = [
    "Entry",
    "Option",
    "Page",
    "describe",
    "entries",
    "functions_beside",
    "losses_by_name",
    "plain",
    "read_page",
    "systems_by_name",
]


@dataclass(frozen=True)
class Option:
    """A hyper-parameter: its default as written, and where that comes from."""

    name: str
    default: str
    source: str


@dataclass(frozen=True)
class Page:
    """A module's documentation in parts; the inline marks are those of reStructuredText."""

    title: str
    paragraphs: list[str] = field(default_factory=list)
    latex: list[str] = field(default_factory=list)
    symbols: list[list[str]] = field(default_factory=list)
    sections: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A loss or a system: what it is called, what it needs, where it was published."""

    name: str
    class_name: str
    kind: Literal["loss", "system"]
    family: str | None
    paper: Paper | None
    equation: str | None
    inputs: list[str]
    needs_labels: bool
    needs_features: bool
    needs_taps: bool
    trains_parameters: bool
    batch_coupled: bool
    zero_at_match: bool
    variants: list[str]
    options: list[Option]
    functions: list[str]
    page: Page

    @property
    def needs(self) -> str:
        """What it reads beside predictions, in words."""
        words = [word for word in ("labels", "features") if getattr(self, f"needs_{word}")]
        return ", ".join(words) or "logits"

    def facts(self) -> dict[str, Any]:
        """The entry in plain types, for ``congener list --json``."""
        paper = self.paper
        return {
            "name": self.name,
            "class": self.class_name,
            "kind": self.kind,
            "family": self.family,
            "inputs": self.inputs,
            "needs_labels": self.needs_labels,
            "needs_features": self.needs_features,
            "needs_taps": self.needs_taps,
            "trains_parameters": self.trains_parameters,
            "batch_coupled": self.batch_coupled,
            "variants": self.variants,
            "paper": None if paper is None else paper.title,
            "venue": None if paper is None else paper.venue,
            "year": None if paper is None else paper.year,
            "url": None if paper is None else paper.url,
        }


def losses_by_name() -> dict[str, Any]:
    """Every public loss under its short name and its class name."""
    found = {name: getattr(congener.losses, name) for name in congener.losses.__all__}
    base = congener.losses.Loss
    classes: dict[str, Any] = {
        name: loss
        for name, loss in found.items()
        if isinstance(loss, type) and issubclass(loss, base) and loss is not base
    }
    return {loss.name: loss for loss in classes.values()} | classes


def systems_by_name() -> dict[str, Any]:
    """Every public system under its short name."""
    classes = [getattr(congener.systems, name) for name in congener.systems.__all__]
    return {system.name: system for system in classes}


def entries() -> list[Entry]:
    """Every loss by name, then every system."""
    losses = sorted(set(losses_by_name().values()), key=lambda loss: str(loss.name))
    systems = sorted(systems_by_name().values(), key=lambda system: str(system.name))
    return [describe(thing) for thing in [*losses, *systems]]


def describe(cls: Any) -> Entry:
    """Read an entry off a loss' or a system's class."""
    is_loss = issubclass(cls, congener.losses.Loss)
    words = list(inspect.signature(cls.forward).parameters.values())[1:] if is_loss else []
    needed = {word.name for word in words if word.default is word.empty}
    features = any("feature" in name for name in needed)
    parameters = inspect.signature(cls).parameters.values()
    sources = cls.sources
    options = [
        Option(
            p.name, "" if p.default is p.empty else repr(p.default), sources.get(p.name, "")
        )
        for p in parameters
        if is_loss or p.name not in ("student", "teacher", "task")  # which every system takes
    ]  # fmt: skip
    hints = typing.get_type_hints(cls.__init__)
    variants = [
        f"{name}={value}"
        for name in ("variant", "kernel", "normalize", "negatives", "divergence", "distance")
        for value in typing.get_args(hints.get(name))
    ]
    return Entry(
        name=cls.name,
        class_name=cls.__name__,
        kind="loss" if is_loss else "system",
        family=cls.family if is_loss else None,
        paper=cls.paper,
        equation=cls.equation or None,
        inputs=[word.name for word in words],
        needs_labels="labels" in needed,
        needs_features=features,
        needs_taps=features,
        trains_parameters=is_loss and any(text.startswith("yours:") for text in sources.values()),
        batch_coupled=cls.batch_coupled,
        zero_at_match=is_loss and cls.zero_at_match,
        variants=variants,
        options=options,
        functions=functions_beside(cls) if is_loss else [],
        page=read_page(_documentation(cls)),
    )


def functions_beside(cls: Any) -> list[str]:
    """The public functions of a loss' paper, but those in the file of another of its losses."""
    modules = _public_modules()
    known = set(modules.values())
    others = {loss.__module__ for loss in losses_by_name().values()} - {cls.__module__}
    home = _home(cls.__module__, known)
    return [
        name
        for name, module in modules.items()
        if _home(module, known) == home
        and module not in others
        and inspect.isfunction(getattr(congener.losses, name))
    ]


def _public_modules() -> dict[str, str]:
    return {name: getattr(congener.losses, name).__module__ for name in congener.losses.__all__}


def _home(module: str, known: set[str]) -> str:
    """``crd_parts`` and ``crd_memory`` belong to ``crd``."""
    return min((m for m in known if f"{module}_".startswith(f"{m}_")), key=len)


def _documentation(cls: Any) -> str:
    """The docstring of the class' file; where that says little, of its paper's first file."""
    module = cls.__module__
    text = inspect.getdoc(sys.modules[module]) or ""
    if "Conventions" in text or not issubclass(cls, congener.losses.Loss):
        return text
    return inspect.getdoc(sys.modules[_home(module, set(_public_modules().values()))]) or text


def read_page(text: str) -> Page:
    """Take a docstring apart: title, paragraphs, formulas, one table, sections."""
    head, _, rest = text.partition("\n\n")
    page = Page(" ".join(head.split()))
    for block in re.split(r"\n\s*\n", rest.strip("\n")):
        lines = block.splitlines()
        if not lines:
            continue
        if lines[0].startswith(".. math::"):
            page.latex.append("\n".join(line.strip() for line in lines[1:]))
        elif lines[0].startswith("=="):
            page.symbols.extend(_rows(lines))
        elif lines[0].startswith(" ") and page.latex and not page.sections:
            page.latex.append("\n".join(line.strip() for line in lines))
        elif len(lines) > 1 and lines[1].startswith("    ") and not lines[0].startswith(" "):
            page.sections[lines[0]] = " ".join(" ".join(lines[1:]).split())
        elif lines[0].startswith(" ") and page.sections:
            last = next(reversed(page.sections))
            page.sections[last] += " " + " ".join(block.split())
        else:
            page.paragraphs.append(" ".join(block.split()))
    return page


def _rows(lines: list[str]) -> list[list[str]]:
    """The cells of a simple table, the heading first."""
    edges = [(m.start(), m.end()) for m in re.finditer("=+", lines[0])]
    starts = [start for start, _ in edges]
    cuts = list(zip(starts, [*starts[1:], None], strict=True))
    body = [line for line in lines if not line.startswith("==")]
    return [[line[start:end].strip() for start, end in cuts] for line in body]


def plain(text: str) -> str:
    """Inline marks and Greek commands as a terminal shows them."""
    text = re.sub(r":\w+:`~?([^`]*)`", r"\1", text).replace("``", "")
    return re.sub(r"\\([A-Za-z]+)\b", _greek, text)


def _greek(match: re.Match[str]) -> str:
    size = "CAPITAL" if match[1][0].isupper() else "SMALL"
    try:
        return unicodedata.lookup(f"GREEK {size} LETTER {match[1].upper()}")
    except KeyError:
        return match[0]
