"""Measure a network on a data set."""

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset

from congener.engine.feed import evaluation_batches, to_device
from congener.taps import Taps
from congener.task import Task
from congener.types import Batch

__all__ = ["Predictions", "evaluate", "predict"]


def evaluate(
    model: nn.Module,
    task: Task,
    dataset: Dataset[Any],
    accelerator: Accelerator,
    *,
    batch_size: int,
    workers: int = 0,
) -> dict[str, float]:
    """The task's figures of ``model`` over a data set, each process taking a share of it."""
    metrics = task.metrics(accelerator.device)
    share = (accelerator.process_index, accelerator.num_processes)
    was_training = model.training
    model.eval()
    with torch.no_grad(), accelerator.autocast():
        for raw in evaluation_batches(
            task, dataset, batch_size=batch_size, share=share, workers=workers
        ):
            batch = to_device(raw, accelerator.device)
            batch = task.prepare(batch, train=False, seed=0, epoch=0)
            metrics.update(task.respond(model, batch), batch)
    model.train(was_training)
    return {name: round(value, 7) for name, value in metrics.compute().items()}


class Predictions(NamedTuple):
    """What a network says about a data set: labels and logits (n, classes), and one tap or none."""

    labels: Tensor
    logits: Tensor
    feature: Tensor | None


def predict(
    model: nn.Module,
    task: Task,
    dataset: Dataset[Any],
    *,
    tap: str | None = None,
    batch_size: int | None = None,
) -> Predictions:
    """Run a network over a whole data set in one process and keep what it said, on the CPU.

    Of logits, what the task's ``per_sample`` tells of each sample is kept.

    Args:
        model: the network.
        task: how it is called.
        dataset: on what.
        tap: whose tensor is kept, too; of tokens, 0 where there is padding.
        batch_size: default: twice what the task evaluates at once.
    """
    batch_size = batch_size or 2 * task.evaluation_batch
    taps = Taps(model, [] if tap is None else [tap])
    device = next(model.parameters()).device
    labels, logits, features = [], [], []
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for raw in evaluation_batches(
            task, dataset, batch_size=batch_size, share=(0, 1), workers=0
        ):
            batch = to_device(raw, device)
            batch = task.prepare(batch, train=False, seed=0, epoch=0)
            result, seen = taps(partial(task.call, model, batch))
            said, known = task.per_sample(task.logits(result), batch)
            labels.append(known.cpu())
            logits.append(said.float().cpu())
            if tap is not None:
                features.append(_counted(task, batch, seen[tap].float()).cpu())
    model.train(was_training)
    return Predictions(torch.cat(labels), torch.cat(logits), _stacked(features))


def _counted(task: Task, batch: Batch, feature: Tensor) -> Tensor:
    """A feature of tokens or frames, 0 where there is padding, which follows the batch."""
    mask = task.mask(batch, feature) if feature.ndim == 3 else None
    return feature if mask is None else feature.masked_fill(~mask.unsqueeze(-1), 0)


def _stacked(features: list[Tensor]) -> Tensor | None:
    """Features of all batches, of which some may be longer than others."""
    if len({feature.shape[1:] for feature in features}) > 1 and features[0].ndim == 3:
        longest = max(feature.shape[1] for feature in features)
        features = [F.pad(each, (0, 0, 0, longest - each.shape[1])) for each in features]
    return torch.cat(features) if features else None
