"""The heads of MHKD: small classifiers on intermediate features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from congener.errors import ShapeError
from congener.ops.batch_norm import BatchNorm
from congener.ops.frames import mean_frames
from congener.systems.probe import first_sample
from congener.task import Task
from congener.types import Batch, Outputs

__all__ = ["Head", "heads_on", "run"]


class Head(nn.Module):
    """A small classifier on a feature; its kernels have one position along axes not there."""

    def __init__(self, shape: torch.Size, classes: int, width: int, layers: int) -> None:
        super().__init__()
        height, length = {2: (1, 1), 3: (1, 3), 4: (3, 3)}[len(shape)]
        blocks: list[nn.Module] = []
        for channels in (shape[1], width):
            padding = (height // 2, length // 2)
            convolution = nn.Conv2d(channels, width, (height, length), padding=padding, bias=False)
            blocks += [convolution, BatchNorm(width), nn.ReLU()]
        self.convolutions = nn.Sequential(*blocks)
        hidden = [m for _ in range(layers - 1) for m in (nn.Linear(width, width), nn.ReLU())]
        self.classifier = nn.Sequential(*hidden, nn.Linear(width, classes))

    def forward(self, feature: Tensor) -> Tensor:
        """(batch, channels, ...) to (batch, classes)."""
        while feature.dim() < 4:
            feature = feature.unsqueeze(2)
        maps = self.convolutions(feature.to(next(self.parameters()).dtype))
        logits: Tensor = self.classifier(maps.mean(dim=(2, 3)))
        return logits


def heads_on(
    seen: Outputs, taps: Sequence[str], task: Task, width: int, layers: int
) -> nn.ModuleList:
    """A head for what a network gives at each of its taps for the first test sample.

    Raises:
        ShapeError: a tap that gives no feature of a shape that heads read.
    """
    for path, feature in seen.features.items():
        if not 2 <= feature.dim() <= 4:
            raise ShapeError(
                f"The tap {path!r} gives {tuple(feature.shape)}; a head of MHKD reads (batch, "
                "channels), (batch, channels, length) or (batch, channels, height, width): tap "
                "another module."
            )
    read = _read(seen, taps, task, first_sample(task))
    classes = seen.logits.shape[-1]
    return nn.ModuleList(Head(each.shape, classes, width, layers) for each in read)


def run(
    heads: nn.ModuleList, taps: Sequence[str], said: Outputs, task: Task, batch: Batch
) -> list[Tensor]:
    """The logits of every head on its own feature."""
    read = _read(said, taps, task, batch)
    return [head(feature) for head, feature in zip(heads, read, strict=True)]


def _read(said: Outputs, taps: Sequence[str], task: Task, batch: Batch) -> list[Tensor]:
    """The feature of each tap; of frames that the task masks, their mean, (batch, dims)."""
    found = []
    for path in taps:
        feature = said.features[path]
        mask = task.mask(batch, feature) if feature.dim() == 3 else None
        found.append(feature if mask is None else mean_frames(feature, mask))
    return found
