"""Losses of feature maps: hints, attention, statistics, factors."""

from congener.conformance.table.case import LossCase

__all__ = ["LOSSES"]

LOSSES: dict[str, LossCase] = {}
