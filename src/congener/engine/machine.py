"""Accelerate's view of the machine, and of the processes that train together."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from congener.engine.config import FitConfig
from congener.errors import RecipeError

__all__ = ["any_process", "build_accelerator", "interrupts", "process_state"]

AGREE_EVERY = 10  # steps between the questions "was anyone interrupted?" of several processes


def process_state(config: FitConfig) -> PartialState:
    """The processes that train together, on the device that ``config`` asks for.

    Without a device to speed it up, ``auto`` is the CPU said aloud: Accelerate joins processes
    through gloo only then, and would otherwise let each train the whole run alone.

    Raises:
        RecipeError: a precision that this device does not have.
    """
    cpu = config.device == "cpu" or not torch.accelerator.is_available()
    state = PartialState(cpu=cpu)
    if (state.device.type == "cpu") != cpu and state.num_processes == 1:
        PartialState._reset_state()  # an earlier fit of this process asked for the other device
        state = PartialState(cpu=cpu)
    if config.precision == "fp16" and state.device.type == "cpu":
        raise RecipeError("precision fp16 needs a GPU; on the CPU use bf16 or fp32.")
    return state


def build_accelerator(config: FitConfig) -> Accelerator:
    """Accelerate's view of the machine, for one fit (its shared state is made anew)."""
    AcceleratorState._reset_state()
    state = process_state(config)
    # An unused parameter (a spare head) is no error in one process, so it is none in several.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    precision = "no" if config.precision == "fp32" else config.precision
    return Accelerator(
        mixed_precision=precision, cpu=state.device.type == "cpu", kwargs_handlers=[unused]
    )


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into a flag; the second one acts as ever."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handler(_number: int, _frame: FrameType | None) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def any_process(flag: threading.Event, step: int, accelerator: Accelerator) -> bool:
    """Whether any process was interrupted; all of them learn it at the same step."""
    if accelerator.num_processes == 1:
        return flag.is_set()
    if step % AGREE_EVERY:
        return False
    mine = torch.tensor([float(flag.is_set())], device=accelerator.device)
    total: torch.Tensor = accelerator.reduce(mine, "sum")
    return bool(total.item() > 0)
