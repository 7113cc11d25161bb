"""Losses of the frames within one utterance."""

from congener.conformance.table.case import LossCase

__all__ = ["LOSSES"]

LOSSES: dict[str, LossCase] = {}
