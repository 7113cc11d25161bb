"""Matplotlib figures as inline SVG whose colours belong to the page.

Everything is drawn in sentinel colours; afterwards each sentinel becomes a CSS variable, so that
one picture serves the light page, the dark page and paper.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib as mpl
import matplotlib.style
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["FAINT", "INK", "MUTED", "PAGE", "SERIES", "Chart", "axes", "figure", "finish", "style"]

INK, MUTED, FAINT, PAGE = "#010203", "#010204", "#010205", "#010206"
SERIES = tuple(f"#0a0b{index:02x}" for index in range(1, 7))
_VARIABLES = {INK: "ink", MUTED: "muted", FAINT: "faint", PAGE: "page"} | {
    colour: f"series-{index}" for index, colour in enumerate(SERIES, start=1)
}
_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "congener",
    "svg.image_inline": True,
    "font.size": 12,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "grid.color": FAINT,
    "grid.linewidth": 1,
    "lines.linewidth": 2,
}
_NOT_OURS = re.compile(
    r"<!--.*?-->|<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<defs>\s*</defs>", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Chart:
    """What the template needs to write one ``<svg>``: its box, its inside, its words."""

    width: float
    height: float
    label: str
    body: Markup


@contextmanager
def style() -> Iterator[None]:
    """The look of all charts, whatever the user's own matplotlib settings are."""
    with mpl.style.context(["default", _SETTINGS]), warnings.catch_warnings():
        # Text stays text: the reader's browser has the glyphs that our measuring font lacks.
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing from font", category=UserWarning
        )
        yield


def figure(width: float, height: float) -> Figure:
    """An empty figure; one unit is one CSS pixel."""
    return Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="none")


def axes(
    fig: Figure, *, left: float = 0, right: float = 0, top: float = 0, bottom: float = 0
) -> Axes:
    """Axes with margins in pixels and no background."""
    width, height = fig.get_figwidth() * 72, fig.get_figheight() * 72
    box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
    return fig.add_axes(box, facecolor="none")


def finish(fig: Figure, *, name: str, label: str) -> Chart:
    """Write a figure as the inside of an inline SVG.

    Args:
        fig: made under :func:`style`.
        name: unique on the page; all ids of the picture begin with it.
        label: what a reader who cannot see the picture is told.
    """
    stream = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    fig.savefig(stream, format="svg", transparent=True, metadata=nothing)
    text = stream.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    body = _NOT_OURS.sub("", body)
    body = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', body)
    body = re.sub(r'xlink:href="#([^"]*)"', rf'href="#{name}-\1"', body)
    body = re.sub(r'xlink:href="data:', 'href="data:', body)
    body = re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", body)
    body = re.sub(r"font: (?:\w+ )?([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    body = re.sub(r"\n\s*", "\n", body).strip()
    return Chart(
        width=round(fig.get_figwidth() * 72, 2),
        height=round(fig.get_figheight() * 72, 2),
        label=label,
        body=Markup(body),  # matplotlib escaped every text in it
    )
