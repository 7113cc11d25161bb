"""Rows of regions: objects and proposals, each a sample for losses that compare samples."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import roi_align

from congener.errors import ShapeError
from congener.ops.boxes import check_boxes
from congener.ops.precision import upcast

from .rows import split_rows

__all__ = ["PROPOSALS", "mean_in_boxes", "proposed_classes"]

PROPOSALS = 32
"""How many locations of an image are compared; ours."""
SAME = 0.5
"""So many pixels apart are references alike; ours."""


def mean_in_boxes(
    feature: Float[Tensor, "batch channels height width"],
    boxes: Sequence[Float[Tensor, "boxes 4"]],
    size: tuple[int, int],
) -> Float[Tensor, "objects channels"]:
    """The mean of a map over each box: RoIAlign to one bin.

    A bin is sampled about once for each cell of the map that it spans, between the cells' centres
    (``aligned``), as torchvision does unless told otherwise. The map spans the whole image.

    Args:
        feature: a level of a network.
        boxes: of each image, in pixels: left, top, right, bottom.
        size: (height, width) of the images.

    Returns:
        A row for each box, image after image, of at least float32; no row where there is no box.

    Raises:
        ShapeError: what is tapped is no map, or there are boxes of another number of images.

    >>> ramp = torch.arange(4.0).expand(1, 1, 4, 4)  # of an image twice as large
    >>> mean_in_boxes(ramp, [torch.tensor([[0.0, 0, 8, 8], [4, 0, 8, 4]])], (8, 8))
    tensor([[1.5000],
            [2.5000]])
    """
    if feature.dim() != 4 or len(feature) != len(boxes):
        raise ShapeError(
            f"What is looked at in the boxes of {len(boxes)} images is {tuple(feature.shape)}, "
            "which is no map (batch, channels, height, width) of them; tap a pyramid's level."
        )
    for each in boxes:
        check_boxes("boxes", each)
    (feature,) = upcast(feature)
    height, width = feature.shape[2] / size[0], feature.shape[3] / size[1]
    scales = feature.new_tensor((width, height, width, height))
    found: Tensor = roi_align(feature, [each * scales for each in boxes], 1, aligned=True)
    return found.flatten(1)


def proposed_classes(
    student_rows: Float[Tensor, "batch locations columns"],
    teacher_rows: Float[Tensor, "batch locations columns"],
    *,
    background: bool,
    padded: bool = False,
) -> tuple[Float[Tensor, "proposals classes"], Float[Tensor, "proposals classes"]]:
    """Class logits of both networks where the student's highest class score is highest.

    These are locations before suppression, :data:`PROPOSALS` of each image or all; which ones has
    no gradient.

    Args:
        student_rows: dense rows; see :mod:`.rows`.
        teacher_rows: of the same locations and classes.
        background: whether the first class is the background's and scores are a softmax's, as those
            of an SSD; else each class has a probability of its own.
        padded: whether rows may be zeros, which hold no proposal and are left out.

    Returns:
        Those of the student and of the teacher, a row for each proposal, image after image; of an
        SSD with the background's.

    Raises:
        ShapeError: the networks have other locations or classes.
    """
    if student_rows.shape != teacher_rows.shape:
        raise ShapeError(
            f"The student's rows {tuple(student_rows.shape)} and the teacher's "
            f"{tuple(teacher_rows.shape)} must be of the same locations and classes; give both "
            "networks levels of the same strides and the same boxes."
        )
    (student, _, _, places), (teacher, _, _, others) = map(split_rows, (student_rows, teacher_rows))
    if places.device.type == "cpu" and not torch.allclose(places, others, rtol=0, atol=SAME):
        raise ShapeError(
            "The student's rows and the teacher's speak of other places of the image; give both "
            "the same anchors, and a two-stage teacher the student's proposals (Task.shared)."
        )
    scores = student.detach().float()
    if background:
        scores = scores.log_softmax(2)[..., 1:]
    there = places.any(2)
    best = scores.amax(2).masked_fill(~there, -torch.inf)
    chosen = best.topk(min(PROPOSALS, best.shape[1]), dim=1).indices
    mine, theirs = (torch.take_along_dim(x, chosen[..., None], 1) for x in (student, teacher))
    if not padded:
        return mine.flatten(0, 1), theirs.flatten(0, 1)
    held = there.gather(1, chosen)
    return mine[held], theirs[held]
