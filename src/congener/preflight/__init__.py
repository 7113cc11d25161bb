"""A preflight: what silently ruins distillation, found in seconds and told with its remedy."""

from congener.preflight.examine import doctor
from congener.preflight.finding import Finding

__all__ = ["Finding", "doctor"]
