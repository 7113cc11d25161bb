"""Measure a network on a data set."""

from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset

from congener.engine.feed import evaluation_batches, to_device
from congener.taps import Taps
from congener.task import Task

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
    batch_size: int = 512,
) -> Predictions:
    """Run a network over a whole data set in one process and keep what it said, on the CPU."""
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
            labels.append(batch["labels"].cpu())
            logits.append(task.logits(result).float().cpu())
            if tap is not None:
                features.append(seen[tap].float().cpu())
    model.train(was_training)
    return Predictions(
        torch.cat(labels), torch.cat(logits), torch.cat(features) if features else None
    )
