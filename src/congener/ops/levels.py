"""Features of several levels of a network."""

from collections.abc import Sequence

from torch import Tensor

from congener.errors import ShapeError
from congener.ops.checks import check_features, check_same_shape

__all__ = ["check_level_channels", "check_levels"]


def check_levels(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    mask: Tensor | None = None,
    *,
    same_shape: bool = True,
    count: int | None = None,
) -> None:
    """Two lists must have one feature for each level, each pair fit; the mask must fit all.

    Args:
        student_features: the student's features, shallow to deep.
        teacher_features: the teacher's features.
        mask: which samples count, (batch,).
        same_shape: whether the two features of a level must have one shape.
        count: for how many levels the module was built, if it was.

    Raises:
        ShapeError: the lists differ in length or are empty, a pair does not fit, or the batch sizes
            of the levels differ.
        ValueError: a feature is not floating point, or the mask is not boolean.
    """
    mine, theirs = len(student_features), len(teacher_features)
    if not (mine == theirs > 0 and count in (None, mine)):
        raise ShapeError(
            f"student_features of {mine} levels and teacher_features of {theirs} must have as many "
            f"levels, {count or 'at least one'}; tap one of the teacher's for each of them."
        )
    first = student_features[0]
    pairs = zip(student_features, teacher_features, strict=True)
    for level, (student, teacher) in enumerate(pairs):
        check_features(student, teacher, mask)
        if student.shape[0] != first.shape[0]:
            raise ShapeError(
                f"student_features {tuple(first.shape)} at level 0 and {tuple(student.shape)} at "
                f"level {level} must have one batch size; take all levels from one batch."
            )
        if same_shape:
            way_out = f"at level {level}, project the channels and resize a map"
            check_same_shape(student, teacher, mask, way_out=way_out)


def check_level_channels(student_channels: Sequence[int], teacher_channels: Sequence[int]) -> None:
    """Two lists must name the channels of as many levels, at least one.

    Raises:
        ValueError: they do not.
    """
    if not len(student_channels) == len(teacher_channels) > 0:
        raise ValueError(
            f"student_channels {list(student_channels)} and teacher_channels "
            f"{list(teacher_channels)} must have as many levels, at least one."
        )
