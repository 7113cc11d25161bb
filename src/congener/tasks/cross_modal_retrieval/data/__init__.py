"""Data sets by name; each is a function that returns :class:`Splits`. ``__all__`` is the list."""

from .arrays import paired_tensors
from .descriptors import cifar10
from .emoji import emoji_names
from .files import nus_wide

__all__ = ["cifar10", "emoji_names", "nus_wide", "paired_tensors"]
