"""Losses of whole stages, through fusion, a frozen teacher classifier, or its statistics."""

from congener.conformance.table.case import LossCase

__all__ = ["LOSSES"]

LOSSES: dict[str, LossCase] = {}
