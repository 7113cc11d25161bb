"""Accelerate's view of the machine, and of the processes that train together."""

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState

from congener.engine.config import FitConfig

__all__ = ["build_accelerator", "process_state"]


def process_state(config: FitConfig) -> PartialState:
    """The processes that train together, on the device that ``config`` asks for.

    Without a device to speed it up, ``auto`` is the CPU said aloud: Accelerate joins processes
    through gloo only then, and would otherwise let each train the whole run alone.
    """
    cpu = config.device == "cpu" or not torch.accelerator.is_available()
    state = PartialState(cpu=cpu)
    if (state.device.type == "cpu") != cpu and state.num_processes == 1:
        PartialState._reset_state()  # an earlier fit of this process asked for the other device
        state = PartialState(cpu=cpu)
    return state


def build_accelerator(config: FitConfig) -> Accelerator:
    """Accelerate's view of the machine, for one fit (its shared state is made anew)."""
    AcceleratorState._reset_state()
    state = process_state(config)
    precision = "no" if config.precision == "fp32" else config.precision
    return Accelerator(mixed_precision=precision, cpu=state.device.type == "cpu")
