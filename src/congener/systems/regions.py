"""Terms that look at regions of an image instead of the image: objects, or proposals.

A region is then what a sample is to the loss: SP, CCKD or RKD relate the objects of the batch, KD,
DIST or CKD learn the classes of the student's proposals. What a region is, the task tells.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from congener.errors import RecipeError
from congener.ops.collectives import lone_sample_expected
from congener.task import Task
from congener.types import Term

__all__ = ["check_activation", "few_regions", "words_of_regions"]

WORDS = {
    "objects": {"student_feature", "teacher_feature", "student_features", "teacher_features"},
    "proposals": {"student_logits", "teacher_logits"},
}
"""Which words of a loss have an answer there."""


def words_of_regions(term: Term, name: str, task: Task) -> set[str]:
    """Which words of its loss a term that looks at regions answers.

    Raises:
        RecipeError: an unknown kind of region, or one that the task does not have.
    """
    at = str(term.at)
    if at not in WORDS:
        raise RecipeError(
            f"The term {name!r} looks at {at!r}; expected {' or '.join(map(repr, WORDS))}."
        )
    if getattr(type(task), f"at_{at}") is getattr(Task, f"at_{at}"):
        raise RecipeError(
            f"The term {name!r} looks at {at}, and the task {type(task).__name__} has none; take "
            "the task 'detection', or leave `at` out."
        )
    return WORDS[at]


def check_activation(term: Term, name: str, task: Task) -> None:
    """A loss of a detector's rows must know whether their first class is the background's.

    Raises:
        RecipeError: it takes them otherwise than the task means them.
    """
    given = getattr(term.loss, "activation", None)
    fits = "softmax" if task.background else "sigmoid"
    if task.background is not None and given in ("sigmoid", "softmax") and given != fits:
        first = "the background's" if task.background else "a class like the others"
        raise RecipeError(
            f"The loss of the term {name!r} has activation={given!r}, but the first class of this "
            f"detector's rows is {first}; write `activation: {fits}`."
        )


def few_regions(term: Term, rows: Sequence[Tensor]) -> AbstractContextManager[None]:
    """Within it, one object in a batch is no reason to warn: their number is the images'.

    Args:
        term: which may look at objects.
        rows: what its loss compares.
    """
    alone = term.at == "objects" and any(len(each) == 1 for each in rows)
    return lone_sample_expected() if alone else nullcontext()
