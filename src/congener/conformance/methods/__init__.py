"""How each published method is called through the public API."""

from congener.conformance.methods import (
    contrast,
    established,
    feature,
    frames,
    maps,
    relation,
    response,
    stages,
    tokens,
)
from congener.conformance.methods.common import Method

__all__ = ["METHODS"]

METHODS: dict[tuple[str, str], Method] = {
    key: method
    for group in (contrast, established, feature, frames, maps, relation, response, stages, tokens)
    for key, method in group.METHODS.items()
}
