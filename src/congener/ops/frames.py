"""Features over time: one row for each frame of an utterance, and which frames count."""

import torch
import torch.nn.functional as F
from torch import Tensor

from congener.errors import ShapeError
from congener.ops.checks import check_floating
from congener.ops.collectives import rank_sizes

__all__ = ["as_frames", "check_frames", "counted_frames", "match_frames", "mean_frames"]


def as_frames(feature: Tensor) -> Tensor:
    """Lay out a map (batch, channels, frames, frequencies) as (batch, frames, the rest).

    A feature (batch, frames, dims) comes back as it is.
    """
    return feature if feature.dim() == 3 else feature.transpose(1, 2).flatten(2)


def check_frames(student_feature: Tensor, teacher_feature: Tensor, mask: Tensor | None) -> None:
    """Features must be floating point and have frames; the mask must fit utterances or frames.

    Raises:
        ShapeError: the batch sizes differ, a feature has neither 3 nor 4 axes or no frame, or the
            mask is neither (batch,) nor (batch, frames) of one of the two.
        ValueError: a feature is not floating point, or the mask is not boolean.
    """
    check_floating(student_feature=student_feature, teacher_feature=teacher_feature)
    student, teacher = tuple(student_feature.shape), tuple(teacher_feature.shape)
    fits = {len(student), len(teacher)} <= {3, 4} and student[0] == teacher[0]
    if not fits or 0 in (student[-2], teacher[-2]):
        raise ShapeError(
            f"student_feature {student} and teacher_feature {teacher} must both be (batch, frames, "
            "dims) or (batch, channels, frames, frequencies), of one batch size, with a frame at "
            "least; put frames there."
        )
    if mask is None:
        return
    lengths = {shape[-2] for shape in (student, teacher)}
    shapes = [student[:1], *((student[0], length) for length in sorted(lengths))]
    if tuple(mask.shape) not in shapes:
        raise ShapeError(
            f"mask {tuple(mask.shape)} must be (batch,) or (batch, frames), one of "
            f"{', '.join(map(str, shapes))}, for student_feature {student}; give one entry for "
            "each utterance or for each frame."
        )
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean, not {mask.dtype}; call .bool().")


def counted_frames(feature: Tensor, mask: Tensor | None, *, rows: bool) -> Tensor:
    """What a loss that knows no frames is given of a feature whose frames do not all count.

    Args:
        feature: (batch, frames, dims).
        mask: which frames count, (batch, frames); ``None``: all.
        rows: for a loss that takes each sample by itself: every frame that counts is one, so that a
            mean over samples is over such frames. Otherwise, for a loss that relates the samples of
            a batch, the other frames are zero, which adds nothing to any product of two samples,
            and there are as many as in the process that has most.

    Returns:
        (frames that count, dims) with ``rows``, else (batch, frames, dims); without a mask, the
        feature.

    >>> mask = torch.tensor([[True, True, False], [True, False, False]])
    >>> counted_frames(torch.ones(2, 3, 1), mask, rows=True).shape
    torch.Size([3, 1])
    """
    if mask is None:
        return feature
    if rows:
        return feature[mask]
    frames = feature.shape[1]
    most = max(rank_sizes(feature.transpose(0, 1)) or [frames])
    return F.pad(feature.masked_fill(~mask.unsqueeze(2), 0), (0, 0, 0, most - frames))


def mean_frames(feature: Tensor, mask: Tensor) -> Tensor:
    """The mean of the frames that count.

    Args:
        feature: (batch, frames, dims).
        mask: which frames count, (batch, frames).

    Returns:
        (batch, dims), zero where no frame counts.
    """
    kept = mask.unsqueeze(2)
    return feature.masked_fill(~kept, 0).sum(dim=1) / kept.sum(dim=1).clamp(min=1)


def match_frames(
    student: Tensor, teacher: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Average the longer of two sequences to the length of the shorter, over frames that count.

    Args:
        student: (batch, frames, dims).
        teacher: (batch, frames, dims), of any number of frames and dims.
        mask: which utterances count, (batch,), or which frames of one of the two, (batch, frames).

    Returns:
        Both, of one number of frames, frames that do not count zero, and which frames do count,
        (batch, frames): those with one that counts among what they average.
    """
    length = min(student.shape[1], teacher.shape[1])
    if mask is None and student.shape[1] == teacher.shape[1]:
        return student, teacher, student.new_ones(student.shape[:2], dtype=torch.bool)
    if mask is None or mask.dim() == 1:
        kept = student.new_ones(student.shape[0], 1, dtype=torch.bool)
        mask = (kept if mask is None else mask.unsqueeze(1)).expand(-1, length)
    pooled = [_pool(x, _resize(mask, x.shape[1]), length) for x in (student, teacher)]
    kept = pooled[0][1] & pooled[1][1]
    return (
        pooled[0][0].masked_fill(~kept.unsqueeze(2), 0),
        pooled[1][0].masked_fill(~kept.unsqueeze(2), 0),
        kept,
    )


def _resize(mask: Tensor, length: int) -> Tensor:
    """Give each of ``length`` frames the entry at its middle, or whether any it averages counts."""
    if mask.shape[1] > length:
        return F.adaptive_avg_pool1d(mask.float().unsqueeze(1), length).squeeze(1) > 0
    places = torch.arange(length, device=mask.device) * 2 + 1
    return mask[:, (places * mask.shape[1]).div(2 * length, rounding_mode="floor")]


def _pool(x: Tensor, mask: Tensor, length: int) -> tuple[Tensor, Tensor]:
    kept = x.masked_fill(~mask.unsqueeze(2), 0)
    if x.shape[1] == length:
        return kept, mask
    share = F.adaptive_avg_pool1d(mask.to(x.dtype).unsqueeze(1), length).mT
    mean = F.adaptive_avg_pool1d(kept.mT, length).mT
    return mean / torch.where(share > 0, share, 1), share.squeeze(2) > 0
