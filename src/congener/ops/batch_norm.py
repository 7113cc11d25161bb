"""Batch normalisation over exactly the samples that count."""

import torch
from torch import Tensor, nn

from congener.ops.collectives import Scope, all_sum, check_scope
from congener.ops.precision import upcast
from congener.ops.reduction import blank_rows

__all__ = ["BatchNorm"]


class BatchNorm(nn.Module):
    """Batch normalisation of maps whose statistics are those of the unmasked samples in scope.

    In one process, without a mask, it is ``nn.BatchNorm2d``. With a mask the other rows are as if
    absent; over several processes the batch is the global batch. A batch without any spread gives
    the bias instead of an error.

    Args:
        channels: of the maps.
        eps: added to the variance.
        momentum: how far each batch moves the running statistics.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self, channels: int, *, eps: float = 1e-5, momentum: float = 0.1, scope: Scope = "global"
    ) -> None:
        super().__init__()
        check_scope(scope)
        self.eps, self.momentum, self.scope = eps, momentum, scope
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise (batch, channels, height, width), at least float32; masked rows are any."""
        (x,) = upcast(blank_rows(x, mask))
        if self.training:
            centred, variance = self._statistics(x, mask)
        else:
            centred = x - _along_channels(self.running_mean)
            variance = self.running_var.to(x.dtype)
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * _along_channels(scale) + _along_channels(self.bias)

    def _statistics(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        kept = torch.full((), x.shape[0], dtype=x.dtype, device=x.device)
        kept = kept if mask is None else mask.sum(dtype=x.dtype)
        rows = all_sum(kept, scope=self.scope)
        count = (rows * x.shape[2:].numel()).clamp(min=1)
        mean = all_sum(x.sum(dim=(0, 2, 3)), scope=self.scope) / count
        centred = blank_rows(x - _along_channels(mean), mask)
        variance = all_sum(centred.square().sum(dim=(0, 2, 3)), scope=self.scope) / count
        with torch.no_grad():
            step = self.momentum * (rows > 0).to(self.running_mean.dtype)
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), step)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), step)
            self.num_batches_tracked.add_(1)
        return centred, variance

    def extra_repr(self) -> str:
        """Name the settings."""
        return f"{len(self.weight)}, eps={self.eps}, momentum={self.momentum}, scope={self.scope!r}"


def _along_channels(x: Tensor) -> Tensor:
    return x.reshape(1, -1, 1, 1)
