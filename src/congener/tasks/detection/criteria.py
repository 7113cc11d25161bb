"""What a detector is trained with, design by design, on dense rows.

Every value is that of torchvision's detector of the same design (``compute_loss`` with its default
settings), over the annotated images of the global batch: all processes hold the same value.

Differences from torchvision
    - ``crowd`` boxes are no objects. A location whose reference's centre lies in one, and that
      matches no object, is left out of the classification loss: ours.
    - FCOS: of several objects, the smallest is a location's. torchvision compares areas below 1e8
      in float32, to which two that differ by less than 8 square pixels are equal.
    - SSD: no more background than there is counts; torchvision counts objects a second time where
      three times their locations exceed the background's.
    - All but FCOS: boxes come decoded, so what a coder limits, it limits here too: a side beyond
      62.5 times its reference's has no gradient. Nor has one below a hundredth of a pixel.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, BoxLinearCoder, Matcher, SSDMatcher
from torchvision.ops import box_iou, generalized_box_iou_loss, sigmoid_focal_loss

from congener.errors import DataError, RecipeError, ShapeError
from congener.ops.collectives import Scope, all_sum, global_mean
from congener.ops.keyed_random import keyed_uniform
from congener.ops.precision import upcast

from .rows import DenseRows, split_rows

__all__ = [
    "Design", "dense_losses", "locations_of_objects", "matched_classes", "sampled",
    "two_stage_losses",
]  # fmt: skip

Design = Literal["fcos", "retinanet", "ssd"]
Stage = Literal["anchors", "proposals"]
"""Of Faster R-CNN."""

IGNORE = -100
"""The label of an image that is not annotated."""

BACKGROUND, LEFT_OUT = -1, -2
"""In place of a class or an object, at a location: nothing is there; it does not count."""

FCOS_RADIUS = 1.5
FCOS_REACH = 4.0, 8.0
RETINANET_OVERLAPS = 0.5, 0.4
SSD_OVERLAP = 0.5
SSD_NEGATIVES = 3
ANCHOR_OVERLAPS, PROPOSAL_OVERLAP = (0.7, 0.3), 0.5
ANCHORS_SAMPLED, ANCHOR_SHARE, PROPOSAL_SHARE = 256, 0.5, 0.25
TWO_STAGE_BETA = 1 / 9
"""Of torchvision's detectors: their defaults."""

LEAST_SIDE = 0.01
"""Of a box to be encoded, in pixels: the logarithm of none is finite."""

_PLAIN, _SCALED = BoxCoder((1.0, 1.0, 1.0, 1.0)), BoxCoder((10.0, 10.0, 5.0, 5.0))
CODERS = {"retinanet": _PLAIN, "ssd": _SCALED, "anchors": _PLAIN, "proposals": _SCALED}


class Targets(NamedTuple):
    """What locations are to say.

    Attributes:
        classes: (batch, locations), a class, or ``BACKGROUND`` or ``LEFT_OUT``.
        boxes: (batch, locations, 4), the object's where there is one, anything elsewhere.
    """

    classes: Tensor
    boxes: Tensor


