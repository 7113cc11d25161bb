"""Losses that tell pairs apart, hash codes, and losses of feature direction."""

from congener.conformance.methods.common import Method

__all__ = ["METHODS"]

METHODS: dict[tuple[str, str], Method] = {}
