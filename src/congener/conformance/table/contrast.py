"""Losses that tell pairs apart, hash codes, and losses of feature direction."""

from congener.conformance.table.case import LossCase

__all__ = ["LOSSES"]

LOSSES: dict[str, LossCase] = {}
