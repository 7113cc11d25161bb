"""What the processes of ``test_losses_distributed.py`` do; every case in one start of them."""

import warnings
from typing import Any

import torch
import torch.distributed as dist
from tests.contract.projectors import run_modules
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from congener import losses
from congener.conformance.table import LOSSES, LossCase
from congener.ops.collectives import (
    all_sum,
    batch_size,
    gather_rows,
    global_mean,
    lone_sample_expected,
)

REDUCTIONS = ("mean", "sum", "none")
TYPES = {torch.float64: REDUCTIONS, torch.float32: ("mean",)}
ROWS = 7


def mask_of(rows: int = ROWS) -> Tensor:
    return torch.arange(rows) % 3 != 1


def weights_of(rows: int = ROWS) -> Tensor:
    """Any other weight for each contribution, so that each one's gradient counts."""
    return torch.linspace(1, 2, rows, dtype=torch.float64)


def own_rows(sizes: tuple[int, ...], rank: int) -> slice:
    before = sum(sizes[:rank])
    return slice(before, before + sizes[rank])


def inputs_of(case: LossCase, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    student, teacher = case.make(21, batch=ROWS)
    return student.to(dtype), teacher.to(dtype)


def weighed(value: Tensor, own: slice = slice(None)) -> Tensor:
    """A scalar to differentiate: contributions count with any other weight each."""
    return (value * weights_of()[own]).sum() if value.dim() else value


def score_losses(own: slice) -> dict[str, Any]:
    """Value, and gradient of what each rank makes of it, of every loss."""
    results: dict[str, Any] = {}
    for name, case in LOSSES.items():
        for dtype, reductions in TYPES.items():
            student, teacher = inputs_of(case, dtype)
            for masked in (False, True):
                mask = mask_of()[own] if masked else None
                for reduction in reductions:
                    mine = student[own].clone().requires_grad_()
                    value = case.call(mine, teacher[own], mask=mask, reduction=reduction)
                    weighed(value, own).backward()
                    results[f"{name}/{dtype}/{masked}/{reduction}"] = (value.detach(), mine.grad)
        student, teacher = inputs_of(case)
        with torch.no_grad(), lone_sample_expected():
            value = case.call(student[own], teacher[own], scope="local")
        results[f"{name}/local"] = value
    return results


def score_temperatures(own: slice) -> dict[str, Any]:
    student, teacher = LOSSES["cskd"].make(22, batch=ROWS)
    return {
        "temperatures": losses.cswt_temperatures(student[own], teacher[own]),
        "masked temperatures": losses.cswt_temperatures(
            student[own], teacher[own], mask=mask_of()[own]
        ),
        "local temperatures": losses.cswt_temperatures(student[own], teacher[own], scope="local"),
    }


def use_collectives(own: slice, rank: int) -> dict[str, Any]:
    values = torch.arange(1.0, ROWS + 1, dtype=torch.float64)[own].requires_grad_()
    mean = global_mean(values)
    (mean**2).backward()
    masked = values.detach().clone()
    masked[~mask_of()[own]] = torch.nan
    masked.requires_grad_()
    masked_mean = global_mean(masked, mask_of()[own])
    masked_mean.backward()
    none_left = values.detach().clone().requires_grad_()
    nothing = global_mean(none_left, torch.zeros_like(none_left, dtype=torch.bool))
    nothing.backward()
    # One rank alone has a gradient to give; the others must take part all the same.
    lone = values.detach().clone().requires_grad_(rank == 0)
    global_mean(lone).backward()
    rows = torch.arange(2.0 * ROWS, dtype=torch.float64).reshape(ROWS, 2)[own].requires_grad_()
    everyone, place = gather_rows(rows)
    (everyone * weights_of().unsqueeze(1) * (rank + 1)).sum().backward()
    flags, _ = gather_rows(mask_of()[own])
    x = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(all_sum(x) ** 3, x, create_graph=True)
    (second,) = torch.autograd.grad(first, x)
    return {
        "mean": (mean.detach(), values.grad),
        "masked mean": (masked_mean.detach(), masked.grad),
        "nothing": (nothing.detach(), none_left.grad),
        "lone": lone.grad,
        "local mean": global_mean(values.detach(), scope="local"),
        "gathered": (everyone.detach(), place, rows.grad),
        "flags": flags,
        "count": batch_size(values.detach(), mask_of()[own]),
        "derivatives": (first.detach(), second),
    }


def train_with_ddp(own: slice) -> dict[str, Any]:
    """Gradients of a small network's parameters, as DDP leaves them."""
    results = {}
    inputs, _ = LOSSES["kd"].make(23, batch=ROWS)
    _, teacher = LOSSES["kd"].make(24, batch=ROWS)
    for name in ("kd", "sp", "cskd", "dist"):
        student = DistributedDataParallel(small_network())
        LOSSES[name].call(student(inputs[own]), teacher[own]).backward()
        results[f"ddp {name}"] = [p.grad for p in student.parameters()]
    return results


def small_network() -> nn.Module:
    torch.manual_seed(25)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 5)).double()


def work(rank: int, sizes: tuple[int, ...]) -> dict[str, Any]:
    warnings.simplefilter("error")
    dist.init_process_group("gloo")
    own = own_rows(sizes, rank)
    results = score_losses(own) | score_temperatures(own) | use_collectives(own, rank)
    results |= run_modules(own)
    if len(sizes) == 2:  # the wrapper alone takes seconds to load
        results |= train_with_ddp(own)
    return results
