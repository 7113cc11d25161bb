"""Data sets by name; each is a function that returns :class:`Splits`. ``__all__`` is the list."""

from .files import clip_folder
from .sonyc import sonyc_ust
from .synthetic import instruments, tensors

__all__ = ["clip_folder", "instruments", "sonyc_ust", "tensors"]
