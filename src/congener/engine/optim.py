"""Optimisers and learning-rate schedules."""

import bisect
import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from congener.engine.config import FitConfig
from congener.errors import RecipeError

__all__ = ["build_optimizer", "build_schedule"]

CPU = torch.device("cpu")


def build_optimizer(
    parameters: Iterable[nn.Parameter], config: FitConfig, device: torch.device = CPU
) -> torch.optim.Optimizer:
    """The optimiser of a run over the parameters that require a gradient, for a device.

    Raises:
        RecipeError: ``fused`` where there is no fused optimiser.
    """
    trainable = [p for p in parameters if p.requires_grad]
    if config.fused:
        _check_fused({p.dtype for p in trainable}, config, device)
    return _optimizer(trainable, config)


def _optimizer(trainable: list[nn.Parameter], config: FitConfig) -> torch.optim.Optimizer:
    fused = config.fused or None  # torch's own default is not False
    if config.optimizer == "adamw":
        return torch.optim.AdamW(
            trainable, lr=config.lr, weight_decay=config.weight_decay, fused=fused
        )
    return torch.optim.SGD(
        trainable,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        fused=fused,
    )


def _check_fused(dtypes: set[torch.dtype], config: FitConfig, device: torch.device) -> None:
    """Let it step one number of each type on the device, which tells before the first step."""
    for dtype in dtypes:
        number = nn.Parameter(torch.zeros(1, dtype=dtype, device=device))
        number.grad = torch.zeros_like(number)
        try:
            _optimizer([number], config).step()
        except RuntimeError as error:
            raise RecipeError(
                f"fused: torch has no fused {config.optimizer} for {dtype} on {device.type} "
                f"({str(error).splitlines()[0]}); leave `fused` out."
            ) from error


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
