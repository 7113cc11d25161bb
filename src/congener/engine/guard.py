"""The promise that a loss which is not finite never reaches the weights."""

import math

import torch
from accelerate import Accelerator
from torch import Tensor

from congener.engine.config import FitConfig
from congener.errors import NonFiniteLossError

__all__ = ["Guard", "may_defer"]

UNREAD = 1000
"""Steps after which losses are read even if nobody asks for them."""


def may_defer(config: FitConfig, accelerator: Accelerator) -> bool:
    """Whether a verdict can stay on the device: a GPU's fused kernels read it, of whole tensors."""
    on_gpu = accelerator.device.type == "cuda" and config.shard == "none"
    return config.fused and on_gpu and accelerator.scaler is None


class Guard:
    """Looks at the losses of each step before the optimiser takes it.

    On the CPU it reads them at once. On a GPU reading makes the CPU wait, so there the step's
    verdict stays on the device, where a fused optimiser reads it itself (``found_inf``, as gradient
    scaling uses it) and from the first bad step on leaves the weights alone; the numbers are read,
    and the error raised, when they are next needed. Buffers such as BatchNorm's statistics are no
    weights and do move on until then.

    Args:
        optimizer: what takes the steps.
        name: of the fit, for the message.
        deferred: leave the verdict on the device; for fused optimisers only.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, name: str, *, deferred: bool) -> None:
        self._optimizer, self._name, self._deferred = optimizer, name, deferred
        self._unread: list[tuple[int, list[str], Tensor]] = []
        self._values: dict[str, float] = {}

    def see(self, step: int, losses: dict[str, Tensor]) -> None:
        """Take in the losses of a step, ``total`` among them, whose gradients are there.

        Raises:
            NonFiniteLossError: a loss that is NaN or infinite, of this step or of an unread one.
        """
        dtype = losses["total"].dtype
        values = torch.stack([value.detach().to(dtype) for value in losses.values()])
        self._unread.append((step, list(losses), values))
        if self._deferred:
            bad = (~values.isfinite()).any().float()
            before = getattr(self._optimizer, "found_inf", None)
            found = bad if before is None else torch.maximum(before, bad)
            self._optimizer.found_inf = found  # type: ignore[attr-defined]
        if not self._deferred or len(self._unread) == UNREAD:
            self.read()

    def read(self) -> dict[str, float]:
        """The losses of the last step that was seen, as numbers.

        Raises:
            NonFiniteLossError: as for :meth:`see`; the first bad step and its culprit are named.
        """
        unread, self._unread = self._unread, []
        if unread:
            numbers = iter(torch.cat([values for *_, values in unread]).cpu().tolist())
        for step, names, _ in unread:
            self._values = dict(zip(names, numbers, strict=False))  # its own share of them
            self._check(step)
        return dict(self._values)

    def _check(self, step: int) -> None:
        bad = [term for term, value in self._values.items() if not math.isfinite(value)]
        if bad:
            culprit = next((term for term in bad if term != "total"), bad[0])
            raise NonFiniteLossError(
                f"The loss term {culprit!r} became {self._values[culprit]} at step {step} of "
                f"{self._name!r}; the weights were left as they were before it. Lower lr or the "
                "term's weight, clip gradients, or train in fp32."
            )
