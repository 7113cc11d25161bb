"""Losses of token distributions and of sentence embeddings."""

from congener.conformance.table.case import LossCase

__all__ = ["LOSSES"]

LOSSES: dict[str, LossCase] = {}
