"""What several commands take, and how they say what to type."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Overrides", "Trust", "run_command", "trusting"]

Trust = Annotated[
    list[str] | None, typer.Option(help="A package whose code the recipe may name; repeatable.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes to the recipe, such as train.lr=0.01.")
]


def run_command(
    recipe: str, overrides: Iterable[str] | None, out: Path, trust: Iterable[str] | None
) -> list[str]:
    """The words that run a recipe."""
    return ["congener", "run", recipe, *(overrides or ()), "--out", str(out), *trusting(trust)]


def trusting(packages: Iterable[str] | None) -> list[str]:
    """The words that trust packages."""
    return [word for package in packages or () for word in ("--trust", package)]
