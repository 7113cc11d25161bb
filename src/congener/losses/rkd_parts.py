"""The two relations of RKD (Park et al., CVPR 2019) alone: :func:`congener.losses.rkd_loss`.

Distances, of which first the mean is taken, and angles, by the law of cosines, are computed in
blocks; backward computes what is more than one block again.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.ops.checks import check_features
from congener.ops.collectives import Scope, batch_size, warn_if_alone
from congener.ops.huber import huber_of_angles, huber_of_distances
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, check_reduction, reduce_samples
from congener.ops.relations import gather_batch

__all__ = ["rkd_angle_loss", "rkd_distance_loss"]


def rkd_distance_loss(
    student_feature: Float[Tensor, "batch *student_axes"],
    teacher_feature: Float[Tensor, "batch *teacher_axes"],
    *,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Huber loss of all pairs' distances, each divided by its network's mean over the pairs.

    >>> student, teacher = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [3.0], [3.0]])
    >>> round(rkd_distance_loss(student, teacher).item(), 4)  # 3/4 3/4 3/2 against 3/2 0 3/2
    0.125
    """
    check_features(student_feature, teacher_feature, mask)
    check_reduction(reduction, scope)
    warn_if_alone(student_feature, "rkd", scope=scope)
    with torch.autocast(student_feature.device.type, enabled=False):
        student, teacher = upcast(student_feature.flatten(1), teacher_feature.detach().flatten(1))
        batch = gather_batch(student, teacher, mask, scope=scope)
        row_sums = huber_of_distances(batch, scope=scope)
        per_sample = row_sums / batch_size(student, mask, scope=scope)
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


def rkd_angle_loss(
    student_feature: Float[Tensor, "batch *student_axes"],
    teacher_feature: Float[Tensor, "batch *teacher_axes"],
    *,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Huber loss of the cosines of the angles between all triplets, at each vertex.

    >>> student, teacher = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [3.0], [3.0]])
    >>> round(rkd_angle_loss(student, teacher).item(), 4)  # 3 / 27
    0.1111
    """
    check_features(student_feature, teacher_feature, mask)
    check_reduction(reduction, scope)
    warn_if_alone(student_feature, "rkd", scope=scope)
    with torch.autocast(student_feature.device.type, enabled=False):
        student, teacher = upcast(student_feature.flatten(1), teacher_feature.detach().flatten(1))
        batch = gather_batch(student, teacher, mask, scope=scope)
        triplets = huber_of_angles(batch)
        per_sample = triplets / batch_size(student, mask, scope=scope).square()
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)
