"""Two maps of one shape, and the projector that makes them so."""

from torch import Tensor, nn

from congener.errors import ShapeError
from congener.ops.checks import check_floating, check_mask
from congener.ops.reduction import blank_rows

__all__ = ["align_channels", "check_map_pair", "project"]


def check_map_pair(
    student_feature: Tensor, teacher_feature: Tensor, mask: Tensor | None = None
) -> None:
    """Features must be floating-point maps of one shape; the mask must fit.

    Raises:
        ShapeError: the shapes differ, or have not four axes.
        ValueError: one of the two is not floating point, or the mask is not boolean.
    """
    check_floating(student_feature=student_feature, teacher_feature=teacher_feature)
    student, teacher = tuple(student_feature.shape), tuple(teacher_feature.shape)
    if student != teacher or len(student) != 4:
        raise ShapeError(
            f"student_feature {student} and teacher_feature {teacher} must have one shape, (batch, "
            "channels, height, width); project the student's channels and resize its map."
        )
    check_mask(mask, student_feature, "student_feature")


def align_channels(student_channels: int, teacher_channels: int) -> nn.Module:
    """A 1×1 convolution to the teacher's channels, or nothing where they are the student's."""
    if student_channels == teacher_channels:
        return nn.Identity()
    return nn.Conv2d(student_channels, teacher_channels, kernel_size=1)


def project(
    projector: nn.Module, feature: Tensor, mask: Tensor | None = None, *, channels: int
) -> Tensor:
    """Run a projector in the type of its weights, or under autocast as the networks do.

    Args:
        projector: any module without statistics of the batch.
        feature: (batch, channels, height, width).
        mask: which samples count, (batch,); the others reach the projector as zeros.
        channels: for how many the projector was built.

    Raises:
        ShapeError: the feature has other channels, or the mask does not fit.
        ValueError: the feature is not floating point, or the mask is not boolean.
    """
    check_floating(student_feature=feature)
    if feature.dim() != 4 or feature.shape[1] != channels:
        raise ShapeError(
            f"student_feature {tuple(feature.shape)} must be (batch, {channels}, height, width); "
            "build the module for the channels of the student's map."
        )
    check_mask(mask, feature, "student_feature")
    feature = blank_rows(feature, mask)
    weight = next(projector.parameters(), feature)
    projected: Tensor = projector(feature.to(weight.dtype))
    return projected
