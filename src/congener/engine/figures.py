"""What a step and an evaluation came to, as numbers."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from congener.errors import NonFiniteLossError
from congener.system import Balance
from congener.task import Task

__all__ = ["History", "balance_figures", "told"]


@contextmanager
def told(step: int, name: str) -> Iterator[None]:
    """Say in which step a loss refused what it was given."""
    try:
        yield
    except NonFiniteLossError as error:
        raise NonFiniteLossError(
            f"{str(error).removesuffix('.')} (step {step} of {name!r}; the weights were left as "
            "they were before it)."
        ) from error


def balance_figures(balance: Balance) -> dict[str, dict[str, float | None]]:
    """The balance as numbers; ``None`` for what is not defined."""
    numbers = {
        name: {key: float(value) for key, value in figures.items()}
        for name, figures in balance.items()
    }
    return {
        name: {key: value if math.isfinite(value) else None for key, value in figures.items()}
        for name, figures in numbers.items()
    }


class History:
    """The last and the best evaluation, and the time spent in steps."""

    def __init__(self, task: Task) -> None:
        self._metric, self._sign = task.metric, 1.0 if task.higher_is_better else -1.0
        self.last: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.seconds = 0.0

    def add(self, step: int, figures: dict[str, float]) -> None:
        """Take in the figures of an evaluation."""
        self.last = figures
        value = figures[self._metric]
        if not self.best or self._sign * (value - self.best[self._metric]) > 0:
            self.best = {self._metric: value, "step": step}

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"last": self.last, "best": self.best, "seconds": self.seconds}

    def restore(self, state: dict[str, Any]) -> None:
        """As :meth:`state` had it."""
        self.last, self.best = state["last"], state["best"]
        self.seconds = state["seconds"]
