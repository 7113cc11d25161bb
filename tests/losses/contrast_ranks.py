"""What the processes of ``test_contrast_ranks.py`` do."""

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from congener.conformance.table.case import pooled
from congener.losses import CRDLoss, class_means, crd_contrast_index

SAMPLES, STEPS = 13, 3
LABELS = torch.arange(SAMPLES) % 4
INDEX = torch.tensor([3, 0, 3, 7, 1, 0, 8])  # repeats within a rank and across both


def crd() -> CRDLoss:
    torch.manual_seed(0)
    return CRDLoss(6, 6, SAMPLES, 5, temperature=0.5).double()


def run(loss: CRDLoss | DistributedDataParallel, own: slice) -> list[Tensor]:
    """Some steps of training; the values."""
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    values = []
    for step in range(STEPS):
        student, teacher = (x[own] for x in pooled(step))
        index = (INDEX[own] + step) % SAMPLES
        chosen = crd_contrast_index(index, LABELS, step=step, negatives=6)
        value = loss(student, teacher, index, chosen)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.detach())
    return values


def means(own: slice) -> Tensor:
    return class_means(pooled(9)[0][own], (INDEX % 3)[own], 3)


def work(rank: int, sizes: tuple[int, ...]) -> dict[str, Any]:
    warnings.simplefilter("error")
    dist.init_process_group("gloo")
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    loss = crd()
    values = run(DistributedDataParallel(loss), own)
    return {"values": values, "state": loss.state_dict(), "means": means(own)}
