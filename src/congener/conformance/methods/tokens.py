"""Losses of token distributions and of sentence embeddings."""

from congener.conformance.methods.common import Method

__all__ = ["METHODS"]

METHODS: dict[tuple[str, str], Method] = {}
