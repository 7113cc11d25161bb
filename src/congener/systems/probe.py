"""What a network gives at its taps, seen on one sample, to build parts of the right width."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from congener.errors import TapError
from congener.ops.spatial import pooled
from congener.taps import Taps, bare, still
from congener.task import Task
from congener.types import Batch, Outputs

__all__ = ["check_feature", "classifies", "first_sample", "last_linear", "probe"]


def probe(
    network: nn.Module, task: Task, paths: Sequence[str] = (), *, batch: Batch | None = None
) -> Outputs:
    """Run a network, in evaluation mode and without gradient, on the first test sample.

    Args:
        network: any module; its mode and its device stay as they are.
        task: whose sample it is, and how the network is called.
        paths: taps to read.
        batch: run it on this prepared batch instead.

    Returns:
        Logits (1, classes) and the tapped tensors, on the network's device.

    Raises:
        TapError: a tap that does not exist or gives no tensor.
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    batch = first_sample(task) if batch is None else batch
    batch = {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}
    taps = Taps(network, paths)
    with still(network), torch.no_grad(), taps:
        result, features = taps(lambda: task.call(network, batch))
    return Outputs(task.logits(result), features)


def first_sample(task: Task) -> Batch:
    """The first test sample as a prepared batch of one."""
    data = task.splits["test"]
    whole = getattr(data, "__getitems__", None)
    with torch.random.fork_rng(devices=[]):  # the transforms of the data may draw
        batch = task.collate(whole([0]) if whole is not None else [data[0]])
    batch.setdefault("index", torch.tensor([0]))
    return task.prepare(batch, train=False, seed=0, epoch=0)


def check_feature(tap: str, feature: Tensor) -> None:
    """What a tap gives must be a feature with channels.

    Raises:
        TapError: it is not.
    """
    if feature.dim() < 2 or not feature.is_floating_point():
        raise TapError(
            f"The tap {tap!r} gives {tuple(feature.shape)} of {feature.dtype}, which is no feature "
            "(batch, channels) or (batch, channels, ...) of floating point; tap another module."
        )


def last_linear(network: nn.Module, classes: int) -> nn.Linear | None:
    """The last linear layer of a network that has so many outputs."""
    layers = [m for m in bare(network).modules() if isinstance(m, nn.Linear)]
    return next((layer for layer in reversed(layers) if layer.out_features == classes), None)


def classifies(classifier: nn.Module, feature: Tensor, logits: Tensor) -> bool:
    """Whether a module gives these logits for the mean of a feature over its positions."""
    try:
        with torch.no_grad():
            again = classifier(pooled(feature))
        return torch.allclose(again, logits, rtol=1e-4, atol=1e-4)
    except RuntimeError:  # it was made for other channels, or gives something else
        return False
