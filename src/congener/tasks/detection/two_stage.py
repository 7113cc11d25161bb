"""Faster R-CNN, torchvision's own: how it is built, and what it says as dense rows.

A network proposes regions (RPN) by the objectness of each anchor, and a second stage says of each
proposal what it is. Its rows are those of the anchors, and behind them so many of proposals:

==========  ===========================================  ==============  ==========================
rows of     class logits, the first the background's     box             reference
==========  ===========================================  ==============  ==========================
anchors     0, the objectness, and never a further one   of the RPN      the anchor
proposals   of the second stage                          of one class    the proposal
==========  ===========================================  ==============  ==========================

An anchor's softmax then gives the first class, whatever that is, the sigmoid of its objectness. A
proposal's box is that of the class of the object it matches, where there is one and it is known,
else of its best class but the background. Rows without a proposal, of an image that has fewer, are
background for certain, their boxes zeros. Proposals have no gradient.

Which proposals: in training, on annotated images, they are sampled as torchvision does, with the
true boxes among them, by numbers that are a function of seed, epoch and image; else they are those
of the highest objectness. A batch may bring its ``proposals``, so that networks speak of the same.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead, concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign

from congener.errors import DataError, ShapeError
from congener.types import Batch

from .backbones import Pyramid
from .criteria import IGNORE, LEFT_OUT, PROPOSAL_SHARE, matched_classes, sampled
from .rows import BESIDE_CLASSES, join_rows

__all__ = ["KEPT", "answers", "build", "rows_of", "shared"]

KEPT = 128
"""How many proposals of an image the second stage learns from; ours, torchvision: 512."""
NEVER = -1e4
"""The logit of a class that is out of the question; finite, so that nothing becomes NaN."""
BINS, SAMPLES = 7, 2
"""Of a pooled region, each side; samples of a bin, each side: torchvision's."""


def build(
    pyramid: Pyramid, num_classes: int, anchors: AnchorGenerator, *, convolutions: int,
    box_width: int, kept: int, shared: Mapping[str, Any],
) -> nn.Module:  # fmt: skip
    """Faster R-CNN of torchvision on a pyramid.

    Regions are pooled from the levels of the pyramid's maps; two coarser ones are the RPN's alone,
    as in the paper of FPN and in torchvision.

    Args:
        pyramid: what it looks through.
        num_classes: of objects.
        anchors: of the RPN.
        convolutions: of the RPN's head; torchvision: 1.
        box_width: of both layers of the second stage; torchvision: 1024.
        kept: proposals of an image from which the second stage learns.
        shared: further arguments of torchvision's.
    """
    channels = pyramid.out_channels
    head = RPNHead(channels, anchors.num_anchors_per_location()[0], conv_depth=convolutions)
    for layer in head.conv.modules():
        if isinstance(layer, nn.Conv2d):  # as the branches of the other designs begin (ours)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    levels = [str(level) for level in range(len(pyramid.fpn.layer_blocks))]
    found: nn.Module = FasterRCNN(
        pyramid, rpn_anchor_generator=anchors, rpn_head=head,
        box_roi_pool=MultiScaleRoIAlign(levels, BINS, SAMPLES),
        box_head=TwoMLPHead(channels * BINS**2, box_width),
        box_predictor=FastRCNNPredictor(box_width, num_classes + 1),
        box_batch_size_per_image=kept, **shared,
    )  # fmt: skip
    return found


class _First(NamedTuple):
    """What the first stage says.

    Attributes:
        levels: the maps by name.
        objectness: (batch, anchors), logits.
        boxes: (batch, anchors, 4), in pixels.
        anchors: (anchors, 4).
        counts: anchors of each level.
    """

    levels: "OrderedDict[str, Tensor]"
    objectness: Tensor
    boxes: Tensor
    anchors: Tensor
    counts: list[int]


def rows_of(
    model: Any, batch: Batch, *, size: tuple[int, int], kept: int
) -> tuple[Float[Tensor, "batch locations columns"], _First]:
    """What a network says about a batch.

    Args:
        model: of :func:`build`.
        batch: a prepared batch; ``proposals``, (batch, kept, 4) with zeros where there is none, are
            taken as they are; ``draw``, (batch,), says that proposals are sampled.
        size: (height, width) of the images.
        kept: how many proposals of an image have a row.

    Returns:
        The rows, (batch, anchors + kept, classes + 10), and what the first stage said.

    Raises:
        ShapeError: proposals of another number.
    """
    first = _first_stage(model, batch["image"], size)
    proposals = batch.get("proposals")
    if proposals is None:
        proposals = _proposals(model, first, batch, size, kept)
    count = len(batch["image"])
    if proposals.shape != (count, kept, 4):
        raise ShapeError(
            f"The proposals of a batch {tuple(proposals.shape)} must be {(count, kept, 4)}, of "
            "each image as many as the task's `proposals`; fill up with zeros."
        )
    second = _second_rows(model, first, proposals, batch, size)
    logits = second.new_full((*first.objectness.shape, second.shape[2] - BESIDE_CLASSES), NEVER)
    logits[..., 0], logits[..., 1] = 0, first.objectness
    return torch.cat((join_rows(logits, None, first.boxes, first.anchors[None]), second), 1), first


