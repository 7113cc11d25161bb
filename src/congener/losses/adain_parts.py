"""The parts of AdaIN-KD: a map's channel statistics, and how a map is given another's."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.errors import ShapeError
from congener.ops.checks import (
    check_features,
    check_floating,
    check_mask,
    check_positive,
    check_same_channels,
)
from congener.ops.precision import upcast
from congener.ops.reduction import blank_rows
from congener.ops.spatial import positions

__all__ = ["adain", "channel_statistics", "check_restyled_logits"]


def channel_statistics(
    feature: Float[Tensor, "batch channels *size"], *, eps: float = 1e-5, unbiased: bool = True
) -> tuple[Float[Tensor, "batch channels"], Float[Tensor, "batch channels"]]:
    """The mean of each channel over its positions, and the root of its variance plus ``eps``.

    >>> channel_statistics(torch.tensor([[[1.0, 3.0]]]), eps=2.0)
    (tensor([[2.]]), tensor([[2.]]))
    """
    check_features(feature, feature)
    check_positive("eps", eps)
    (rows,) = upcast(positions(feature))
    mean = rows.mean(dim=2)
    freedom = max(rows.shape[2] - int(unbiased), 1)
    variance = (rows - mean.unsqueeze(2)).square().sum(dim=2) / freedom
    return mean, (variance + eps).sqrt()


def adain(
    student_feature: Float[Tensor, "batch channels *student_size"],
    teacher_feature: Float[Tensor, "batch channels *teacher_size"],
    *,
    eps: float = 1e-5,
    unbiased: bool = True,
    mask: Bool[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch channels *teacher_size"]:
    """The teacher's map with the student's channel statistics, for the rest of the teacher.

    Gradient flows to the student's statistics alone. A channel that is constant in the teacher
    becomes the student's mean; a masked sample's map becomes zero, whatever it holds.

    >>> adain(torch.tensor([[[0.0, 4.0]]]), torch.tensor([[[1.0, 2.0, 3.0]]]), eps=1e-12)
    tensor([[[-0.8284,  2.0000,  4.8284]]])
    """
    check_same_channels(student_feature, teacher_feature, mask)
    with torch.autocast(student_feature.device.type, enabled=False):
        student, teacher = upcast(student_feature, teacher_feature.detach())
        student, teacher = blank_rows(student, mask), blank_rows(teacher, mask)
        mean, deviation = channel_statistics(student, eps=eps, unbiased=unbiased)
        teacher_mean, teacher_deviation = channel_statistics(teacher, eps=eps, unbiased=unbiased)
        scale = (deviation / teacher_deviation).unsqueeze(2)
        restyled = (positions(teacher) - teacher_mean.unsqueeze(2)) * scale + mean.unsqueeze(2)
        return restyled.reshape(teacher.shape)


def check_restyled_logits(
    restyled_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None
) -> None:
    """Logits must be floating point, of one shape (batch, classes); the mask must fit.

    Raises:
        ShapeError: the shapes differ or are of another kind.
        ValueError: one of the two is not floating point, or the mask is not boolean.
    """
    check_floating(restyled_logits=restyled_logits, teacher_logits=teacher_logits)
    if restyled_logits.dim() != 2 or restyled_logits.shape != teacher_logits.shape:
        raise ShapeError(
            f"restyled_logits {tuple(restyled_logits.shape)} and teacher_logits "
            f"{tuple(teacher_logits.shape)} must have one shape, (batch, classes); take both from "
            "the teacher's last layer."
        )
    check_mask(mask, restyled_logits, "restyled_logits")
