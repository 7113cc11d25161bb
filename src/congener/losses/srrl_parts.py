"""The two parts of SRRL, one for the pooled feature and one for what a classifier reads in it."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from congener.errors import ShapeError
from congener.ops.checks import check_floating, check_logits, check_mask, check_same_channels
from congener.ops.collectives import Scope
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.ops.spatial import pooled

__all__ = ["srrl_feature_loss", "srrl_logit_loss"]


def srrl_feature_loss(
    student_feature: Float[Tensor, "batch channels *student_size"],
    teacher_feature: Float[Tensor, "batch channels *teacher_size"],
    *,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Squared error of the features' means over positions, averaged over channels.

    Arguments, returns and errors are those of :func:`congener.losses.srrl_loss`.

    >>> srrl_feature_loss(torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[3.0, 4.0, 5.0]]]))
    tensor(9.)
    """
    check_same_channels(student_feature, teacher_feature, mask)
    check_reduction(reduction, scope)
    with torch.autocast(student_feature.device.type, enabled=False):
        student, teacher = _pooled(student_feature, mask), _pooled(teacher_feature.detach(), mask)
        per_sample = (student - teacher).square().mean(dim=1)
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


def srrl_logit_loss(
    student_feature: Float[Tensor, "batch channels *student_size"],
    teacher_logits: Float[Tensor, "batch classes"],
    classifier_weight: Float[Tensor, "classes channels"],
    classifier_bias: Float[Tensor, " classes"] | None = None,
    *,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Squared error of the logits that the teacher's classifier gives for the student's feature.

    Arguments, returns and errors are those of :func:`congener.losses.srrl_loss`.

    >>> srrl_logit_loss(torch.tensor([[[0.0, 2.0]]]), torch.zeros(1, 1), torch.tensor([[3.0]]))
    tensor(9.)
    """
    check_floating(student_feature=student_feature, classifier_weight=classifier_weight)
    channels = tuple(student_feature.shape[1:2])
    classes = tuple(classifier_weight.shape[:1])
    bias = classes if classifier_bias is None else tuple(classifier_bias.shape)
    if tuple(classifier_weight.shape) != classes + channels or bias != classes or not channels:
        raise ShapeError(
            f"classifier_weight {tuple(classifier_weight.shape)} must be (classes, channels) for "
            f"student_feature {tuple(student_feature.shape)}, and classifier_bias {bias} "
            "(classes,); give the teacher's last layer, and project the student's channels."
        )
    check_mask(mask, student_feature, "student_feature")
    check_reduction(reduction, scope)
    with torch.autocast(student_feature.device.type, enabled=False):
        weight, pooled, teacher = upcast(
            classifier_weight.detach(), _pooled(student_feature, mask), teacher_logits.detach()
        )
        fixed = None if classifier_bias is None else classifier_bias.detach().to(weight.dtype)
        logits = F.linear(pooled, weight, fixed)
        check_logits(logits, teacher_logits)
        per_sample = (logits - blank_rows(teacher, mask)).square().mean(dim=1)
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


def _pooled(feature: Tensor, mask: Tensor | None) -> Tensor:
    (wide,) = upcast(blank_rows(feature, mask))
    return pooled(wide)
