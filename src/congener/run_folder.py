"""A run folder: made for a run, or gone on with by the same recipe."""

from pathlib import Path

from congener.errors import RunError, first_difference
from congener.runlog import write_text

__all__ = ["open_folder"]


def open_folder(out: Path, recipe: str, *, resume: bool | None) -> None:
    """Make the run folder, or make sure that the one there is to be gone on with.

    With ``resume=None`` either will do, as the folder is found.
    """
    try:
        _claim(out, recipe, resume=resume)
    except OSError as error:
        raise RunError(
            f"Cannot write to {out} ({error.strerror}); choose a folder that is writable."
        ) from error


def _claim(out: Path, recipe: str, *, resume: bool | None) -> None:
    recorded = out / "recipe.yaml"
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; name a folder for the run.")
    # Hidden files are drafts of a start that was cut off before there was a run.
    holds_run = out.exists() and any(not path.name.startswith(".") for path in out.iterdir())
    resume = holds_run if resume is None else resume
    if holds_run and not resume:
        raise RunError(
            f"{out} already holds a run; add --resume to go on with it, or name another "
            "(in Python: resume=True, or out=...)."
        )
    if resume and not holds_run:
        raise RunError(f"There is no run in {out} to resume; leave --resume out to start one.")
    if resume:
        _same_recipe(recorded, recipe)
        return
    out.mkdir(parents=True, exist_ok=True)
    write_text(recorded, recipe)


def _same_recipe(recorded: Path, recipe: str) -> None:
    if not recorded.exists():
        raise RunError(f"{recorded.parent} holds no recipe.yaml, so it is no run; name another.")
    before = recorded.read_text(encoding="utf-8", errors="replace")
    if before.splitlines() != recipe.splitlines():
        there, now = first_difference(before, recipe)
        raise RunError(
            f"{recorded.parent} was started by another recipe (there {there!r}, now {now!r}); "
            "resume with the same one, or name another folder."
        )