def dense_losses(
    rows: Float[Tensor, "batch locations columns"],
    boxes: Float[Tensor, "batch objects 4"],
    labels: Int[Tensor, "batch objects"],
    crowd: Bool[Tensor, "batch objects"],
    *,
    design: Design,
    scope: Scope = "global",
) -> dict[str, Float[Tensor, ""]]:
    """The supervised losses of a detector.

    Args:
        rows: (batch, locations, C + 9), see :mod:`.rows`; C is the number of classes, one more
            (the background, first) of an SSD.
        boxes: (batch, objects, 4), left, top, right, bottom in pixels.
        labels: (batch, objects), a class of each box; -1: none; -100 throughout: an image that is
            not annotated, which is as if absent.
        crowd: (batch, objects), which boxes count neither for nor against.
        design: ``"fcos"``, ``"retinanet"`` or ``"ssd"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        ``classification``, ``box`` and, of FCOS, ``quality``: scalars, at least float32; 0 where
        no image is annotated. An image without objects counts as background throughout; an SSD
        learns nothing from it.

    Raises:
        ShapeError: the rows, boxes, labels and crowd marks do not fit each other.
        DataError: a label for which the rows have no column.
        RecipeError: an unknown design.
    """
    if design not in get_args(Design):
        raise RecipeError(f"design={design!r} is unknown; choose one of {list(get_args(Design))}.")
    (rows,) = upcast(rows)
    said = split_rows(rows)
    _check(said, boxes, labels, crowd, background=design == "ssd")
    with torch.no_grad():
        targets = _targets(said.references, boxes.to(rows.dtype), labels, crowd, MATCHERS[design])
    per_image = CRITERIA[design](said, targets)
    objects = (targets.classes >= 0).sum(dim=1).to(rows.dtype)
    if design == "retinanet":
        annotated = (labels != IGNORE).all(dim=1)
        means = [v / objects.clamp(min=1) for v in per_image]
        found = torch.stack([global_mean(v, annotated, scope=scope) for v in means])
    else:
        totals = torch.stack([v.sum() for v in (*per_image, objects)])
        *sums, count = all_sum(totals, scope=scope).unbind()
        found = torch.stack(sums) / count.detach().clamp(min=1)
    return dict(zip(("classification", "box", "quality"), found.unbind(), strict=False))


def locations_of_objects(
    rows: Float[Tensor, "batch locations columns"],
    boxes: Float[Tensor, "batch objects 4"],
    labels: Int[Tensor, "batch objects"],
    crowd: Bool[Tensor, "batch objects"],
    *,
    design: Design,
) -> Bool[Tensor, "batch locations"]:
    """Which locations the losses of :func:`dense_losses`, whose arguments these are, match.

    None on an image that is not annotated.
    """
    (references,) = upcast(split_rows(rows.detach()).references)
    targets = _targets(references, boxes.to(references.dtype), labels, crowd, MATCHERS[design])
    return targets.classes >= 0


def two_stage_losses(
    rows: Float[Tensor, "batch locations columns"],
    boxes: Float[Tensor, "batch objects 4"],
    labels: Int[Tensor, "batch objects"],
    crowd: Bool[Tensor, "batch objects"],
    draw: Int[Tensor, " batch"],
    *,
    proposals: int,
    scope: Scope = "global",
) -> dict[str, Float[Tensor, ""]]:
    """The supervised losses of Faster R-CNN.

    Args:
        rows: (batch, anchors + proposals, C + 10), see :mod:`.two_stage`.
        boxes: as in :func:`dense_losses`, and so the next two.
        labels: likewise.
        crowd: likewise.
        draw: a number of each image, of which the sample of its anchors is a function.
        proposals: how many of the rows, the last, are those of proposals.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        ``classification`` and ``box``, means over the proposals, ``objectness`` and ``rpn_box``,
        over the sampled anchors: scalars, at least float32; 0 where no image is annotated.

    Raises:
        ShapeError: the rows, boxes, labels and crowd marks do not fit each other.
        DataError: a label for which the rows have no column.
    """
    (rows,) = upcast(rows)
    _check(split_rows(rows), boxes, labels, crowd, background=True)
    if not 0 < proposals < rows.shape[1]:
        raise ShapeError(f"{rows.shape[1]} rows of an image cannot end in {proposals} proposals.")
    first, second = (split_rows(x) for x in rows.tensor_split([-proposals], 1))
    given = boxes.to(rows.dtype), labels, crowd
    with torch.no_grad():
        anchors = _targets(first.references, *given, MATCHERS["anchors"])
        chosen = sampled(anchors.classes, draw, ANCHORS_SAMPLED, ANCHOR_SHARE, stage="anchors")
        regions = _targets(second.references, *given, MATCHERS["proposals"])
        there = (second.references[..., 2:] > second.references[..., :2]).all(dim=2)
    totals = torch.cat((
        _stage("proposals", second, regions, there & (regions.classes != LEFT_OUT)),
        _stage("anchors", first, anchors, chosen),
    ))  # fmt: skip
    found = all_sum(totals, scope=scope).view(2, 3)
    means = found[:, :2] / found[:, 2:].detach().clamp(min=1)
    names = ("classification", "box", "objectness", "rpn_box")
    return dict(zip(names, means.flatten().unbind(), strict=True))


