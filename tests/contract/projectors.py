"""Losses whose projectors normalise over the batch, as each process runs them."""

from typing import Any

import torch
from torch import Tensor, nn

from congener.losses import ABLoss, FitNetsLoss, OFDLoss, ReviewKDLoss, SimKDLoss, SRRLLoss, VIDLoss
from congener.ops.batch_norm import BatchNorm
from congener.ops.collectives import global_mean

ROWS = 7


def maps(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(ROWS, *shape, generator=generator, dtype=torch.float64) + 1


class Normed(nn.Module):
    """A loss of one's own over the normalised rows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 2, 1), BatchNorm(2)

    def forward(self, student: Tensor, _teacher: Tensor, mask: Tensor) -> Tensor:
        return global_mean(self.bn(self.conv(student), mask).sin().flatten(1).sum(dim=1), mask)


def modules() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    made: dict[str, nn.Module] = {
        "norm": Normed(),
        "fitnets": FitNetsLoss((3, 4, 4), (2, 2, 2)),
        "ab": ABLoss((3, 4, 4), (2, 2, 2), reduction="sum"),
        "vid": VIDLoss(3, 2),
        "simkd": SimKDLoss(3, 2),
        "srrl": SRRLLoss(3, 2),
        "ofd": OFDLoss((3,), (2,)),
        "reviewkd": ReviewKDLoss((3, 3), (2, 2), 2),
    }
    return {name: module.double() for name, module in made.items()}


def arguments(name: str, own: slice) -> list[Any]:
    student, small, teacher = maps(8, 3, 4, 4)[own], maps(7, 3, 2, 2)[own], maps(9, 2, 2, 2)[own]
    if name == "srrl":
        return [student, teacher, maps(10, 5)[own], maps(11, 2)[:5]]
    if name == "ofd":
        return [[small], [teacher], [torch.tensor([-0.5, -1.0], dtype=torch.float64)]]
    if name == "reviewkd":
        return [[student, small], [maps(12, 2, 4, 4)[own], teacher]]
    return [student, teacher]


def run_modules(own: slice) -> dict[str, Any]:
    """Value, gradients of the parameters, and running statistics of every module in training."""
    results: dict[str, Any] = {}
    mask = (torch.arange(ROWS) % 3 != 1)[own]
    for name, module in modules().items():
        value = module(*arguments(name, own), mask=mask)
        value.backward()
        buffers = {key: x for key, x in module.state_dict().items() if "running" in key}
        results[f"module {name}"] = (value.detach(), [p.grad for p in module.parameters()], buffers)
    local = BatchNorm(3, scope="local").double()
    local(maps(7, 3, 2, 2)[own])
    results["local statistics"] = [local.running_mean, local.running_var]
    return results
