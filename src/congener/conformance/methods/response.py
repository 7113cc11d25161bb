"""Losses of predictions: decoupled, standardised, multi-level, mixed, of several heads."""

from congener.conformance.methods.common import Method

__all__ = ["METHODS"]

METHODS: dict[tuple[str, str], Method] = {}
