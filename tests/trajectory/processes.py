"""Run a function in two processes that know each other, as a launcher would start them."""

import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from accelerate.state import AcceleratorState, GradientState, PartialState

__all__ = ["in_two_processes"]


def in_two_processes(folder: Path, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``function(rank, *arguments)`` returned in each of two processes, joined by gloo."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    context = torch.multiprocessing.start_processes(
        _work, args=(str(folder), port, function, arguments), nprocs=2, start_method="fork"
    )
    assert context is None
    return [torch.load(folder / f"{rank}.result", weights_only=False) for rank in range(2)]


def _work(
    rank: int, folder: str, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    torch.set_num_threads(1)
    try:
        result = function(rank, *arguments)
        torch.save(result, Path(folder) / f"{rank}.result")
        dist.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        raise
