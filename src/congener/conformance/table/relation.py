"""Losses of the relations between samples."""

from congener.conformance.table.case import LossCase

__all__ = ["LOSSES"]

LOSSES: dict[str, LossCase] = {}
