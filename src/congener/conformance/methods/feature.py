"""Losses of feature maps: hints, attention, statistics, factors."""

from congener.conformance.methods.common import Method

__all__ = ["METHODS"]

METHODS: dict[tuple[str, str], Method] = {}
