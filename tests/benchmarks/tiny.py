"""Loops and losses so small that a race of them takes a second."""

import torch
from torch import Tensor, nn


def train(tick, *, lr: float = 0.1, weight: float = 1.0) -> None:
    torch.manual_seed(0)
    net, data = nn.Linear(4, 2), torch.randn(8, 4)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    while True:
        optimizer.zero_grad()
        (weight * net(data).square().mean()).backward()
        optimizer.step()
        tick(net)


def fails(tick) -> None:
    raise RuntimeError("no such loop")


def numbers() -> Tensor:
    return torch.arange(6.0)


def double(given: Tensor) -> list[Tensor]:
    return [2 * given]