def _stage(stage: Stage, said: DenseRows, targets: Targets, counted: Tensor) -> Tensor:
    """Cross-entropies and smooth differences of deltas, their sums, and how many counted, (3,)."""
    targets = targets._replace(classes=targets.classes.masked_fill(~counted, LEFT_OUT))
    given, wanted, found = _deltas(CODERS[stage], said, targets)
    differences = F.smooth_l1_loss(given, wanted, beta=TWO_STAGE_BETA, reduction="sum")
    logits = said.classes.masked_fill(~counted[..., None], 0)
    if stage == "proposals":
        classes = (targets.classes + 1).clamp(min=0).flatten()
        entropies = F.cross_entropy(logits.flatten(0, 1), classes, reduction="none").view_as(found)
    else:
        objectness = logits[..., 1:].logsumexp(dim=2) - logits[..., 0]
        entropies = F.binary_cross_entropy_with_logits(
            objectness, found.to(logits.dtype), reduction="none"
        )
    total = entropies.masked_fill(~counted, 0).sum()
    return torch.stack((total, differences, counted.sum().to(total)))


def matched_classes(
    references: Float[Tensor, "batch locations 4"],
    boxes: Float[Tensor, "batch objects 4"],
    labels: Int[Tensor, "batch objects"],
    crowd: Bool[Tensor, "batch objects"],
    *,
    stage: Stage,
) -> Int[Tensor, "batch locations"]:
    """The class that each reference is to find, or ``BACKGROUND`` or ``LEFT_OUT``."""
    return _targets(references, boxes.to(references), labels, crowd, MATCHERS[stage]).classes


def sampled(
    classes: Int[Tensor, "batch locations"],
    draw: Int[Tensor, " batch"],
    count: int,
    share: float,
    *,
    stage: Stage,
) -> Bool[Tensor, "batch locations"]:
    """Which locations an image learns from: objects, at most a share, and background.

    torchvision's ``BalancedPositiveNegativeSampler``, but what is drawn is a function of ``draw``
    and the location alone.

    Args:
        classes: what each is to say.
        draw: a number of each image.
        count: at most so many of an image.
        share: at most so large a part of them are objects.
        stage: each draws anew.
    """
    order = keyed_uniform(
        draw, seed=0, epoch=("anchors", "proposals").index(stage), count=classes.shape[1]
    )
    objects = _some(classes >= 0, order, int(count * share))
    return objects | _some(classes == BACKGROUND, order, count - objects.sum(dim=1, keepdim=True))


def _some(among: Tensor, order: Tensor, count: int | Tensor) -> Tensor:
    """The first so many of each row in an order."""
    ranks = order.masked_fill(~among, 2).argsort(dim=1, stable=True).argsort(dim=1)
    return among & (ranks < count)


def _check(
    said: DenseRows, boxes: Tensor, labels: Tensor, crowd: Tensor, *, background: bool
) -> None:
    """Objects must fit the rows."""
    given = [tuple(boxes.shape), tuple(labels.shape), tuple(crowd.shape)]
    shape = (len(said.classes), *labels.shape[1:])
    if labels.dim() != 2 or given != [(*shape, 4), shape, shape]:
        raise ShapeError(
            f"boxes {given[0]}, labels {given[1]} and crowd {given[2]} must be (batch, objects, 4) "
            f"and twice (batch, objects) for rows of {shape[0]} images; fill up with labels of -1."
        )
    classes = said.classes.shape[2] - background
    if labels.device.type == "cpu" and labels.numel() and labels.max() >= classes:
        raise DataError(
            f"A label is {labels.max().item()}, and the network tells {classes} classes; expected "
            f"0…{classes - 1}, so build the network for the classes of the data."
        )


