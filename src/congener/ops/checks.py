"""What every loss asks of its arguments, each refusal in one sentence."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from congener.errors import ShapeError

__all__ = [
    "UNLABELLED",
    "check_below",
    "check_channels",
    "check_choice",
    "check_classes",
    "check_features",
    "check_floating",
    "check_labels",
    "check_logits",
    "check_maps",
    "check_mask",
    "check_positive",
    "check_same_channels",
    "check_same_shape",
    "check_temperature",
    "check_temperature_range",
]

UNLABELLED = "mark samples without a label by a negative number"
"""The way out for a label that is no class."""


def check_floating(**tensors: Tensor) -> None:
    """Every tensor must be real floating point.

    Raises:
        ValueError: one is not, with its name and its type.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, not {tensor.dtype}; call .float().")


def check_logits(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor | None = None,
    *,
    dense: bool = False,
) -> None:
    """Logits must be floating point, of one shape (batch, classes); the mask must fit.

    Args:
        student_logits: the student's logits.
        teacher_logits: the teacher's logits.
        mask: which samples count, (batch,).
        dense: also allow (batch, classes, height, width).

    Raises:
        ShapeError: the shapes differ or are of another kind.
        ValueError: one of the two is not floating point, or the mask is not boolean.
    """
    check_floating(student_logits=student_logits, teacher_logits=teacher_logits)
    student, teacher = tuple(student_logits.shape), tuple(teacher_logits.shape)
    if student != teacher or len(student) not in ((2, 4) if dense else (2,)):
        kind = "(batch, classes)" + (" or (batch, classes, height, width)" if dense else "")
        way_out = "give both networks the same batch and the same classes"
        way_out = way_out if student != teacher else "lay other axes, such as tokens, out as rows"
        raise ShapeError(
            f"student_logits {student} and teacher_logits {teacher} must have one shape, {kind}; "
            f"{way_out}."
        )
    check_mask(mask, student_logits, "student_logits")


def check_features(
    student_feature: Tensor, teacher_feature: Tensor, mask: Tensor | None = None
) -> None:
    """Features must be floating point, (batch, ...) with 2 to 5 axes; the mask must fit.

    Raises:
        ShapeError: the batch sizes differ, or a feature has too few or too many axes.
        ValueError: one of the two is not floating point, or the mask is not boolean.
    """
    check_floating(student_feature=student_feature, teacher_feature=teacher_feature)
    student, teacher = tuple(student_feature.shape), tuple(teacher_feature.shape)
    if not (2 <= len(student) <= 5 and 2 <= len(teacher) <= 5 and student[0] == teacher[0]):
        raise ShapeError(
            f"student_feature {student} and teacher_feature {teacher} must both be (batch, ...) "
            "with 2 to 5 axes and the same batch size; feed both networks the same batch."
        )
    check_mask(mask, student_feature, "student_feature")


