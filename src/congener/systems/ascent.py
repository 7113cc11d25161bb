"""Moving samples to where two networks disagree more, along the gradient by the samples."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from congener.errors import RecipeError, did_you_mean
from congener.ops.checks import check_choice
from congener.taps import still
from congener.types import Batch

__all__ = ["Ascent", "still"]


@dataclass(frozen=True, slots=True)
class Ascent:
    """How a sample climbs the disagreement D of two networks.

    Args:
        divergence: D, as of :func:`congener.losses.backward_divergence`; ours.
        step_size: η, finite and at least 0; ours.
        steps: n, at least 0; ours.
        normalise: the direction: the gradient, or sample by sample the gradient over its norm,
            ``"l2"``, or the signs of it, ``"sign"``; ours.
        clamp: the lowest and the highest value after a step, as prepared; default: no limit.
        entry: which entry of a batch moves: floating point, (batch, ...).
        mask: the entry that marks what of it may move, boolean, with the first axes of the entry:
            (batch, tokens) without padding, say; default: all.

    Raises:
        RecipeError: a negative or infinite size, a negative number of steps, limits out of order.
        ValueError: an unknown divergence or normalisation.
    """

    divergence: Literal["l2_logits", "l2_prob", "kl"] = "l2_logits"
    step_size: float = 0.01
    steps: int = 1
    normalise: Literal["none", "l2", "sign"] = "none"
    clamp: tuple[float, ...] | None = None
    entry: str = "image"
    mask: str | None = None

    def __post_init__(self) -> None:
        check_choice("divergence", self.divergence, ("l2_logits", "l2_prob", "kl"))
        check_choice("normalise", self.normalise, ("none", "l2", "sign"))
        if not (0 <= self.step_size < math.inf and self.steps >= 0):
            raise RecipeError(
                "The ascent needs a finite step_size and a number of steps of at least 0, not "
                f"{self.step_size} and {self.steps}."
            )
        if self.clamp is not None and not (len(self.clamp) == 2 and self.clamp[0] < self.clamp[1]):
            raise RecipeError(f"clamp must be two numbers, [low, high], not {self.clamp}.")

    def check(self, batch: Batch) -> None:
        """Refuse batches that hold nothing to move.

        Raises:
            RecipeError: the entry or the mask is not there, or cannot be used.
        """
        for name in (self.entry, self.mask):
            if name is not None and not isinstance(batch.get(name), Tensor):
                names = [key for key, value in batch.items() if isinstance(value, Tensor)]
                raise RecipeError(
                    f"A batch holds no tensor {name!r} to climb with; {did_you_mean(name, names)}"
                )
        x = batch[self.entry]
        if not x.is_floating_point() or x.dim() < 2:
            raise RecipeError(
                f"Samples climb along a gradient, so the entry {self.entry!r} must be floating "
                f"point, (batch, ...), not {x.dtype} {tuple(x.shape)}; name one that is, such as "
                "the embeddings of tokens."
            )
        may = x if self.mask is None else batch[self.mask]
        if self.mask is not None and (may.dtype != torch.bool or may.shape != x.shape[: may.dim()]):
            raise RecipeError(
                f"The entry {self.mask!r}, {may.dtype} {tuple(may.shape)}, must be boolean with "
                f"the first axes of {self.entry!r} {tuple(x.shape)}; give one for each position."
            )

    def __call__(self, batch: Batch, disagreement: Callable[[Batch], Tensor]) -> Tensor:
        """Move the samples of a batch.

        Args:
            batch: a prepared batch.
            disagreement: of a batch, the sum of D over its samples, with gradient to the entry.

        Returns:
            x′, without a graph, of the entry's shape.

        Raises:
            RecipeError: the networks do not read the entry.
        """
        x: Tensor = batch[self.entry].detach()
        may = None if self.mask is None else batch[self.mask]
        for _ in range(self.steps):
            slope = self._slope(batch | {self.entry: x.requires_grad_()}, disagreement)
            x = self._stepped(x.detach(), slope if may is None else _where(may, slope))
        return x

    def _slope(self, batch: Batch, disagreement: Callable[[Batch], Tensor]) -> Tensor:
        with torch.enable_grad():
            total, x = disagreement(batch), batch[self.entry]
        if not total.requires_grad:
            raise RecipeError(
                f"The networks do not read the entry {self.entry!r}, or pass no gradient to it; "
                "name the entry that they read."
            )
        return torch.autograd.grad(total, x)[0]

    def _stepped(self, x: Tensor, slope: Tensor) -> Tensor:
        if self.normalise == "l2":
            slope = F.normalize(slope.flatten(1), dim=1).view_as(slope)
        elif self.normalise == "sign":
            slope = slope.sign()
        moved = x + self.step_size * slope
        return moved if self.clamp is None else moved.clamp(*self.clamp)


def _where(kept: Tensor, x: Tensor) -> Tensor:
    """``x``, and 0 where its first axes are not kept."""
    return torch.where(kept.reshape(*kept.shape, *[1] * (x.dim() - kept.dim())), x, 0)