def _targets(
    references: Tensor,
    boxes: Tensor,
    labels: Tensor,
    crowd: Tensor,
    matcher: Callable[[Tensor, Tensor], Tensor],
) -> Targets:
    """Give each location the object that it is to find."""
    matches = labels.new_full(references.shape[:2], BACKGROUND)
    for image, (places, given) in enumerate(zip(references, boxes, strict=True)):
        is_box = (labels[image] >= 0) & (given[:, 2:] > given[:, :2]).all(dim=1)
        objects = (is_box & ~crowd[image]).nonzero().squeeze(1)
        if len(objects):
            match = matcher(given[objects], places)
            matches[image] = torch.where(match >= 0, objects[match.clamp(min=0)], match)
        ignored = _centres_within(places, given[is_box & crowd[image]]) & (matches[image] < 0)
        matches[image].masked_fill_(ignored, LEFT_OUT)
    matches[(labels == IGNORE).any(dim=1)] = LEFT_OUT
    chosen = matches.clamp(min=0)
    classes = torch.where(matches >= 0, labels.gather(1, chosen), matches)
    return Targets(classes, boxes.gather(1, chosen[..., None].expand(-1, -1, 4)))


def _centres_within(references: Tensor, regions: Tensor) -> Tensor:
    """Which references have their centre in one of the regions, (locations,)."""
    centres = ((references[:, :2] + references[:, 2:]) / 2)[:, None]
    inside = (centres >= regions[None, :, :2]) & (centres <= regions[None, :, 2:])
    return inside.all(dim=2).any(dim=1)


def _match_fcos(objects: Tensor, references: Tensor) -> Tensor:
    """The smallest object around each location's centre that is of its level's size."""
    centres = (references[:, :2] + references[:, 2:]) / 2
    sides = references[:, 2] - references[:, 0]
    low, high = (factor * sides for factor in FCOS_REACH)
    low = low.masked_fill(torch.isclose(sides, sides.min()), 0)
    high = high.masked_fill(torch.isclose(sides, sides.max()), torch.inf)
    middles = (objects[:, :2] + objects[:, 2:]) / 2
    off = (centres[:, None] - middles[None]).abs().amax(dim=2)
    edges = torch.cat((centres[:, None] - objects[:, :2], objects[:, 2:] - centres[:, None]), dim=2)
    reach = edges.amax(dim=2)
    fits = (off < FCOS_RADIUS * sides[:, None]) & (edges.amin(dim=2) > 0)
    fits &= (reach > low[:, None]) & (reach < high[:, None])
    areas = (objects[:, 2:] - objects[:, :2]).prod(dim=1)
    least, match = areas.expand(fits.shape).masked_fill(~fits, torch.inf).min(dim=1)
    return match.masked_fill(least.isinf(), BACKGROUND)


def _match_by_overlap(matcher: Matcher) -> Callable[[Tensor, Tensor], Tensor]:
    def match(objects: Tensor, references: Tensor) -> Tensor:
        found: Tensor = matcher(box_iou(objects, references))
        return found

    return match


MATCHERS: dict[Design | Stage, Callable[[Tensor, Tensor], Tensor]] = {
    "fcos": _match_fcos,
    "retinanet": _match_by_overlap(Matcher(*RETINANET_OVERLAPS, allow_low_quality_matches=True)),
    "ssd": _match_by_overlap(SSDMatcher(SSD_OVERLAP)),
    "anchors": _match_by_overlap(Matcher(*ANCHOR_OVERLAPS, allow_low_quality_matches=True)),
    "proposals": _match_by_overlap(Matcher(PROPOSAL_OVERLAP, PROPOSAL_OVERLAP)),
}


