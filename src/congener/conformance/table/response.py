"""Losses of predictions: decoupled, standardised, multi-level, mixed, of several heads."""

from congener.conformance.table.case import LossCase

__all__ = ["LOSSES"]

LOSSES: dict[str, LossCase] = {}
