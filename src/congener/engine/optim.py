"""Optimisers and learning-rate schedules."""

import bisect
import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from congener.engine.config import FitConfig

__all__ = ["build_optimizer", "build_schedule"]


def build_optimizer(parameters: Iterable[nn.Parameter], config: FitConfig) -> torch.optim.Optimizer:
    """The optimiser of a run over the parameters that require a gradient."""
    trainable = [p for p in parameters if p.requires_grad]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(trainable, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        trainable,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )


def build_schedule(
    optimizer: torch.optim.Optimizer, config: FitConfig, *, steps: int, steps_per_epoch: int
) -> LambdaLR:
    """The schedule, stepped once after every optimiser step."""
    return LambdaLR(optimizer, _factor(config, steps=steps, steps_per_epoch=steps_per_epoch))


def _factor(config: FitConfig, *, steps: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Learning rate at a step, as a fraction of its peak."""
    unit = 1 if config.epochs is None else steps_per_epoch
    milestones = [milestone * unit for milestone in config.milestones]

    def factor(step: int) -> float:
        if step < config.warmup:
            return (step + 1) / config.warmup
        if config.schedule == "multistep":
            return config.gamma ** bisect.bisect_right(milestones, step)
        if config.schedule == "cosine":
            done = (step - config.warmup) / max(1, steps - config.warmup)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return 1.0

    return factor
