r"""Cross-entropy of mixed samples with the mixture of their labels.

A virtual sample is a share λ of one sample and 1 − λ of another; so is its label. STKD and MixKD
both teach such labels, as the task loss of virtual samples.

.. math::
    L = \frac{1}{B} \sum_{i=1}^{B} \big( \lambda_i \, \mathrm{CE}(z^s_i, y_i)
        + (1 - \lambda_i) \, \mathrm{CE}(z^s_i, y'_i) \big)

which equals the cross-entropy with the mixed label, as cross-entropy is linear in the label.

A negative label marks an unlabelled sample. Cross-entropies are means over the labelled ones; what
else a loss consists of, the teacher's part, takes all.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from congener.errors import ShapeError
from congener.ops.checks import check_classes, check_floating, check_mask
from congener.ops.collectives import Scope, batch_size
from congener.ops.precision import upcast
from congener.ops.reduction import (
    Reduction,
    blank_rows,
    check_reduction,
    labelled,
    reduce_samples,
)

__all__ = ["Share", "label_cross_entropy_rows", "mixed_cross_entropy_loss", "mixed_label_rows"]

Share = float | Float[Tensor, ""] | Float[Tensor, " batch"]
"""λ, how much of a virtual sample is its first one: one for the batch, or one for each sample."""


def mixed_cross_entropy_loss(
    student_logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    other_labels: Int[Tensor, " batch"],
    share: Share,
    *,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Cross-entropy of the logits of virtual samples with their mixed labels.

    Args:
        student_logits: (batch, classes), of the virtual samples.
        labels: (batch,), of the first sample of each.
        other_labels: (batch,), of the second. Where one of both is negative, the virtual sample is
            as if absent.
        share: λ, how much of each virtual sample is its first one, between 0 and 1; one number, or
            one for each sample, (batch,). A constant.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the logits, labels, share or mask do not fit.
        ValueError: integer logits, labels that are no class, a share outside 0…1.

    >>> logits, labels = torch.tensor([[4.0, 0.0]]), torch.tensor([0])
    >>> round(mixed_cross_entropy_loss(logits, labels, 1 - labels, 0.75).item(), 4)
    1.0181
    """
    check_floating(student_logits=student_logits)
    if student_logits.dim() != 2:
        raise ShapeError(f"student_logits {tuple(student_logits.shape)} must be (batch, classes).")
    check_mask(mask, student_logits, "student_logits")
    check_reduction(reduction, scope)
    for each in (labels, other_labels):
        check_classes(each, student_logits, mask)
    mask = labelled(other_labels, labelled(labels, mask))
    with torch.autocast(student_logits.device.type, enabled=False):
        both = (labels, other_labels)
        per_sample = mixed_label_rows(student_logits, *both, share, mask, scope=scope)
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


def mixed_label_rows(
    student_logits: Tensor,
    labels: Tensor,
    other_labels: Tensor,
    share: Share,
    mask: Tensor | None,
    *,
    scope: Scope,
) -> Tensor:
    """As :func:`label_cross_entropy_rows`; arguments as of :func:`mixed_cross_entropy_loss`."""
    check_share(share, student_logits)
    own = _cross_entropy(student_logits, labels, mask)
    other = _cross_entropy(student_logits, other_labels, mask)
    if isinstance(share, Tensor):
        share = share.detach().to(own.dtype)
    known = labelled(other_labels, labelled(labels, mask))
    return _over_known(share * own + (1 - share) * other, known, mask, scope)


def label_cross_entropy_rows(
    logits: Tensor, labels: Tensor, mask: Tensor | None, *, scope: Scope
) -> Tensor:
    """Contributions whose mean over unmasked samples is the labelled ones' mean cross-entropy."""
    rows = _cross_entropy(logits, labels, mask)
    return _over_known(rows, labelled(labels, mask), mask, scope)


def _cross_entropy(logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
    check_classes(labels, logits, mask)
    known = labelled(labels, mask)
    (wide,) = upcast(blank_rows(logits, known))
    own = blank_rows(labels, known).long().unsqueeze(1)
    return -torch.log_softmax(wide, dim=1).gather(1, own).squeeze(1)


def _over_known(rows: Tensor, known: Tensor, mask: Tensor | None, scope: Scope) -> Tensor:
    """Spread a mean over the known rows over all unmasked ones."""
    every, kept = batch_size(rows, mask, scope=scope), batch_size(rows, known, scope=scope)
    return blank_rows(rows, known) * (every / kept)


def check_share(share: Share, logits: Tensor) -> None:
    """A share must be a number between 0 and 1, or a tensor with one or one for each sample.

    The numbers within a tensor are not looked at: that would wait for the device.

    Raises:
        ShapeError: a tensor of another shape.
        ValueError: a number outside 0…1, or a tensor of integers.
    """
    if not isinstance(share, Tensor):
        if not 0 <= share <= 1:
            raise ValueError(f"share must lie between 0 and 1, not {share}.")
        return
    check_floating(share=share)
    if tuple(share.shape) not in ((), tuple(logits.shape[:1])):
        raise ShapeError(
            f"share {tuple(share.shape)} must be one number or (batch,) = "
            f"{tuple(logits.shape[:1])} for student_logits {tuple(logits.shape)}."
        )
