"""A run folder: made for a run, or gone on with by the same recipe; and what its fits leave."""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from congener.errors import RunError, first_difference
from congener.runlog import read_json, write_text
from congener.taps import bare

__all__ = ["is_done", "open_folder", "read_result", "save_weights"]


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


def save_weights(model: nn.Module, path: Path) -> None:
    """Keep the weights of a network, bare of what wraps it, in a file that is whole or absent."""
    draft = path.with_name(f".{path.name}.draft")
    # A copy of each, so that tied weights are all there, as in the network's own state.
    state = bare(model).state_dict()
    save_file({name: value.clone().contiguous() for name, value in state.items()}, draft)
    draft.replace(path)


def is_done(folder: Path) -> bool:
    """Whether an earlier session ended the fit of a folder."""
    if not ((folder / "result.json").exists() and (folder / "weights.safetensors").exists()):
        return False
    read_result(folder)
    return True


def read_result(folder: Path) -> dict[str, Any]:
    """What a fit came to, from its folder."""
    path = folder / "result.json"
    problem = "keys are missing"
    try:
        result = read_json(path)
        if isinstance(result, dict) and {"metrics", "best", "steps", "seconds"} <= result.keys():
            return result
    except RunError as error:
        problem = str(error.__cause__)
    raise RunError(f"{path} is damaged ({problem}); remove {folder} to train that part again.")
