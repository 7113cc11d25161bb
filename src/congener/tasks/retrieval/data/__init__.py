"""Data sets by name; each is a function that returns :class:`Splits`. ``__all__`` is the list."""

from .emoji import emoji
from .files import image_identities, tensors

__all__ = ["emoji", "image_identities", "tensors"]