def check_labels(labels: Tensor, like: Tensor, name: str) -> None:
    """Labels must be integers, one for each row of ``like``.

    Raises:
        ShapeError: the labels are not (batch,).
        ValueError: the labels are not integers.
    """
    if tuple(labels.shape) != tuple(like.shape[:1]):
        raise ShapeError(
            f"labels {tuple(labels.shape)} must be (batch,) = {tuple(like.shape[:1])} for {name} "
            f"{tuple(like.shape)}; give one class number for each sample."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers, not {labels.dtype}; call .long().")


def check_same_shape(
    student_feature: Tensor, teacher_feature: Tensor, mask: Tensor | None = None, *, way_out: str
) -> None:
    """Features must be floating point and of one shape, (batch, ...); the mask must fit.

    Args:
        student_feature: the student's feature.
        teacher_feature: the teacher's feature.
        mask: which samples count, (batch,).
        way_out: what to do where the shapes differ.

    Raises:
        ShapeError: the shapes differ, or have too few or too many axes.
        ValueError: one of the two is not floating point, or the mask is not boolean.
    """
    check_features(student_feature, teacher_feature, mask)
    if student_feature.shape != teacher_feature.shape:
        raise ShapeError(
            f"student_feature {tuple(student_feature.shape)} and teacher_feature "
            f"{tuple(teacher_feature.shape)} must have one shape; {way_out}."
        )


def check_same_channels(
    student_feature: Tensor, teacher_feature: Tensor, mask: Tensor | None = None
) -> None:
    """Features must be (batch, channels, ...) with the same channels, of any size; as must masks.

    Raises:
        ShapeError: batch sizes or channels differ, or a feature or the mask has the wrong axes.
        ValueError: one of the two is not floating point, or the mask is not boolean.
    """
    check_features(student_feature, teacher_feature, mask)
    if student_feature.shape[1] != teacher_feature.shape[1]:
        raise ShapeError(
            f"student_feature {tuple(student_feature.shape)} and teacher_feature "
            f"{tuple(teacher_feature.shape)} must have as many channels, of any size; project the "
            "student's channels to the teacher's."
        )


def check_maps(
    student_feature: Tensor,
    teacher_feature: Tensor,
    mask: Tensor | None = None,
    *,
    same_shape: bool = False,
) -> None:
    """Features must be floating-point maps, (batch, channels, height, width); the mask must fit.

    Args:
        student_feature: the student's map.
        teacher_feature: the teacher's map.
        mask: which samples count, (batch,).
        same_shape: whether the two must have one shape.

    Raises:
        ShapeError: batch sizes differ, a feature has not four axes, or the shapes differ.
        ValueError: one of the two is not floating point, or the mask is not boolean.
    """
    check_features(student_feature, teacher_feature, mask)
    if student_feature.dim() != 4 or teacher_feature.dim() != 4:
        raise ShapeError(
            f"student_feature {tuple(student_feature.shape)} and teacher_feature "
            f"{tuple(teacher_feature.shape)} must be maps, (batch, channels, height, width); "
            "reshape tokens to a map."
        )
    if same_shape:
        way_out = "project the student's channels and resize its map"
        check_same_shape(student_feature, teacher_feature, mask, way_out=way_out)


def check_channels(
    name: str, feature: Tensor, channels: int, mask: Tensor | None = None, *, is_map: bool = False
) -> None:
    """A feature must have as many channels as the module was built for; the mask must fit.

    Args:
        name: of the feature.
        feature: (batch, channels, ...).
        channels: for how many the module was built.
        mask: which samples count, (batch,).
        is_map: whether the feature must be (batch, channels, height, width).

    Raises:
        ShapeError: it has other channels or axes, or the mask does not fit.
        ValueError: it is not floating point, or the mask is not boolean.
    """
    check_floating(**{name: feature})
    if feature.dim() < 2 or feature.shape[1] != channels or (is_map and feature.dim() != 4):
        axes = "height, width" if is_map else "..."
        raise ShapeError(
            f"{name} {tuple(feature.shape)} must be (batch, {channels}, {axes}); build the module "
            "for the channels of the feature."
        )
    check_mask(mask, feature, name)


def check_classes(labels: Tensor, logits: Tensor, mask: Tensor | None = None) -> None:
    """Labels must be integers, one for each sample: a class of ``logits`` (batch, classes).

    A negative one marks a sample without a label.

    Raises:
        ShapeError: the labels are not (batch,).
        ValueError: they are not integers, or one that counts is no class.
    """
    check_labels(labels, logits, "student_logits")
    check_below("labels", labels, logits.shape[1], mask, way_out=UNLABELLED)


def check_below(
    name: str, numbers: Tensor, size: int, mask: Tensor | None = None, *, way_out: str
) -> None:
    """Numbers of classes or samples must be below their size, one number for each sample.

    They are looked at on the CPU only, and not while compiling: elsewhere it would wait for the
    device, which refuses such numbers itself.

    Raises:
        ValueError: one that counts is not.
    """
    if torch.compiler.is_compiling() or numbers.device.type != "cpu":
        return
    wrong = numbers >= size
    wrong = wrong if mask is None else wrong & mask
    if wrong.any():
        raise ValueError(
            f"{name} must lie in 0…{size - 1}, not {numbers[wrong][0].item()}; {way_out}."
        )


def check_mask(mask: Tensor | None, like: Tensor, name: str) -> None:
    """A mask must be boolean, one entry for each row of ``like``.

    Raises:
        ShapeError: the mask is not (batch,).
        ValueError: the mask is not boolean.
    """
    if mask is None:
        return
    if tuple(mask.shape) != tuple(like.shape[:1]):
        raise ShapeError(
            f"mask {tuple(mask.shape)} must be (batch,) = {tuple(like.shape[:1])} for {name} "
            f"{tuple(like.shape)}; give one entry for each sample."
        )
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean, not {mask.dtype}; call .bool().")


def check_temperature(
    temperature: float | Tensor, logits: Tensor | None = None, *, name: str = "temperature"
) -> None:
    """A temperature is a positive number or, beside ``logits``, a tensor with one for each sample.

    The numbers within a tensor are not looked at: that would wait for the device.

    Raises:
        ShapeError: a tensor that is not (batch,).
        ValueError: a number that is not positive and finite, or a tensor of integers.
    """
    if isinstance(temperature, Tensor) and logits is not None:
        check_floating(temperature=temperature)
        if temperature.shape != logits.shape[:1]:
            raise ShapeError(
                f"temperature {tuple(temperature.shape)} must be a number or (batch,) = "
                f"{tuple(logits.shape[:1])} for student_logits {tuple(logits.shape)}; give one "
                "for each sample."
            )
    else:
        check_positive(name, temperature)


def check_temperature_range(low_temperature: float, high_temperature: float) -> None:
    """Both temperatures must be positive, the low one not above the high one.

    Raises:
        ValueError: they are not.
    """
    check_temperature(low_temperature, name="low_temperature")
    check_temperature(high_temperature, name="high_temperature")
    if low_temperature > high_temperature:
        raise ValueError(
            f"low_temperature {low_temperature} must not exceed high_temperature "
            f"{high_temperature}."
        )


def check_positive(name: str, value: float | Tensor) -> None:
    """A number must be positive and finite.

    Raises:
        ValueError: it is not.
    """
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, not {value}.")


def check_choice(name: str, value: object, options: Sequence[str]) -> None:
    """An option must be one of the known words.

    Raises:
        ValueError: it is not, with the words that are known.
    """
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, not {value!r}.")
