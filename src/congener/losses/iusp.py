r"""Intra-utterance similarity preserving (Chang, Kao, Sun and Wang, Interspeech 2020).

Acoustic events come back in time, so which frames of an utterance are alike tells what a teacher
hears in it. The student keeps, within each utterance, which frames are alike: SP over time.

.. math::
    L = \frac{1}{B} \sum_{b=1}^{B} \frac{1}{T_b^2} \, \| G^t_b - G^s_b \|_F^2, \quad
    G_{b,[i,:]} = \tilde G_{b,[i,:]} / \| \tilde G_{b,[i,:]} \|_2, \quad
    \tilde G_b = Q_b Q_b^\top

=================  ========================================  ====================================
symbol             argument                                  default
=================  ========================================  ====================================
:math:`Q^s, Q^t`   ``student_feature``, ``teacher_feature``  (batch, frames, dims), of any dims
:math:`T_b`        ``mask``                                  all frames
:math:`1 / T_b^2`  ``average``                               ``"pairs"``; ``"frames"``: 1 / T_b
=================  ========================================  ====================================

Conventions
    A map is (batch, channels, frames, frequencies); its frames are read as channels · frequencies
    numbers. Where the numbers of frames differ, the longer sequence is averaged to the shorter
    before the product. L, a mean over pairs of frames, is of order 1/T: at most 4/T_b, so that its
    weight is worth quoting only with T. ``average="frames"`` is the mean over frames, at most 4 for
    any T: one weight for utterances of every length. G is never held for long utterances
    (:mod:`congener.ops.gram`). The own row of a frame of zeros, which has no direction, has no
    gradient. The task loss is not included.

Differences from the authors' code
    None is published. The equation is SP's with frames for samples, which the abstract describes;
    the averaging of unlike lengths and the frames' mask are ours.
"""

from typing import ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.ops.checks import check_choice
from congener.ops.collectives import Scope
from congener.ops.frames import as_frames, check_frames, match_frames
from congener.ops.gram import gram_distances
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, check_reduction, reduce_samples
from congener.types import Paper

__all__ = ["IUSPLoss", "iusp_loss"]

Average = Literal["pairs", "frames"]


def iusp_loss(
    student_feature: Float[Tensor, "batch *student_axes"],
    teacher_feature: Float[Tensor, "batch *teacher_axes"],
    *,
    average: Average = "pairs",
    mask: Bool[Tensor, " batch"] | Bool[Tensor, "batch frames"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Squared distance of each utterance's two matrices of frame similarities.

    Args:
        student_feature: (batch, frames, dims) or (batch, channels, frames, frequencies).
        teacher_feature: likewise, of any frames and dims; no gradient flows into it.
        average: ``"pairs"``: over the pairs of an utterance's frames; ``"frames"``: over its
            frames, in units that do not depend on their number.
        mask: which utterances count, (batch,), or which frames of the student or of the teacher,
            (batch, frames); the others are as if absent.
        reduction: ``"mean"`` over utterances, ``"none"``: each one's distance, or their ``"sum"``.
        scope: ``"global"``: the utterances of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the batch sizes differ, or a feature or the mask has the wrong axes.
        ValueError: integer features, an unknown average, reduction or scope.

    >>> student, teacher = torch.tensor([[[1.0], [1.0]]]), torch.eye(2).unsqueeze(0)
    >>> round(iusp_loss(student, teacher).item(), 4)  # (2 - sqrt(2)) / 2
    0.2929
    """
    check_frames(student_feature, teacher_feature, mask)
    check_choice("average", average, ("pairs", "frames"))
    check_reduction(reduction, scope)
    with torch.autocast(student_feature.device.type, enabled=False):
        student, teacher = upcast(as_frames(student_feature), as_frames(teacher_feature.detach()))
        student, teacher, kept = match_frames(student, teacher, mask)
        distances = gram_distances(student, teacher, normalize_rows=True).sum(dim=1)
        frames = kept.sum(dim=1, dtype=distances.dtype)  # T_b
        per_utterance = distances / frames.clamp(min=1) ** (2 if average == "pairs" else 1)
        counted = None if mask is None else frames > 0
        return reduce_samples(per_utterance, counted, reduction=reduction, scope=scope)


@final
class IUSPLoss(Loss):
    """Which frames of an utterance are alike; see :func:`iusp_loss`."""

    name = "iusp"
    paper = Paper(
        title="Intra-Utterance Similarity Preserving Knowledge Distillation for Audio Tagging",
        authors="Chun-Chieh Chang, Chieh-Chi Kao, Ming Sun, Chao Wang",
        venue="Interspeech",
        year=2020,
        url="https://arxiv.org/abs/2009.01759",
    )
    equation = "L = mean_b ‖Gᵗ_b − Gˢ_b‖²_F / T_b²,  G_b = rows of Q_b·Q_bᵀ over frames, normalised"
    family = "relation"
    masks_frames = True
    sources: ClassVar = {
        "average": "ours: as SP's mean over pairs of samples; the paper's own was not at hand",
        "reduction": "ours: the mean over utterances; the paper's own was not at hand",
        "scope": "ours: the mean is over the utterances of all processes",
    }

    def __init__(
        self,
        *,
        average: Average = "pairs",
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_choice("average", average, ("pairs", "frames"))
        check_reduction(reduction, scope)
        self.average = average
        self.reduction, self.scope = reduction, scope

    def forward(
        self,
        student_feature: Float[Tensor, "batch *student_axes"],
        teacher_feature: Float[Tensor, "batch *teacher_axes"],
        mask: Bool[Tensor, " batch"] | Bool[Tensor, "batch frames"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`iusp_loss` with the stored hyper-parameters."""
        return iusp_loss(student_feature, teacher_feature, mask=mask, **self.options)
