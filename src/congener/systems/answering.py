"""Who answers which further word of a loss: all sources, by their words."""

from congener.systems.places import Foreground, Locations, NearObject, Visible
from congener.systems.sources import (
    Margins,
    RestyledLogits,
    Source,
    TeacherClassifier,
)
from congener.systems.surveys import ClassMeans, ContrastIndex

__all__ = ["KINDS", "SOURCES"]

KINDS: tuple[type[Source], ...] = (
    ClassMeans, RestyledLogits, ContrastIndex, TeacherClassifier, Margins,
    Foreground, NearObject, Visible, Locations,
)  # fmt: skip
SOURCES = {word: kind for kind in KINDS for word in kind.words}
