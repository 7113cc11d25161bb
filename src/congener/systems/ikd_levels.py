"""Which levels of two pyramids belong together."""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from congener.errors import RecipeError, ShapeError
from congener.systems.probe import probe
from congener.taps import bare
from congener.task import Task

__all__ = ["paired_levels"]

LEVEL = r"(.*\.)?fpn\.(layer_blocks\.\d+|extra_blocks\.p\d+)"
"""How torchvision calls the modules that give the levels of a pyramid."""


def paired_levels(
    student: nn.Module,
    teacher: nn.Module,
    student_levels: Sequence[str] | None,
    teacher_levels: Sequence[str] | None,
    task: Task,
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """The student's levels and the teacher's, one for each: their maps of a sample, by tap.

    Args:
        student: a detector.
        teacher: likewise.
        student_levels: taps; default: all levels of its pyramid.
        teacher_levels: likewise.
        task: on a sample of which the maps are measured.

    Raises:
        RecipeError: a network without a pyramid, whose levels are not named either.
        ShapeError: another number of levels, or maps of other sizes; both tables are shown.
    """
    sides = ("student", student, student_levels), ("teacher", teacher, teacher_levels)
    maps = [probe(side[1], task, _levels(*side)).features for side in sides]
    for side, seen in zip(("student", "teacher"), maps, strict=True):
        for path, value in seen.items():
            if value.dim() != 4:
                raise ShapeError(
                    f"The {side}'s level {path!r} gives {tuple(value.shape)}, which is no map "
                    "(batch, channels, height, width); tap a level of the pyramid."
                )
    sizes = [[tuple(value.shape[2:]) for value in seen.values()] for seen in maps]
    if sizes[0] != sizes[1]:
        tables = [", ".join(f"{p} {_size(v)}" for p, v in seen.items()) for seen in maps]
        raise ShapeError(
            f"The levels of the two pyramids differ: the student's are {tables[0]}; the teacher's "
            f"are {tables[1]}. {_nearest(*maps)}"
        )
    return maps[0], maps[1]


def _levels(side: str, network: nn.Module, given: Sequence[str] | None) -> list[str]:
    if given is not None:
        return list(given)
    found = [path for path, _ in bare(network).named_modules() if re.fullmatch(LEVEL, path)]
    if not found:
        raise RecipeError(
            f"The {side} has no feature pyramid whose levels could be found; name the taps of its "
            f"maps as `{side}_levels`."
        )
    return found


def _size(value: Tensor) -> str:
    return f"{value.shape[2]}x{value.shape[3]}"


def _nearest(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> str:
    """The levels of one size, in words."""
    pairs = [
        (mine, theirs)
        for mine, a in student.items()
        for theirs, b in teacher.items()
        if a.shape[2:] == b.shape[2:]
    ]
    if not pairs:
        return "None are of one size; give both networks pyramids of the same strides."
    mine, theirs = (list(side) for side in zip(*pairs, strict=True))
    return f"Of one size are student_levels: {mine}, teacher_levels: {theirs}; name these."
