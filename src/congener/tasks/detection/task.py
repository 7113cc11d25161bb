"""Object detection: boxes of known classes on images of one size."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.models.detection.image_list import ImageList

from congener.errors import DataError, RecipeError
from congener.ops.checks import check_choice
from congener.ops.collectives import Scope
from congener.ops.keyed_random import keyed_uniform
from congener.task import Metrics, Task
from congener.tasks.named import named
from congener.types import Batch, Exhibit

from . import augment as augmentations
from . import data as datasets
from . import models, two_stage
from .criteria import dense_losses, locations_of_objects, two_stage_losses
from .data.splits import Splits, labelled_positions
from .exhibits import detections
from .geometry import moved_boxes, moved_images
from .geometry import still as unmoved
from .metrics import BoxMetrics
from .regions import mean_in_boxes, proposed_classes
from .rows import join_rows, split_rows

__all__ = ["Detection", "Said"]

IGNORE, NOTHING = -100, -1
MOST_PIXELS = 64 * 320 * 320
"""Of the images that are measured at once; ours."""
SURE = 0.5
"""Least score of a pseudo-label, and of a teacher's location that LD reads; ours."""
TWO_STAGE: Final = "faster_rcnn"
ANCHORED = ("retinanet", TWO_STAGE)
"""The designs whose anchors grow with ``anchor_scale``."""
DRAWS = 0x2C4
"""Added to the seed: other draws than those of an augmentation."""
OWN = ("images", "boxes", "labels", "ids", "seed", "epoch")
"""What every augmentation is told."""


class Said(NamedTuple):
    """What a detector says about a batch.

    Attributes:
        logits: a row for each location, (batch, locations, classes + 9); see :mod:`.rows` and, of
            Faster R-CNN, :mod:`.two_stage`.
        maps: the levels, (batch, channels, height, width), from fine to coarse.
        outputs: what its head returned; nothing of Faster R-CNN.
        anchors: the reference boxes, (locations, 4), the same for each image.
    """

    logits: Tensor
    maps: list[Tensor]
    outputs: Mapping[str, Tensor]
    anchors: Tensor


