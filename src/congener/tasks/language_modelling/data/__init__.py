"""Data sets by name; each is a function that returns :class:`Splits`. ``__all__`` is the list."""

from .files import instructions
from .made import addition, shuffle, sort
from .tokens import tensors

__all__ = ["addition", "instructions", "shuffle", "sort", "tensors"]
