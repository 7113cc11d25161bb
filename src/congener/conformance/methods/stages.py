"""Losses of whole stages, through fusion, a frozen teacher classifier, or its statistics."""

from congener.conformance.methods.common import Method

__all__ = ["METHODS"]

METHODS: dict[tuple[str, str], Method] = {}
