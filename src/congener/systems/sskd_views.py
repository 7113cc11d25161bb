"""What SSKD shows of each sample: the sample as it is, and three transformed copies of it.

The views of a sample are rows that follow each other: row 4i is sample i untransformed.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from congener.errors import RecipeError, ShapeError
from congener.ops.checks import check_choice
from congener.ops.keyed_random import keyed_uniform
from congener.systems.probe import first_sample
from congener.task import Task
from congener.types import Batch, Progress

__all__ = ["VIEWS", "Transform", "Views", "untransformed"]

VIEWS = 4
INPUT = "image"
CROPS = int.from_bytes(b"sskdcrop")  # no seed of a run is as large: other draws than the task's

Transform = Literal["rotations", "signal"]
"""How square images or one-dimensional signals are transformed."""


class Views:
    """Lays four views of each sample of a prepared batch under each other.

    Args:
        task: whose samples they are; one is tried at once.
        transform: ``"rotations"`` by 0, 90, 180 and 270 degrees counter-clockwise, of square
            images (channels, side, side); ``"signal"``, of samples (length,) or (channels,
            length): as it is, reversed, negated, reversed and negated.
        crop: of images, the border from which a window of the old size is then cut out of each
            view by itself. It holds what the task makes of a black pixel.

    Raises:
        RecipeError: samples without an image, or a crop that cannot be cut.
        ShapeError: samples that cannot be transformed so.
        ValueError: an unknown transform.
    """

    def __init__(self, task: Task, transform: Transform, crop: int) -> None:
        check_choice("transform", transform, ("rotations", "signal"))
        self.transform, self.crop = transform, crop
        first = first_sample(task)
        if INPUT not in first:
            raise RecipeError(
                f"SSKD transforms what a batch holds as {INPUT!r}, but here it holds "
                f"{', '.join(sorted(first))}; use a system that compares the samples as they are."
            )
        if crop < 0 or (crop and transform == "signal"):
            raise RecipeError(
                f"crop={crop} with transform={transform!r}: a crop is the width of a border of "
                "images, 0 or more; leave it out."
            )
        _transformed(first[INPUT], transform)
        black = first | {INPUT: torch.zeros_like(first[INPUT])}
        self._black = task.prepare(black, train=False, seed=0, epoch=0)[INPUT][..., :1, :1]

    def __call__(self, batch: Batch, progress: Progress) -> Batch:
        """The batch with four rows for each; crops are a function of (step, sample id, view)."""
        views = _transformed(batch[INPUT], self.transform)
        if self.crop:
            draws = keyed_uniform(
                batch["index"], seed=CROPS, epoch=progress.step, count=2 * VIEWS
            ).reshape(-1, 2)
            views = _cropped(views, draws, self._black.to(views), self.crop)
        return _rows(batch, _repeated) | {INPUT: views}


def untransformed(batch: Batch) -> Batch:
    """The rows of a batch of views that are samples as they are."""
    return _rows(batch, lambda rows: rows[::VIEWS])


def _rows(batch: Batch, change: Callable[[Any], Any]) -> Batch:
    """The batch with every entry that holds rows changed."""
    return {k: change(v) if isinstance(v, Tensor | list | tuple) else v for k, v in batch.items()}


def _repeated(rows: Any) -> Any:
    if isinstance(rows, Tensor):
        return rows.repeat_interleave(VIEWS, dim=0)
    return [row for row in rows for _ in range(VIEWS)]


def _transformed(x: Tensor, transform: Transform) -> Tensor:
    shape = tuple(x.shape[1:])
    if transform == "rotations":
        if len(shape) != 3 or shape[1] != shape[2]:
            raise ShapeError(
                "Views by rotation need square images (channels, side, side), but a sample here "
                f"has the shape {shape}; make the images square, or take transform='signal' for "
                "samples (length,) or (channels, length)."
            )
        views = [torch.rot90(x, turns, (-2, -1)) for turns in range(VIEWS)]
    else:
        if len(shape) not in (1, 2) or not x.is_floating_point():
            raise ShapeError(
                "Views of a signal need samples (length,) or (channels, length) of floating "
                f"point, but a sample here has the shape {shape} and the type {x.dtype}; take "
                "transform='rotations' for square images."
            )
        views = [x, x.flip(-1), -x, -x.flip(-1)]
    return torch.stack(views, dim=1).flatten(0, 1)


def _cropped(images: Tensor, draws: Tensor, black: Tensor, pad: int) -> Tensor:
    """Cut a window of the old size out of each image (rows, C, H, W) with a border of ``pad``."""
    count, channels, height, width = images.shape
    canvas = black.expand(count, channels, height + 2 * pad, width + 2 * pad).clone()
    canvas[..., pad:-pad, pad:-pad] = images
    offsets = (draws * (2 * pad + 1)).long()
    along = torch.arange(max(count, channels, height, width), device=images.device)
    rows, columns = offsets[:, :1] + along[:height], offsets[:, 1:] + along[:width]
    sample, channel = along[:count, None, None, None], along[:channels, None, None]
    return canvas[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]
