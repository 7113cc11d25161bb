"""Scenes so small that a step of a detector takes milliseconds."""

from typing import Any

import torch
from torch import Tensor, nn

from congener.task import Metrics
from congener.tasks.detection import Detection, Splits
from congener.tasks.detection import data as scenes
from congener.types import Batch

LEVEL = "backbone.fpn.layer_blocks.0"


def squares(train: int, test: int, *, unlabelled: bool = True) -> Splits:
    """Squares of three colours, up to two on an image of 32 pixels, some with none.

    Of the training images every fifth is not annotated, if ``unlabelled``.
    """
    count = train + test
    generator = torch.Generator().manual_seed(9)
    pixels = torch.randint(0, 60, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    boxes, labels = torch.zeros(count, 2, 4), torch.full((count, 2), -1)
    for image in range(count):
        for row in range(image % 3):
            side, colour, place = torch.randint(0, 1 << 16, (3,), generator=generator).tolist()
            side, colour = 8 + side % 6, colour % 3
            left, top = 16 * row + place % 3, place % (32 - side)
            pixels[image, colour, top : top + side, left : left + side] = 220
            boxes[image, row] = torch.tensor([left, top, left + side, top + side])
            labels[image, row] = colour
    known = labels[:train].clone()
    if unlabelled:
        known[3::5] = -100
    return scenes.tensors(
        train_images=pixels[:train], train_boxes=boxes[:train], train_labels=known,
        test_images=pixels[train:], test_boxes=boxes[train:], test_labels=labels[train:],
        class_names=("red", "green", "blue"),
    )  # fmt: skip


class TinyScenes(Detection):
    """Squares, augmented; what is measured is the loss."""

    metric = "loss"
    higher_is_better = False

    def __init__(self, count: int = 50, **options: Any) -> None:
        options = {"augment": "crop_flip"} | options
        super().__init__(squares(count, 30, unlabelled=False), **options)

    def respond(self, model: nn.Module, batch: Batch) -> Any:
        return self.call(model, batch)

    def metrics(self, device: torch.device) -> Metrics:
        return _Losses(self)


class _Losses:
    def __init__(self, task: TinyScenes) -> None:
        self.task, self.values = task, list[Tensor]()

    def update(self, result: Any, batch: Batch) -> None:
        self.values.append(self.task.loss(result.logits, batch) * len(batch["index"]))

    def compute(self) -> dict[str, float]:
        return {"loss": float(sum(self.values)) / 30}


def detector(width: int = 8, *, norm: bool = True) -> nn.Module:
    """A body of three stages, a pyramid of one level, and FCOS's head."""
    torch.manual_seed(4)
    return TinyScenes().build_model(
        "small_cnn", norm="batch" if norm else "none", widths=(width, width, width), levels=1,
        channels=32, convolutions=1,
    )  # fmt: skip


def detecting_teacher() -> nn.Module:
    """The same, wider."""
    return detector(16)