@torch.no_grad()
def shared(model: Any, batch: Batch, *, size: tuple[int, int], kept: int) -> Batch:
    """The batch with the proposals of a network; arguments are those of :func:`rows_of`."""
    first = _first_stage(model, batch["image"], size)
    return batch | {"proposals": _proposals(model, first, batch, size, kept)}


def answers(model: Any, images: Tensor, *, size: tuple[int, int]) -> list[dict[str, Tensor]]:
    """The boxes of each image after suppression, as plain torchvision gives them.

    Args:
        model: in evaluation mode.
        images: normalised.
        size: (height, width) of the images.

    Raises:
        DataError: the network says NaN.
    """
    sizes = [size] * len(images)
    first = _first_stage(model, images, size)
    found, _ = model.rpn.filter_proposals(first.boxes, first.objectness, sizes, first.counts)
    logits, deltas = _second_stage(model, first, found, size)
    if any(x.isnan().any() for x in (first.boxes, first.objectness, logits, deltas)):
        raise DataError(
            "The network answers with NaN: its weights, or the images, are not finite; take "
            "weights from before training diverged."
        )
    chosen = model.roi_heads.postprocess_detections(logits, deltas, found, sizes)
    return [
        {"boxes": boxes, "scores": scores, "labels": labels - 1}
        for boxes, scores, labels in zip(*chosen, strict=True)
    ]


def _first_stage(model: Any, images: Tensor, size: tuple[int, int]) -> _First:
    """The levels, and what the RPN says of its anchors."""
    levels = model.backbone(images)
    maps = list(levels.values())
    objectness, deltas = model.rpn.head(maps)
    counts = [each[0].numel() for each in objectness]
    flat = concat_box_prediction_layers(objectness, deltas)
    one = ImageList(images[:1], [size])
    # Not in the maps' type: bf16 would round places beyond 256 pixels.
    anchors: Tensor = model.rpn.anchor_generator(one, [each.float() for each in maps])[0]
    logits, offsets = (each.float() for each in flat)
    places = anchors.repeat(len(images), 1)
    boxes: Tensor = model.rpn.box_coder.decode_single(offsets, places)
    shape = len(images), len(anchors)
    return _First(levels, logits.view(shape), boxes.view(*shape, 4), anchors, counts)


def _second_stage(
    model: Any, first: _First, proposals: list[Tensor], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Class logits and box deltas of each proposal, image after image."""
    levels = OrderedDict((name, each.float()) for name, each in first.levels.items())
    pooled = model.roi_heads.box_roi_pool(levels, proposals, [size] * len(proposals))
    logits, deltas = model.roi_heads.box_predictor(model.roi_heads.box_head(pooled))
    return logits.float(), deltas.float()


@torch.no_grad()
def _proposals(
    model: Any, first: _First, batch: Batch, size: tuple[int, int], kept: int
) -> Float[Tensor, "batch kept 4"]:
    """Where the second stage is to look, zeros behind them."""
    found, _ = model.rpn.filter_proposals(
        first.boxes, first.objectness, [size] * len(first.boxes), first.counts
    )
    draw = batch.get("draw")
    if draw is not None:
        boxes, labels, crowd = batch["boxes"], batch["labels"], batch["crowd"]
        real = (labels >= 0) & ~crowd
        found = [
            torch.cat((some, own[known].to(some)))
            for some, own, known in zip(found, boxes, real, strict=True)
        ]
    candidates = nn.utils.rnn.pad_sequence(found, batch_first=True)
    numbers = torch.arange(candidates.shape[1], device=candidates.device)
    there = numbers < torch.tensor([[len(each)] for each in found], device=numbers.device)
    chosen = there & (numbers < kept)  # the best come first
    if draw is not None:
        classes = matched_classes(candidates, boxes, labels, crowd, stage="proposals")
        some = sampled(
            classes.masked_fill(~there, LEFT_OUT), draw, kept, PROPOSAL_SHARE, stage="proposals"
        )
        unknown = (labels == IGNORE).any(1, keepdim=True)
        chosen = torch.where(unknown, chosen, some)
    order = (~chosen).int().argsort(dim=1, stable=True)
    candidates = candidates.masked_fill(~chosen[..., None], 0)
    ordered = torch.take_along_dim(candidates, order[..., None], 1)
    return F.pad(ordered, (0, 0, 0, kept - ordered.shape[1]))


def _second_rows(
    model: Any, first: _First, proposals: Tensor, batch: Batch, size: tuple[int, int]
) -> Float[Tensor, "batch kept columns"]:
    """The rows of the proposals."""
    there = (proposals[..., 2:] > proposals[..., :2]).all(2)
    references = proposals[there]
    regions = list(torch.split(references, there.sum(1).tolist()))
    logits, deltas = _second_stage(model, first, regions, size)
    boxes = model.roi_heads.box_coder.decode_single(deltas, references)
    best = logits.detach()[:, 1:].argmax(1)
    if "boxes" in batch:
        given = batch["boxes"], batch["labels"], batch["crowd"]
        matched = matched_classes(proposals, *given, stage="proposals")[there]
        best = torch.where(matched >= 0, matched, best)
    boxes = boxes.view(*logits.shape, 4)
    boxes = torch.take_along_dim(boxes, (best + 1)[:, None, None], 1).squeeze(1)
    told = join_rows(logits[None], None, boxes[None], references[None])[0]
    rows = told.new_zeros(*there.shape, told.shape[1])
    rows[..., 1:-BESIDE_CLASSES] = NEVER
    rows[there] = told
    return rows
