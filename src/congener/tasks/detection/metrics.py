"""How well objects are found: the figures of COCO, by its own evaluator (pycocotools).

``map`` is the mean of the average precisions of all classes at the overlaps .5, .55 … .95,
``map_50`` and ``map_75`` that at one overlap, ``mar_100`` the mean recall of up to 100 boxes of a
class in an image; ``map_small``, ``map_medium`` and ``map_large`` count objects of an area up to
32², up to 96² and above, in pixels after boxes are scaled. Crowd regions count neither for nor
against; images that are not annotated are left out.

A figure about objects of which the data set has none is left out; without any object ``map`` is 0.

*Differences from torchmetrics' own settings*: its thresholds of overlap and recall are float32, so
that a recall of exactly .3 misses the threshold .3; here they are those of pycocotools. Boxes of
equal score are in the order of their images' ``index``, whatever the batches and processes were.
*Difference from COCO's published figures by size*: the area is the box's, theirs the mask's.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pycocotools  # noqa: F401  (torchmetrics would miss it only after training)
import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from congener.errors import DataError
from congener.ops.collectives import gather_once, rank_sizes
from congener.types import Batch

__all__ = ["BoxMetrics"]

FIGURES = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_100")
NOT_ANNOTATED = -100


class BoxMetrics:
    """The figures of this module over a test set whose images the processes share.

    Args:
        device: where batches lie.
        num_classes: how many classes there are.
        class_names: their names, for what is told of a wrong one.
        area_scale: factor on the sides of all boxes before objects are told apart by size, as
            where images are small copies of larger ones; default: 1, as COCO. Overlaps stay.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        num_classes: int,
        class_names: Sequence[str] = (),
        area_scale: float = 1.0,
    ) -> None:
        self._classes = class_names or [str(label) for label in range(num_classes)]
        self._area_scale = area_scale
        numbers = torch.empty(0, dtype=torch.int64, device=device)
        pixels = torch.empty(0, device=device)
        self._seen: dict[str, list[Tensor]] = {
            # The index of an image, and how many boxes it has of what follows.
            "images": [numbers.view(0, 3)],
            "boxes": [pixels.view(0, 5)],  # and their score
            "labels": [numbers],
            "objects": [pixels.view(0, 4)],
            "kinds": [numbers.view(0, 2)],  # the class, and whether it is a crowd
        }

    def update(self, result: Sequence[Mapping[str, Tensor]], batch: Batch) -> None:
        """Take in the boxes that a network found in the images of a prepared batch.

        Args:
            result: for each image ``boxes`` (found, 4), ``scores`` (found,) and ``labels``
                (found,), as torchvision's detectors answer; labels are 0 … ``num_classes`` - 1.
            batch: its ``boxes``, ``labels``, ``crowd`` and ``index``.

        Raises:
            DataError: another number of answers than images.
        """
        labels: Tensor = batch["labels"]
        if len(result) != len(labels):
            raise DataError(
                f"The network answered for {len(result)} images of {len(labels)}; expected one "
                "mapping with 'boxes', 'scores' and 'labels' for each."
            )
        annotated = (labels != NOT_ANNOTATED).all(1)
        there = labels >= 0
        for row, known in enumerate(annotated.tolist()):
            if known:
                self._take(result[row], batch, row, there[row])

    def _take(self, found: Mapping[str, Tensor], batch: Batch, row: int, there: Tensor) -> None:
        """Take in one annotated image."""
        boxes, scores = found["boxes"].detach().float(), found["scores"].detach().float()
        objects = batch["boxes"][row][there].float()
        kinds = torch.stack([batch["labels"][row][there], batch["crowd"][row][there].long()], dim=1)
        image = torch.stack([
            batch["index"][row], *batch["index"].new_tensor([len(boxes), len(objects)])
        ])  # fmt: skip
        rows = {
            "images": image[None],
            "boxes": torch.cat([boxes, scores[:, None]], dim=1),
            "labels": found["labels"].long(),
            "objects": objects,
            "kinds": kinds,
        }
        for name, value in rows.items():
            self._seen[name].append(value)

    def compute(self) -> dict[str, float]:
        """The figures over all processes, the same on each.

        Raises:
            DataError: a score or a box that is not a finite number, or a class that there is not.
        """
        mine = {name: torch.cat(parts) for name, parts in self._seen.items()}
        all_of = {name: gather_once(x, rank_sizes(x)).cpu() for name, x in mine.items()}
        self._check(all_of)
        index, found, there = all_of["images"].unbind(1)
        boxes = all_of["boxes"][:, :4].double() * self._area_scale
        objects = all_of["objects"].double() * self._area_scale
        kinds, crowd = all_of["kinds"].unbind(1)
        answers = _by_image(
            found, index, boxes=boxes, scores=all_of["boxes"][:, 4], labels=all_of["labels"]
        )
        truth = _by_image(there, index, boxes=objects, labels=kinds, iscrowd=crowd)
        if not (crowd == 0).any():
            return {"map": 0.0}
        figures = _evaluator()
        figures.update(answers, truth)
        values = figures.compute()
        return {name: float(values[name]) for name in FIGURES if values[name] >= 0}

    def _check(self, all_of: Mapping[str, Tensor]) -> None:
        """On the answers of all processes, so that each of them tells the same."""
        boxes, labels = all_of["boxes"], all_of["labels"]
        index, found, _ = all_of["images"].unbind(1)
        image = index.repeat_interleave(found)
        wrong = ~boxes.isfinite().all(1)
        if wrong.any():
            first = int(wrong.int().argmax())
            raise DataError(
                f"The network found a box {boxes[first, :4].tolist()} with score "
                f"{float(boxes[first, 4])} in the image of index {int(image[first])}; expected "
                "finite numbers: training diverged, or its images are not finite."
            )
        count = len(self._classes)
        outside = (labels < 0) | (labels >= count)
        if outside.any():
            first = int(outside.int().argmax())
            raise DataError(
                f"The network found class {int(labels[first])} in the image of index "
                f"{int(image[first])}; expected 0 ({self._classes[0]}) to {count - 1} "
                f"({self._classes[-1]}), without a background class."
            )


def _by_image(counts: Tensor, index: Tensor, **columns: Tensor) -> list[dict[str, Tensor]]:
    """Columns of boxes as a mapping for each image, in the order of their indices."""
    parts = [torch.split(column, counts.tolist()) for column in columns.values()]
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*parts, strict=True)]
    return [rows[place] for place in index.argsort(stable=True).tolist()]


def _evaluator() -> MeanAveragePrecision:
    """COCO's, which does not gather: all is here."""
    evaluator = MeanAveragePrecision(
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0.0, 1.0, 101).tolist(),
        backend="pycocotools",
        sync_on_compute=False,
    )
    evaluator.warn_on_many_detections = False  # it keeps the best 100 of a class, as COCO does
    return evaluator