class Detection(Task):
    """Images of one size with any number of boxes; an image may have no boxes, or not be known.

    Args:
        data: the name of a loader in :mod:`.data`, a mapping with its ``name`` and arguments, or
            the :class:`Splits` that a loader returned.
        detector: how all networks of a run detect: ``"fcos"``, ``"retinanet"``, ``"ssdlite"`` or
            ``"faster_rcnn"``, as torchvision builds them.
        augment: the name of a function in :mod:`.augment`, or a mapping with its ``name`` and
            arguments; applied to training batches, to images and boxes alike.
        anchor_scale: of ``"retinanet"`` and ``"faster_rcnn"``, the side of the smallest anchors in
            strides of their level; torchvision's RetinaNet: 4, which at stride 8 finds no object
            below some 20 pixels.
        proposals: of ``"faster_rcnn"``, from how many of an image the second stage learns, and is
            compared; torchvision: 512.

    Attributes:
        categories: names of the classes.
        size: (height, width) of the images.

    Raises:
        RecipeError: an unknown name or argument.
        DataError: data that is missing, damaged or of no use.
    """

    metric = "map"
    ignore_label = IGNORE
    logits_alone = False
    evaluation_batch = 64

    def __init__(
        self,
        data: str | Mapping[str, Any] | Splits = "digit_scenes",
        *,
        detector: models.Design = "fcos",
        augment: str | Mapping[str, Any] = "none",
        anchor_scale: float = models.ANCHOR_SCALE,
        proposals: int = two_stage.KEPT,
    ) -> None:
        try:
            check_choice("detector", detector, models.DESIGNS)
        except ValueError as error:
            raise RecipeError(str(error)) from error
        if detector not in ANCHORED and anchor_scale != models.ANCHOR_SCALE:
            raise RecipeError(
                f"Only {' and '.join(map(repr, ANCHORED))} take an anchor_scale, not {detector!r}."
            )
        if detector != TWO_STAGE and proposals != two_stage.KEPT:
            raise RecipeError(f"Only {TWO_STAGE!r} takes `proposals`, not {detector!r}; remove it.")
        if proposals < 1:
            raise RecipeError(f"proposals={proposals} must be 1 or more.")
        if not (1 <= anchor_scale < math.inf):
            raise RecipeError(
                f"anchor_scale={anchor_scale} must be 1 or more: sides of anchors in strides."
            )
        divided = data if isinstance(data, Splits) else named("data set", data, [datasets])()
        splits: dict[str, Dataset[Any]] = {"train": divided.train, "test": divided.test}
        if divided.teacher is not None:
            splits["teacher"] = divided.teacher
        self.splits = splits
        pixels = divided.size[0] * divided.size[1]
        self.evaluation_batch = max(1, min(self.evaluation_batch, MOST_PIXELS // pixels))
        self.detector, self.anchor_scale, self.proposals = detector, anchor_scale, proposals
        self.background = detector in ("ssdlite", TWO_STAGE)
        if detector == TWO_STAGE:
            # Its second stage looks at a thousand regions of an image.
            self.evaluation_batch = max(1, self.evaluation_batch // 8)
            self.shares = "it looks at the student's proposals, which change as the student learns"
        self.categories, self.size = tuple(divided.class_names), tuple(divided.size)
        self.normalisation = (divided.mean, divided.std)
        self.labelled = labelled_positions(divided.train.labels)
        self._area_scale = divided.area_scale
        self._augment = named("augmentation", augment, [augmentations], own=OWN)
        self.augments = self._augment.func is not augmentations.none
        self._try_augmentation(augment)

    def _try_augmentation(self, given: str | Mapping[str, Any]) -> None:
        """So that a wrong value shows before training."""
        image = torch.zeros(1, 3, *self.size, dtype=torch.uint8)
        box = torch.tensor([[[0.0, 0.0, *self.size[::-1]]]])
        zero = torch.zeros(1, dtype=torch.int64)
        try:
            self._augment(image, box, zero[None], zero, seed=0, epoch=0)
        except (TypeError, ValueError, RuntimeError) as error:
            raise RecipeError(
                f"The augmentation {given!r} does not work on images of this data: {error}"
            ) from error

    def build_model(self, name: str, **kwargs: Any) -> nn.Module:
        """A detector of the task's design on a body of :mod:`.backbones`."""
        assert self.normalisation is not None
        mean, std = self.normalisation
        return models.build(
            name, kwargs, design=self.detector, num_classes=len(self.categories), size=self.size,
            mean=tuple(mean), std=tuple(std), anchor_scale=self.anchor_scale,
            proposals=self.proposals,
        )  # fmt: skip

    def collate(self, samples: Any) -> Batch:
        """A batch from a ready batch, or from a list of mappings with as many boxes each."""
        if isinstance(samples, Mapping):
            batch = dict(samples)
        else:
            try:
                batch = torch.utils.data.default_collate(samples)
            except (TypeError, RuntimeError) as error:
                raise DataError(
                    "The images cannot be stacked into a batch; expected images of one size, and "
                    f"as many rows of boxes, those that hold none labelled -1. torch says: {error}"
                ) from error
        if missing := {"image", "boxes", "labels", "crowd", "index"} - set(batch):
            raise DataError(
                f"An image has no {sorted(missing)[0]!r}; expected mappings with the keys 'image', "
                "'boxes', 'labels', 'crowd' and 'index'."
            )
        images: Tensor = batch["image"]
        if images.dtype != torch.uint8 or images.shape[1:] != (3, *self.size):
            raise DataError(
                f"Images are of type {images.dtype} and shape {tuple(images.shape[1:])}; expected "
                f"bytes, torch.uint8, of shape {(3, *self.size)}, the size of the task."
            )
        return batch

    def prepare(self, batch: Batch, *, train: bool, seed: int, epoch: int) -> Batch:
        """Images normalised, and in training moved with their boxes; how is in ``geometry``.

        For Faster R-CNN, ``draw`` is a number of each image by which it samples in training.
        """
        images, boxes, labels, crowd = (batch[k] for k in ("image", "boxes", "labels", "crowd"))
        geometry = unmoved(len(images), self.size).to(images.device)
        if train and self.augments:
            objects = labels.masked_fill(crowd & (labels >= 0), NOTHING)
            images, geometry = self._augment(
                images, boxes, objects, batch["index"], seed=seed, epoch=epoch
            )
            images = moved_images(images, geometry)
            boxes, labels = moved_boxes(boxes, labels, geometry, self.size)
            crowd = crowd & (labels >= 0)
        drawn = {}
        if train and self.detector == TWO_STAGE:
            draws = keyed_uniform(batch["index"], seed=seed + DRAWS, epoch=epoch, count=1)
            drawn["draw"] = (draws[:, 0] * 2**24).long()
        return dict(batch) | drawn | {
            "image": self.normalised(images), "boxes": boxes, "labels": labels, "crowd": crowd,
            "geometry": geometry,
        }  # fmt: skip

    def normalised(self, images: Tensor) -> Tensor:
        """Pixels, uint8, by the mean and the deviation of each channel."""
        assert self.normalisation is not None
        mean, std = (
            torch.tensor(each, device=images.device).view(-1, 1, 1) for each in self.normalisation
        )
        return (images.float().div_(255) - mean).div_(std)

    def moved(self, images: Tensor, batch: Batch) -> Tensor:
        """Other images of the samples of a prepared batch, normalised, moved as theirs were."""
        return moved_images(images, batch["geometry"])

    def call(self, model: nn.Module, batch: Batch) -> Said:
        """Every part of a detector but its loss and its choice of boxes."""
        if self.detector == TWO_STAGE:
            spoken, first = two_stage.rows_of(model, batch, size=self.size, kept=self.proposals)
            return Said(spoken, list(first.levels.values()), {}, first.anchors)
        images: Tensor = batch["image"]
        found = model.backbone(images)  # type: ignore[operator]
        maps = [found] if isinstance(found, Tensor) else list(found.values())
        outputs = model.head(maps)  # type: ignore[operator]
        one = ImageList(images[:1], [self.size])
        # Not in the maps' type: bf16 would round places beyond 256 pixels.
        anchors: Tensor = model.anchor_generator(one, [each.float() for each in maps])[0]  # type: ignore[operator]
        rows = _rows(model, outputs, anchors)
        return Said(rows, maps, outputs, anchors)

    def shared(self, student: nn.Module, batch: Batch) -> Batch:
        """Of Faster R-CNN, the batch with the student's ``proposals``."""
        if self.detector != TWO_STAGE:
            return batch
        return two_stage.shared(student, batch, size=self.size, kept=self.proposals)

    def logits(self, result: Any) -> Tensor:
        """A row for each location; see :mod:`.rows`."""
        if not isinstance(result, Said):
            raise DataError(
                f"The network returned {type(result).__name__}; expected what a detector says, "
                "which `call` returns."
            )
        return result.logits

    def losses(self, logits: Tensor, batch: Batch, scope: Scope = "global") -> dict[str, Tensor]:
        """The parts of the supervised loss by name; ``classification`` is one."""
        given = logits, batch["boxes"], batch["labels"], batch["crowd"]
        if self.detector == TWO_STAGE:
            draw = batch.get("draw", torch.zeros_like(batch["index"]))
            return two_stage_losses(*given, draw, proposals=self.proposals, scope=scope)
        return dense_losses(
            *given, design="ssd" if self.detector == "ssdlite" else self.detector, scope=scope,
        )  # fmt: skip

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The sum of the parts, each weighing 1, as in torchvision."""
        parts = list(self.losses(logits, batch).values())
        return sum(parts[1:], start=parts[0])

    def class_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The focal loss or the cross-entropy of the classes, of Faster R-CNN its proposals'."""
        return self.losses(logits, batch, "local")["classification"]

    def pseudo_labelled(self, batch: Batch, model: nn.Module) -> Batch:
        """Images that are not annotated get the boxes that a detector is at least half sure of."""
        unknown = (batch["labels"] == IGNORE).all(1)
        if not unknown.any():
            return batch
        rows = unknown.nonzero().flatten()
        with torch.no_grad():
            found = self.respond(model, {"image": batch["image"][rows]})
        sure = [{k: v[_sure(each)] for k, v in each.items()} for each in found]
        width = max([batch["labels"].shape[1], *(len(each["labels"]) for each in sure)])
        wider = width - batch["labels"].shape[1]
        boxes = F.pad(batch["boxes"], (0, 0, 0, wider))
        labels = F.pad(batch["labels"], (0, wider), value=NOTHING)
        crowd = F.pad(batch["crowd"], (0, wider))
        labels[rows], boxes[rows], crowd[rows] = NOTHING, 0.0, False
        for row, each in zip(rows.tolist(), sure, strict=True):
            count = len(each["labels"])
            boxes[row, :count], labels[row, :count] = each["boxes"].to(boxes), each["labels"]
        return batch | {"boxes": boxes, "labels": labels, "crowd": crowd}

    def per_sample(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """How sure a detector is that an image has each class, and the class of its first object.

        The label of an image without one, or not annotated, is -100.
        """
        said = split_rows(logits[:, -self.proposals :] if self.detector == TWO_STAGE else logits)
        classes = said.classes.float()
        chances = classes.softmax(2)[..., 1:] if self.background else classes.sigmoid()
        if self.detector == TWO_STAGE:
            chances = chances.masked_fill(~said.references.any(2, keepdim=True), 0)
        labels = batch["labels"]
        real = _real(batch)
        first = labels.gather(1, real.int().argmax(1, keepdim=True)).squeeze(1)
        return chances.amax(1), first.masked_fill(~real.any(1), IGNORE)

    def respond(self, model: nn.Module, batch: Batch) -> list[dict[str, Tensor]]:
        """The boxes of each image after suppression, chosen by torchvision's own code.

        Returns:
            For each image ``boxes`` (boxes, 4), ``scores`` and ``labels`` (boxes,), best first.
        """
        if self.detector == TWO_STAGE:
            return two_stage.answers(model, batch["image"], size=self.size)
        said = self.call(model, batch)
        if said.logits.isnan().any():
            raise DataError(
                "The network answers with NaN: its weights, or the images, are not finite; take "
                "weights from before training diverged."
            )
        outputs = {name: value.float() for name, value in said.outputs.items()}
        count = len(batch["image"])
        sizes = [self.size] * count
        if self.detector == "ssdlite":
            chosen = model.postprocess_detections(outputs, [said.anchors] * count, sizes)  # type: ignore[operator]
            return [each | {"labels": each["labels"] - 1} for each in chosen]
        places = [each.shape[2] * each.shape[3] for each in said.maps]
        per_place = len(said.anchors) // sum(places)
        rows = [each * per_place for each in places]
        split = {name: list(torch.split(value, rows, 1)) for name, value in outputs.items()}
        anchors = [list(torch.split(said.anchors, rows))] * count
        return model.postprocess_detections(split, anchors, sizes)  # type: ignore[operator, no-any-return]

    def metrics(self, device: torch.device) -> Metrics:
        """Mean average precisions of COCO; see :mod:`.metrics`."""
        return BoxMetrics(
            device, num_classes=len(self.categories), class_names=self.categories,
            area_scale=self._area_scale,
        )  # fmt: skip

    def objects(self, batch: Batch) -> list[Tensor]:
        """The true boxes of each image of a prepared batch, (boxes, 4); none where not known."""
        return [boxes[known] for boxes, known in zip(batch["boxes"], _real(batch), strict=True)]

    def at_objects(self, feature: Tensor, batch: Batch) -> Tensor:
        """The mean of a map over each true box; images that are not annotated have none."""
        return mean_in_boxes(feature, self.objects(batch), self.size)

    def at_proposals(self, student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits at the 32 locations of each image that the student is surest of.

        Of Faster R-CNN at so many of its proposals, or all, where an image has fewer.
        """
        staged = self.detector == TWO_STAGE
        rows = slice(-self.proposals if staged else None, None)
        return proposed_classes(
            student_logits[:, rows], teacher_logits[:, rows],
            background=bool(self.background), padded=staged,
        )  # fmt: skip

    def locations(
        self, student_logits: Tensor, teacher_logits: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor] | None:
        """Of FCOS, whose heads may have distributions: see :meth:`Task.locations`.

        On annotated images those that the loss matches to objects, on others those where the
        teacher is at least half sure of a class (ours).
        """
        if self.detector != "fcos":
            return None
        scores, sure = (
            split_rows(x.detach()).classes.sigmoid().amax(2)
            for x in (student_logits, teacher_logits)
        )
        found = locations_of_objects(
            student_logits, batch["boxes"], batch["labels"], batch["crowd"], design="fcos"
        )
        unknown = (batch["labels"] == IGNORE).all(1, keepdim=True)
        return found | (unknown & (sure >= SURE)), scores

    def anchors(self, feature: Tensor) -> Tensor:
        """The reference boxes of each place of a map, (height, width, boxes of a place, 4)."""
        if self.detector == "ssdlite":
            raise RecipeError(
                "The boxes of a place of 'ssdlite' depend on all its levels; for a loss that asks "
                "for them take the design 'fcos', 'retinanet' or 'faster_rcnn'."
            )
        height, width = feature.shape[2:]
        make = models.anchors_of(self.detector, [self.size[0] // height], self.anchor_scale)
        images = torch.zeros(1, 3, *self.size, device=feature.device)
        found: Tensor = make(ImageList(images, [self.size]), [feature.float()])[0]
        return found.view(height, width, -1, 4)

    def exhibits(
        self, networks: Mapping[str, nn.Module], taps: Mapping[str, str | None]
    ) -> Sequence[Exhibit]:
        """What each network finds on some test images, and where it looks; see :mod:`.exhibits`."""
        return detections(self, networks, taps)


def _real(batch: Batch) -> Tensor:
    """Which rows of boxes hold an object, (batch, objects); a crowd is none."""
    real: Tensor = (batch["labels"] >= 0) & ~batch["crowd"]
    return real


def _sure(answer: Mapping[str, Tensor]) -> Tensor:
    """Which boxes may be labels: of a high score, and not flat, as boxes cut by a border can be."""
    sides = answer["boxes"][:, 2:] - answer["boxes"][:, :2]
    return (answer["scores"] >= SURE) & (sides >= 1).all(1)


def _rows(model: nn.Module, outputs: Mapping[str, Tensor], anchors: Tensor) -> Tensor:
    """What a head says, joined, with the boxes in pixels."""
    deltas = outputs["bbox_regression"].float()
    count, locations = deltas.shape[:2]
    references = anchors.to(deltas).expand(count, -1, -1)
    coder: Any = model.box_coder
    decode = getattr(coder, "decode_single", coder.decode)
    boxes = decode(deltas.flatten(0, 1), references.flatten(0, 1)).view(count, locations, 4)
    quality = outputs.get("bbox_ctrness")
    return join_rows(
        outputs["cls_logits"].float(), None if quality is None else quality.float().squeeze(-1),
        boxes, references,
    )  # fmt: skip
