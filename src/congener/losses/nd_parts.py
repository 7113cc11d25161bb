"""The teacher's class means, to which ND turns the student's features (Wang et al., ECCV 2024).

The authors take them over the training set once, in evaluation mode, and round to four decimals.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from congener.errors import ShapeError
from congener.ops.checks import UNLABELLED, check_below, check_floating, check_labels
from congener.ops.collectives import Scope, all_sum, check_scope

__all__ = ["class_means", "class_sums", "means_of_sums"]


def class_means(
    features: Float[Tensor, "samples channels"],
    labels: Int[Tensor, " samples"],
    classes: int,
    *,
    scope: Scope = "global",
) -> Float[Tensor, "classes channels"]:
    """Average the features of each class, over all processes.

    Args:
        features: (samples, channels), the teacher's, of this process' share of the training set.
        labels: (samples,); samples with a negative label do not count.
        classes: how many classes there are.
        scope: ``"local"`` averages over this process alone.

    Returns:
        Constants in the features' type, at least float32, the same on every rank. Sums are float64.

    Raises:
        ShapeError: the features are not (samples, channels), or the labels do not fit.
        ValueError: a class without a sample, a label that is no class, a wrong type.

    >>> class_means(torch.tensor([[1.0], [3.0], [9.0]]), torch.tensor([0, 0, 1]), 2)
    tensor([[2.],
            [9.]])
    """
    return means_of_sums(class_sums(features, labels, classes), scope=scope).to(
        torch.promote_types(features.dtype, torch.float32)
    )


def class_sums(
    features: Float[Tensor, "samples channels"], labels: Int[Tensor, " samples"], classes: int
) -> Float[Tensor, "classes channels_and_count"]:
    """Sum the features of each class, and count them in a last column; such sums add up.

    Arguments and errors are those of :func:`class_means`; the result is float64.
    """
    check_floating(features=features)
    if features.dim() != 2:
        raise ShapeError(
            f"features {tuple(features.shape)} must be (samples, channels); pool maps."
        )
    check_labels(labels, features, "features")
    check_below("labels", labels, classes, way_out=UNLABELLED)
    known = labels >= 0
    rows, places = features.detach()[known].double(), labels[known].long()
    sums = rows.new_zeros(classes, features.shape[1] + 1)
    return sums.index_add_(0, places, torch.cat((rows, torch.ones_like(rows[:, :1])), dim=1))


def means_of_sums(
    sums: Float[Tensor, "classes channels_and_count"], *, scope: Scope = "global"
) -> Float[Tensor, "classes channels"]:
    """What :func:`class_sums` gave in all processes, divided by the counts.

    Raises:
        ValueError: a class without a sample.
    """
    check_scope(scope)
    sums = all_sum(sums, scope=scope)
    if (sums[:, -1] == 0).any():
        empty = (sums[:, -1] == 0).nonzero().flatten().tolist()
        raise ValueError(
            f"classes {empty} have no sample, so no mean; give samples of every class."
        )
    return sums[:, :-1] / sums[:, -1:]
