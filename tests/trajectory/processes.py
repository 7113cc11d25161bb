"""Run a function in processes that know each other, as a launcher would start them."""

import multiprocessing
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

__all__ = ["in_a_fork", "in_processes", "in_two_processes"]


def in_two_processes(folder: Path, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``function(rank, *arguments)`` returned in each of two processes, joined by gloo."""
    return in_processes(2, folder, function, *arguments)


def in_processes(
    count: int, folder: Path, function: Callable[..., Any], *arguments: Any
) -> list[Any]:
    """What ``function(rank, *arguments)`` returned in each of some processes, joined by gloo."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    context = torch.multiprocessing.start_processes(
        _work, args=(count, folder, port, function, arguments), nprocs=count, start_method="fork"
    )
    assert context is None
    return [torch.load(folder / f"{rank}.result", weights_only=False) for rank in range(count)]


def _work(
    rank: int,
    count: int,
    folder: Path,
    port: int,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    torch.set_num_threads(1)
    try:
        result = function(rank, *arguments)
        torch.save(result, folder / f"{rank}.result")
        if dist.is_initialized():
            dist.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        raise


def in_a_fork(action: Callable[[], Any]) -> Any:
    """What an action returns in a process of its own, whose allocator or settings it may change."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        torch.set_num_threads(1)
        sender.send(action())

    process = context.Process(target=work)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()
