"""Systems: what is trained together. ``__all__`` is the registry."""

from congener.systems.distillation import Distillation

__all__ = ["Distillation"]
