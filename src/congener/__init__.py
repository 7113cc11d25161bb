"""congener: a small network keeps the similarities that a large one sees.

The public names are loaded when they are first used, so that ``import congener.losses`` costs no
more than torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from congener.api import Distilled as Distilled
    from congener.api import describe as describe
    from congener.api import distill as distill
    from congener.api import run as run
    from congener.api import validate as validate
    from congener.engine import FitConfig as FitConfig
    from congener.engine import fit as fit
    from congener.errors import CongenerError as CongenerError
    from congener.planning import plan as plan
    from congener.preflight import doctor as doctor
    from congener.recipe import Recipe as Recipe
    from congener.recipe import load_recipe as load_recipe
    from congener.runner import Run as Run
    from congener.systems import Distillation as Distillation
    from congener.taps import Taps as Taps
    from congener.types import Term as Term

__version__ = "0.1.0"

_HOMES = {
    "CongenerError": "congener.errors",
    "Distillation": "congener.systems",
    "Distilled": "congener.api",
    "FitConfig": "congener.engine",
    "Recipe": "congener.recipe",
    "Run": "congener.runner",
    "Taps": "congener.taps",
    "Term": "congener.types",
    "describe": "congener.api",
    "distill": "congener.api",
    "doctor": "congener.preflight",
    "fit": "congener.engine",
    "load_recipe": "congener.recipe",
    "plan": "congener.planning",
    "run": "congener.api",
    "validate": "congener.api",
}

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'congener' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
