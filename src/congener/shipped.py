"""The recipes that come with the package."""

from pathlib import Path

from congener.errors import RecipeError, did_you_mean

__all__ = ["recipe_path", "shipped_recipes"]


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by file stem."""
    folder = Path(__file__).parent / "recipes"
    return {path.stem: path for path in sorted(folder.rglob("*.yaml"))}


def recipe_path(recipe: str) -> Path:
    """A file of that path, or else the shipped recipe of that name.

    Raises:
        RecipeError: a name that no recipe has.
    """
    path, shipped = Path(recipe), shipped_recipes()
    if path.is_file():
        return path
    if recipe in shipped:
        return shipped[recipe]
    if path.stem in shipped or not (path.suffix or path.exists()):
        raise RecipeError(f"There is no recipe {recipe!r}; {did_you_mean(path.stem, shipped)}")
    return path
