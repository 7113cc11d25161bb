"""Losses of the relations between samples."""

from congener.conformance.methods.common import Method

__all__ = ["METHODS"]

METHODS: dict[tuple[str, str], Method] = {}
