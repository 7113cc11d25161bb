"""How a weight or a temperature changes while training goes on."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

__all__ = ["Schedule"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """A factor that follows training: constant, linear or cosine, and 0 after a given epoch.

    Give ``epochs`` or ``steps``, over which the factor goes from ``start`` to ``end``; without
    either it takes the whole training. By ``epochs`` it moves once an epoch, and has arrived in the
    last of them: ``Schedule("linear", epochs=20)`` is min(epoch / 20, 1) with epochs counted from
    1, the warm-up of DKD and ReviewKD. By steps it moves every step, likewise.

    Args:
        shape: ``"constant"`` stays at ``end``, ``"linear"`` and ``"cosine"`` go there.
        start: the factor before the first step; 0 is a warm-up.
        end: the factor from the end of the way on.
        epochs: length of the way in epochs.
        steps: length of the way in optimiser steps.
        stop: the first epoch (or step, where ``steps`` is given), counted from 0, in which the
            factor is 0 and stays so.

    Raises:
        ValueError: an unknown shape, a length that is not positive, or both lengths.

    >>> warm_up = Schedule("linear", epochs=4)
    >>> [warm_up.factor(0, 600, epoch) for epoch in range(6)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    """

    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}

    shape: Literal["constant", "linear", "cosine"] = "constant"
    start: float = 0.0
    end: float = 1.0
    epochs: int | None = None
    steps: int | None = None
    stop: int | None = None

    def __post_init__(self) -> None:
        if self.shape not in ("constant", "linear", "cosine"):
            raise ValueError(
                f"shape must be one of 'constant', 'linear', 'cosine', not {self.shape!r}."
            )
        if self.epochs is not None and self.steps is not None:
            raise ValueError("a schedule has `epochs` or `steps`, not both")
        for name in ("epochs", "steps", "stop"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} of a schedule must be at least 1, not {value}")

    def factor(self, step: int, steps: int, epoch: int) -> float:
        """The factor in a step.

        Args:
            step: the optimiser step, counted from 0.
            steps: how many there will be.
            epoch: the epoch, counted from 0.
        """
        by_step = self.steps is not None
        if self.stop is not None and (step if by_step else epoch) >= self.stop:
            return 0.0
        if self.shape == "constant":
            return self.end
        if self.epochs is not None:
            way = (epoch + 1) / self.epochs
        else:
            way = (step + 1) / (self.steps or steps)
        way = min(way, 1.0)
        if self.shape == "cosine":
            way = (1 - math.cos(math.pi * way)) / 2
        return self.start + (self.end - self.start) * way

    def __str__(self) -> str:
        """What it does, in words."""
        unit = "steps" if self.steps is not None else "epochs"
        length = self.steps or self.epochs
        words = f"{self.end:g}"
        if self.shape != "constant":
            over = "the whole training" if length is None else f"{length} {unit}"
            words = f"{self.start:g} → {self.end:g}, {self.shape} over {over}"
        return words if self.stop is None else f"{words}, 0 after {self.stop} {unit}"