def _fcos(said: DenseRows, targets: Targets) -> list[Tensor]:
    """Focal loss, GIoU loss and cross-entropy of the centre-ness, the sum for each image."""
    found = targets.classes >= 0
    wanted, references = targets.boxes[found], said.references[found]
    giou = generalized_box_iou_loss(said.boxes[found], wanted)
    left, top, right, bottom = BoxLinearCoder().encode(references, wanted).unbind(dim=1)
    across, down = torch.stack((left, right)), torch.stack((top, bottom))
    centre_ness = (across.amin(0) * down.amin(0) / (across.amax(0) * down.amax(0))).sqrt()
    quality = F.binary_cross_entropy_with_logits(said.quality[found], centre_ness, reduction="none")
    return [
        _focal(said.classes, targets.classes),
        _by_image(giou, found),
        _by_image(quality, found),
    ]


def _retinanet(said: DenseRows, targets: Targets) -> list[Tensor]:
    """Focal loss and absolute differences of the box deltas, the sum for each image."""
    given, wanted, found = _deltas(CODERS["retinanet"], said, targets)
    differences = F.l1_loss(given, wanted, reduction="none").sum(dim=1)
    return [_focal(said.classes, targets.classes), _by_image(differences, found)]


def _ssd(said: DenseRows, targets: Targets) -> list[Tensor]:
    """Cross-entropy of objects and hard background, smooth differences of deltas, by image."""
    given, wanted, found = _deltas(CODERS["ssd"], said, targets)
    differences = F.smooth_l1_loss(given, wanted, reduction="none").sum(dim=1)
    background = targets.classes == BACKGROUND
    logits = said.classes.masked_fill((targets.classes == LEFT_OUT)[..., None], 0)
    entropies = F.cross_entropy(
        logits.flatten(0, 1), (targets.classes + 1).clamp(min=0).flatten(), reduction="none"
    ).reshape(found.shape)
    hardest = entropies.detach().masked_fill(~background, -torch.inf).argsort(1, descending=True)
    allowed = SSD_NEGATIVES * found.sum(dim=1, keepdim=True)
    counted = found | (background & (hardest.argsort(1) < allowed))
    return [entropies.masked_fill(~counted, 0).sum(dim=1), _by_image(differences, found)]


CRITERIA: dict[Design, Callable[[DenseRows, Targets], list[Tensor]]] = {
    "fcos": _fcos,
    "retinanet": _retinanet,
    "ssd": _ssd,
}


def _focal(logits: Tensor, classes: Tensor) -> Tensor:
    """Focal loss of every class at the locations that count, the sum for each image, (batch,)."""
    left_out = (classes == LEFT_OUT)[..., None]
    wanted = F.one_hot(classes.clamp(min=0), logits.shape[2]) * (classes >= 0)[..., None]
    values = sigmoid_focal_loss(logits.masked_fill(left_out, 0), wanted.to(logits.dtype))
    sums: Tensor = values.masked_fill(left_out, 0).sum(dim=(1, 2))
    return sums


def _deltas(coder: BoxCoder, said: DenseRows, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes told and wanted relative to their references, and at which locations."""
    found = targets.classes >= 0
    corner, opposite = said.boxes[found].chunk(2, dim=1)
    told = torch.cat((corner, torch.maximum(opposite, corner + LEAST_SIDE)), dim=1)
    references = said.references[found]
    wanted = coder.encode_single(targets.boxes[found], references)
    return coder.encode_single(told, references), wanted, found


def _by_image(values: Tensor, found: Tensor) -> Tensor:
    """Sum what the locations that found an object say, (batch,)."""
    return values.new_zeros(len(found)).index_add(0, found.nonzero()[:, 0], values)
