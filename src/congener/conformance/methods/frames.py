"""Losses of the frames within one utterance."""

from congener.conformance.methods.common import Method

__all__ = ["METHODS"]

METHODS: dict[tuple[str, str], Method] = {}
