"""A live teacher, frozen by construction."""

import hashlib
from collections.abc import Iterable

import torch
from torch import nn

from congener.taps import Taps
from congener.task import Task
from congener.types import Batch, Outputs

__all__ = ["FrozenTeacher", "fingerprint"]


class FrozenTeacher:
    """Runs a network on each batch without gradient; nothing can train it or move its statistics.

    It is not a module, so no ``train()``, ``state_dict()``, optimiser or DDP wrapper of a system
    can reach the network within.

    Args:
        model: the trained network; its parameters lose ``requires_grad`` at once.
        task: how the network is called on a batch.
        taps: paths whose tensors the distillation terms read.
        batch_statistics: let BatchNorm normalise by the batch at hand (as the authors of OFD
            choose to) while its running statistics stay as they are; default: off.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        taps: Iterable[str] = (),
        *,
        batch_statistics: bool = False,
    ) -> None:
        self.model = model.requires_grad_(False).eval()
        self.task = task
        self._taps = Taps(model, taps)
        self._normalises_by_batch: list[nn.Module] = []
        if batch_statistics:
            norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
            for norm in norms:
                norm.track_running_stats = False  # with training=True: batch statistics, no update
            self._normalises_by_batch = list(norms)

    def __call__(self, batch: Batch) -> Outputs:
        """The logits and tapped tensors for a prepared batch, without gradient."""
        self.model.eval()  # whoever holds the network may have called train() on it
        for norm in self._normalises_by_batch:
            norm.train()
        with torch.no_grad():
            result, features = self._taps(lambda: self.task.call(self.model, batch))
        return Outputs(self.task.logits(result), features)

    def to(self, device: torch.device) -> "FrozenTeacher":
        """Move the network to a device."""
        self.model.to(device)
        return self


def fingerprint(model: nn.Module) -> str:
    """A hash of every parameter and buffer, to prove that a network did not change.

    >>> net = nn.Linear(2, 2)
    >>> before = fingerprint(net)
    >>> with torch.no_grad():
    ...     _ = net.bias.add_(1e-3)
    >>> fingerprint(net) == before
    False
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
