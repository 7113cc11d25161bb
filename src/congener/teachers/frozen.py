"""A live teacher, frozen by construction."""

import hashlib
import re
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from congener.errors import RecipeError
from congener.taps import Taps
from congener.task import Task
from congener.teachers.manner import Manner
from congener.types import Batch, Outputs

if TYPE_CHECKING:
    from congener.teachers.int8 import Int8

__all__ = ["FrozenTeacher", "check_apart", "fingerprint", "structure"]


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

    Attributes:
        model: the network.
        taps: the paths.
        manner: how it runs, in words, such as ``"bf16, channels_last"``.
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
        self.taps = tuple(dict.fromkeys(taps))
        self.batch_statistics = batch_statistics
        for norm in _norms(model) if batch_statistics else ():
            norm.track_running_stats = False  # with training=True: batch statistics, no update
        self.run_as(Manner(), "fp32")

    def __call__(self, batch: Batch) -> Outputs:
        """The logits and tapped tensors for a prepared batch, without gradient."""
        if any(module.training for module in self._modules):
            self._runs.eval()  # whoever holds the network called train() on it
        for norm in self._normalises_by_batch:
            norm.train()
        with torch.no_grad(), self._precision():
            result, features = self._read(lambda: self.task.call(self._runs, batch))
        said = Outputs(self.task.logits(result), features)
        return said if self._way.precision is None else _single(said)

    def run_as(self, way: Manner, manner: str, *, instead: "Int8 | None" = None) -> None:
        """Run so from now on; ``model`` itself stays as it is.

        Args:
            way: how.
            manner: the same in words.
            instead: what runs in place of the network, for int8.
        """
        network: Any = self.model
        if isinstance(getattr(self, "_read", None), Taps):
            self._read.close()
        if way.channels_last or way.compiled:
            network = deepcopy(network)
        if way.channels_last:
            network = network.to(memory_format=torch.channels_last)
        if way.compiled:
            network = torch.compile(network)
        self._way, self.manner = way, manner
        self._runs: nn.Module = network if instead is None else instead
        self._modules = list(self._runs.modules())
        self._read: Any = Taps(network, self.taps) if instead is None else instead.read
        self._normalises_by_batch: list[nn.Module] = (
            _norms(network) if self.batch_statistics else []
        )

    def to(self, device: torch.device) -> "FrozenTeacher":
        """Move the network to a device."""
        self.model.to(device)
        self._runs.to(device)
        return self

    @property
    def networks(self) -> "tuple[FrozenTeacher, ...]":
        """Itself: what can be told how to run."""
        return (self,)

    def _precision(self) -> AbstractContextManager[Any]:
        if self._way.precision is None:
            return nullcontext()
        kind = next((p.device.type for p in self.model.parameters()), "cpu")
        return torch.autocast(kind, torch.bfloat16, enabled=self._way.precision == "bf16")


def _norms(network: nn.Module) -> list[Any]:
    return [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def _single(said: Outputs) -> Outputs:
    """In float32, so that a precision of the teacher's own never reaches the student."""

    def widened(value: Tensor) -> Tensor:
        return value.float() if value.is_floating_point() else value

    features = {path: widened(value) for path, value in said.features.items()}
    return Outputs(widened(said.logits), features)


def check_apart(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a teacher that would freeze the student with itself.

    Args:
        student: the network to train.
        teacher: not frozen yet.

    Raises:
        RecipeError: it holds weights that the student is to train.
    """
    trained = {id(p) for p in student.parameters() if p.requires_grad}
    if not trained.isdisjoint(id(p) for p in teacher.parameters()):
        raise RecipeError(
            "The teacher holds weights of the student, which would be frozen; give a copy of it "
            "(copy.deepcopy)."
        )


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


def structure(model: nn.Module) -> str:
    """What a network is beside its weights, such as the size that a bridge gives images."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(model))
