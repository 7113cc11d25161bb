"""What a network costs: parameters, multiply-accumulates, file size, latency."""

import statistics
import time
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from congener.task import Task
from congener.types import Batch

__all__ = ["cost"]


def cost(model: nn.Module, task: Task, sample: Batch) -> dict[str, Any]:
    """The cost of a network on one prepared sample, on the CPU.

    Returns:
        ``parameters``; ``macs``, multiply-accumulates of matrix products and convolutions (half
        the floating-point operations); ``bytes`` of its tensors; ``latency_ms``, the median of 30
        forwards of one sample with one thread after 5 that are not counted.
    """
    model = model.eval()
    tensors = list(model.state_dict().values())
    threads = torch.get_num_threads()
    times = []
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            with FlopCounterMode(display=False) as counter:
                task.call(model, sample)
            for _ in range(35):
                started = time.perf_counter()
                task.call(model, sample)
                times.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "macs": counter.get_total_flops() // 2,
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        "latency_ms": round(statistics.median(times[5:]) * 1000, 4),
    }
