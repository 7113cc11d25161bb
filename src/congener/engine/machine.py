"""Accelerate's view of the machine, and of the processes that train together."""

import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from congener.engine.config import FitConfig
from congener.errors import CongenerError, DataError, RecipeError, RunError, first_difference

__all__ = [
    "any_process",
    "build_accelerator",
    "check_alike",
    "check_together",
    "company",
    "interrupts",
    "on_first",
    "process_state",
]

R = TypeVar("R")
AGREE_EVERY = 10  # steps between the questions "was anyone interrupted?" of several processes
PATIENCE = timedelta(minutes=30)  # how long a process waits for another one that says nothing


def process_state(config: FitConfig) -> PartialState:
    """The processes that train together, on the device that ``config`` asks for.

    Without a device to speed it up, ``auto`` is the CPU said aloud: Accelerate joins processes
    through gloo only then, and would otherwise let each train the whole run alone.

    Raises:
        RecipeError: a precision that this device does not have.
    """
    cpu = config.device == "cpu" or not torch.accelerator.is_available()
    state = PartialState(cpu=cpu, timeout=PATIENCE)
    if (state.device.type == "cpu") != cpu and state.num_processes == 1:
        PartialState._reset_state()  # an earlier fit of this process asked for the other device
        state = PartialState(cpu=cpu, timeout=PATIENCE)
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


def on_first(action: Callable[[], R]) -> R:
    """What the first process makes of ``action``, on all of them, and what goes wrong with it.

    So one process alone reads and writes the run folder, which the others need not see.
    """
    outcome: list[Any] = [None, None]
    joined = _processes() > 1
    if not joined or dist.get_rank() == 0:
        try:
            outcome[0] = action()
        except (CongenerError, OSError) as error:
            outcome[1] = error
    if joined:
        dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    result: R = outcome[0]
    return result


def check_alike(facts: Mapping[str, Any]) -> None:
    """Refuse processes that were started on different things, which would wait for ever.

    Raises:
        RunError: the first fact that is another one on some process than on the first; on all.
    """
    everyone: list[Any] = [facts] * _processes()
    if len(everyone) > 1:
        dist.all_gather_object(everyone, facts)
    for rank, theirs in enumerate(everyone):
        for name, value in everyone[0].items():
            if theirs[name] != value:
                mine, other = first_difference(str(value), str(theirs[name]))
                raise RunError(
                    f"The processes differ in {name}: {mine!r} on process 0, {other!r} on process "
                    f"{rank}; start all of them on the same recipe, data and packages."
                )


def check_together(config: FitConfig, *, seed: int, train: int, test: int | None) -> None:
    """Refuse what the processes of a fit cannot share: other settings, or too few samples.

    Args:
        config: the settings of this process.
        seed: the seed of this process.
        train: training samples that this process has.
        test: samples to evaluate on that it has, if any.

    Raises:
        RunError: as :func:`check_alike`.
        DataError: fewer samples than processes in a batch, or to evaluate on.
    """
    settings = config.model_dump_json(indent=1, exclude={"threads", "workers"})
    facts = {"settings": settings, "seed": seed, "training samples": train, "test samples": test}
    check_alike(facts)
    processes = _processes()
    if config.batch_size < processes:
        raise DataError(
            f"A batch of {config.batch_size} samples is too small for {processes} processes, each "
            "of which takes a share; raise batch_size or start fewer processes."
        )
    if test is not None and test < processes:
        raise DataError(
            f"{test} samples to evaluate on are too few for {processes} processes, each of which "
            "takes a share; start fewer processes or evaluate on more."
        )


@contextmanager
def company() -> Iterator[None]:
    """Say it in a sentence when another process is gone, or silent for too long.

    Raises:
        RunError: instead of the error of a message that was never answered.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, CongenerError) or not _of_a_message(error):
            raise
        reason = re.sub(r"\[/\S+\] ", "", str(error)).split(". ")[0].splitlines()[0]
        raise RunError(
            f"Another process ended, or said nothing for {PATIENCE.seconds // 60} minutes "
            f"({reason}); see what it printed. What was saved stays: start all of them again with "
            "--resume (in Python: resume=True)."
        ) from error


def _of_a_message(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


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
