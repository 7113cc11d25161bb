"""Data sets by name; each is a function that returns :class:`Splits`. ``__all__`` is the list."""

from .glue import glue
from .memory import tensors, texts
from .newsgroups import newsgroups
from .tables import table

__all__ = ["glue", "newsgroups", "table", "tensors", "texts"]
