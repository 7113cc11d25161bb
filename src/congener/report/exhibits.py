"""Exhibits: pictures and sounds that only the task of a run can make, ready for the page."""

import base64
import io
import wave
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.image import imsave
from numpy.typing import NDArray
from pydantic import Field

from congener.errors import RunError
from congener.report import charts
from congener.report.data import Record, read_arrays, read_object, validated
from congener.report.svg import Chart

__all__ = ["Shown", "read_exhibits"]

Kind = Literal["similarity", "spectrogram", "image", "scene"]
Arrays = Mapping[str, NDArray[Any]]
COLOURS = {"similarity": charts.SIMILARITY, "spectrogram": "magma"}
MOST = {"similarity": 256, "spectrogram": 512, "image": 192, "scene": 384}
"""Pixels of a side; of more, evenly many are left out."""
SOUND = 500_000
"""Samples of a sound that the page holds: 11 s at 44.1 kHz, 1 MB."""
KINDS = {"similarity": "Similarity matrix", "spectrogram": "Spectrogram", "image": "Picture",
         "scene": "Picture"}  # fmt: skip


class Panel(Record):
    """A picture, by its name among the arrays, or a card of words."""

    caption: str
    kind: Kind = "image"
    hit: bool | None = None
    picture: str | None = None


class Row(Record):
    """The panels of an arm, or of what else has the name."""

    name: str
    panels: list[Panel]


class Sound(Record):
    """A waveform of 16 bits, by its name among the arrays, and samples per second."""

    samples: str
    rate: int = Field(gt=0)


class Exhibit(Record):
    """One figure."""

    title: str
    text: str
    rows: list[Row]
    sound: Sound | None = None


class Exhibits(Record):
    """``exhibits.json``."""

    exhibits: list[Exhibit]


@dataclass(frozen=True, slots=True)
class Picture:
    """A panel as the page has it; without ``source`` it is a card of words."""

    caption: str
    kind: str
    hit: bool | None
    source: str
    label: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Player:
    """A sound as the page has it, and of how many seconds that is only the beginning, if it is."""

    source: str
    seconds: float
    of: float | None


@dataclass(frozen=True, slots=True)
class Shown:
    """An exhibit as the page has it; ``scale`` is that of its similarities."""

    title: str
    text: str
    rows: list[tuple[str, list[Picture]]]
    player: Player | None
    scale: Chart | None


def read_exhibits(folder: Path) -> list[Shown]:
    """The exhibits in a run folder; none where the task shows nothing.

    Call it under :func:`congener.report.svg.style`.

    Raises:
        RunError: files that are damaged, or that do not belong together.
    """
    path = folder / "exhibits.json"
    if not path.is_file():
        return []
    told = validated(Exhibits, read_object(path), path, "a run").exhibits
    arrays = read_arrays(folder / "exhibits.npz", "exhibits.npz")
    return [_shown(each, arrays, f"exhibit{index}") for index, each in enumerate(told)]


def _shown(exhibit: Exhibit, arrays: Arrays, name: str) -> Shown:
    panels = [panel for row in exhibit.rows for panel in row.panels]
    limits = {}
    for kind in COLOURS:
        values = [_array(p, arrays) for p in panels if p.kind == kind and p.picture is not None]
        if values:
            limits[kind] = charts.value_limits(values)
    rows = [
        (row.name, [_picture(panel, row.name, arrays, limits) for panel in row.panels])
        for row in exhibit.rows
    ]
    scale = None
    if "similarity" in limits:
        scale = charts.colour_scale(limits["similarity"], name=f"{name}-scale")
    player = None if exhibit.sound is None else _player(exhibit.sound, arrays)
    return Shown(exhibit.title, exhibit.text, rows, player, scale)


def _array(panel: Panel, arrays: Arrays) -> NDArray[Any]:
    """The picture of a panel, small enough for the page."""
    values = arrays.get(panel.picture or "")
    if panel.kind not in COLOURS:
        fits = values is not None and values.shape[2:] == (3,) and values.dtype == np.uint8
    else:
        fits = values is not None and values.ndim == 2 and values.dtype.kind == "f"
    if values is None or not fits or not values.size:
        raise RunError("exhibits.npz does not hold the pictures that exhibits.json names")
    for axis in (0, 1):
        count = values.shape[axis]
        most = min(count, MOST[panel.kind])
        keep = np.linspace(0, count - 1, most).round().astype(int)
        values = values.take(keep, axis)
    return values


def _picture(
    panel: Panel, row: str, arrays: Arrays, limits: Mapping[str, tuple[float, float]]
) -> Picture:
    source, width, height = "", 0, 0
    if panel.picture is not None:
        values = _array(panel, arrays)
        height, width = values.shape[:2]
        low, high = limits.get(panel.kind, (None, None))
        stream = io.BytesIO()
        imsave(
            stream, values, format="png", origin="upper", vmin=low, vmax=high,
            cmap=COLOURS.get(panel.kind),
        )  # fmt: skip
        source = _data("image/png", stream)
    label = f"{KINDS[panel.kind]}, {row}: {panel.caption}"
    return Picture(panel.caption, panel.kind, panel.hit, source, label, width, height)


def _player(sound: Sound, arrays: Arrays) -> Player:
    samples = arrays.get(sound.samples)
    if samples is None or samples.ndim != 1 or samples.dtype != np.int16:
        raise RunError("exhibits.npz does not hold the sound that exhibits.json names")
    kept, stream = samples[:SOUND], io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sound.rate)
        file.writeframes(kept.astype("<i2").tobytes())
    whole = len(samples) / sound.rate if len(samples) > SOUND else None
    return Player(_data("audio/wav", stream), len(kept) / sound.rate, whole)


def _data(kind: str, stream: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
