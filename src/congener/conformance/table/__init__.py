"""The one table of what is public: a loss that is not listed here fails the build."""

from congener.conformance.table import (
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
from congener.conformance.table.case import LossCase

__all__ = ["LOSSES", "NOT_LOSSES", "LossCase"]

LOSSES: dict[str, LossCase] = {
    name: case
    for group in (contrast, established, feature, frames, maps, relation, response, stages, tokens)
    for name, case in group.LOSSES.items()
}

NOT_LOSSES = {
    "Loss": "what the modules have in common",
    "cswt_temperatures": "temperatures, tested in tests/losses/test_cskd.py",
}
"""Public names of ``congener.losses`` that are no loss, each with the reason."""
