"""What a user can do wrong, each told in one sentence.

The command line prints the sentence and exits with code 2; a traceback is for bugs.
"""

import difflib
from collections.abc import Iterable
from itertools import zip_longest

__all__ = [
    "CheckpointError",
    "CongenerError",
    "DataError",
    "Interrupted",
    "NonFiniteLossError",
    "RecipeError",
    "RunError",
    "ShapeError",
    "StaleCache",
    "TapError",
    "VerificationError",
    "did_you_mean",
    "first_difference",
]


class CongenerError(Exception):
    """Base of every error that names what was expected, what came, and the way out."""


class ShapeError(CongenerError, ValueError):
    """Tensors whose shapes do not fit each other."""


class TapError(CongenerError, LookupError):
    """A tap that does not exist, never fired, or fired twice."""


class DataError(CongenerError, ValueError):
    """A data file that is missing or damaged, or data that cannot be learnt from."""


class CheckpointError(CongenerError, ValueError):
    """A checkpoint that is damaged or belongs to another network or run."""


class RecipeError(CongenerError, ValueError):
    """A recipe with an unknown key or name, or a value of the wrong type."""


class RunError(CongenerError, RuntimeError):
    """A run folder that cannot be used."""


class StaleCache(CongenerError, ValueError):  # noqa: N818  (what it is, not that it is an error)
    """Kept answers of a teacher that belong to another one, or to other data, than are at hand."""


class NonFiniteLossError(CongenerError, ArithmeticError):
    """A loss term that became NaN or infinite."""


class VerificationError(CongenerError, RuntimeError):
    """A loss that is not, on this machine, what its paper and its authors' code say."""


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop (Ctrl-C, SIGTERM) and did, after saving a checkpoint."""


def did_you_mean(name: str, options: Iterable[str], *, limit: int = 12) -> str:
    """Finish a sentence about the unknown ``name``: the nearest of ``options``, or all of them.

    >>> did_you_mean("spp", ["sp", "kd"])
    "did you mean 'sp'?"
    """
    known = sorted(set(options))
    near = [option for option in known if option.lower() == name.lower()]
    near = near or difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(option) for option in near) + "?"
    shown = ", ".join(repr(option) for option in known[:limit])
    if not known:
        return "none is known."
    return f"known: {shown}{f' and {len(known) - limit} more' if len(known) > limit else ''}."


def first_difference(one: str, other: str) -> tuple[str, str]:
    r"""The first line in which two texts differ, stripped, as each of them has it.

    >>> first_difference("lr: 1\nsteps: 2", "lr: 1\nsteps: 3")
    ('steps: 2', 'steps: 3')
    """
    pairs = zip_longest(one.splitlines(), other.splitlines(), fillvalue="the end")
    mine, theirs = next((a, b) for a, b in pairs if a != b)
    return mine.strip(), theirs.strip()
