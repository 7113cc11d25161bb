"""Data sets by name; each is a function that returns :class:`Splits`. ``__all__`` is the list."""

from .coco import coco
from .scenes import digit_scenes, tensors
from .voc import voc

__all__ = ["coco", "digit_scenes", "tensors", "voc"]
