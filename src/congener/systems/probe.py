"""What a network gives at its taps, seen on one sample, to build parts of the right width."""

from collections.abc import Sequence

import torch
from torch import nn

from congener.taps import Taps
from congener.task import Task
from congener.types import Batch, Outputs

__all__ = ["first_sample", "probe"]


def probe(network: nn.Module, task: Task, paths: Sequence[str] = ()) -> Outputs:
    """Run a network, in evaluation mode and without gradient, on the first test sample.

    Args:
        network: any module; its mode and its device stay as they are.
        task: whose sample it is, and how the network is called.
        paths: taps to read.

    Returns:
        Logits (1, classes) and the tapped tensors, on the network's device.

    Raises:
        TapError: a tap that does not exist or gives no tensor.
    """
    modes = {module: module.training for module in network.modules()}
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    batch = first_sample(task)
    batch = {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}
    taps = Taps(network, paths)
    try:
        network.eval()
        with torch.no_grad(), taps:
            result, features = taps(lambda: task.call(network, batch))
    finally:
        for module, training in modes.items():
            module.training = training
    return Outputs(task.logits(result), features)


def first_sample(task: Task) -> Batch:
    """The first test sample as a prepared batch of one."""
    data = task.splits["test"]
    whole = getattr(data, "__getitems__", None)
    with torch.random.fork_rng(devices=[]):  # the transforms of the data may draw
        batch = task.collate(whole([0]) if whole is not None else [data[0]])
    batch.setdefault("index", torch.tensor([0]))
    return task.prepare(batch, train=False, seed=0, epoch=0)
