"""Networks that run compiled while they are trained, and are themselves before and after.

A trial on samples of the fit compiles what its steps will need, so that a compiler which is
missing, or cannot do it, is known before the first step: the fit then goes on without.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset

from congener.engine.config import FitConfig
from congener.engine.feed import evaluation_batches, in_training, size
from congener.system import System
from congener.taps import compiled
from congener.task import Task
from congener.types import Batch, Progress

__all__ = ["compiled_step"]

OPTIONS: dict[str, Any] = {"options": {"fallback_random": True}}
"""For ``torch.compile``: random layers draw what they would draw otherwise."""


@contextmanager
def compiled_step(
    system: System,
    task: Task,
    config: FitConfig,
    accelerator: Accelerator,
    *,
    train: Dataset[Any],
    progress: Progress,
    tell: Callable[..., None],
) -> Iterator[Callable[[], AbstractContextManager[Any]]]:
    """Where ``config`` asks for it, the networks that a step trains run compiled in the block.

    What came of it is an event: ``compiled``, with the seconds that it took and the largest
    difference of the logits, a tapped tensor or the gradient to what they are otherwise, relative
    to its largest entry; or ``not_compiled``, with the reason.

    Args:
        system: what is trained, in training mode.
        task: whose batches are tried.
        config: the settings of the fit.
        accelerator: of the fit.
        train: the training set.
        progress: where the fit starts.
        tell: where the event goes.

    Yields:
        What makes a context in which everything runs as it is written.
    """
    if not config.compile or progress.step == progress.steps:
        yield nullcontext
        return
    started = time.perf_counter()
    with ExitStack() as stack:
        stack.callback(torch.compiler.reset)  # what is kept counts towards the limits of later fits
        try:
            batches = _trial_batches(task, config, accelerator, train)
            networks: list[nn.Module] = []
            with _called(system, networks):
                wanted = _try(system, batches, progress, config, accelerator)
            stack.enter_context(compiled(networks, **OPTIONS))
            found = _try(system, batches, progress, config, accelerator)
        except Exception as error:  # noqa: BLE001  (of a compiler; the networks run without)
            stack.close()
            reason = " ".join(str(error).split("\n")[:2])  # who failed, and at what
            tell("not_compiled", reason=reason or type(error).__name__)
        else:
            seconds = round(time.perf_counter() - started, 1)
            difference = max(map(_difference, found, wanted))
            tell("compiled", seconds=seconds, difference=difference)
        yield lambda: torch.compiler.set_stance("force_eager")


def _trial_batches(
    task: Task, config: FitConfig, accelerator: Accelerator, train: Dataset[Any]
) -> list[Batch]:
    """A batch of the size that a process sees, and a smaller one where there are such."""
    pieces = accelerator.num_processes * config.accumulate
    sizes = [min(size(train), -(-config.batch_size // pieces))]
    if sizes[0] > 2 and (config.batch_size % pieces or not config.drop_last):
        sizes.append(sizes[0] - 1)
    raw = [
        next(evaluation_batches(task, train, batch_size=count, share=(0, 1), workers=0))
        for count in sizes
    ]
    return [in_training(task, each, config, accelerator.device, seed=0, view=0) for each in raw]


@contextmanager
def _called(system: System, found: list[nn.Module]) -> Iterator[None]:
    """Fill ``found`` with the modules of a system that run by themselves, not within another."""
    running: list[nn.Module] = []

    def enter(module: nn.Module, _args: Any) -> None:
        if not running and module not in found:
            found.append(module)
        running.append(module)

    def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
        running.pop()

    with ExitStack() as undo:
        for module in set(system.modules()) - {system}:
            undo.callback(module.register_forward_pre_hook(enter).remove)
            undo.callback(module.register_forward_hook(leave).remove)
        yield


def _try(
    system: System,
    batches: list[Batch],
    progress: Progress,
    config: FitConfig,
    accelerator: Accelerator,
) -> list[Tensor]:
    """Of each batch, what a step observes and a gradient of it; the system stays as it is."""
    buffers = {name: value.clone() for name, value in system.named_buffers()}
    learning = [parameter for parameter in system.parameters() if parameter.requires_grad]
    results: list[Tensor] = []
    try:
        for batch in batches:
            results += _tried(system, batch, progress, config, accelerator, learning)
            _put_back(system, buffers)
    finally:
        _put_back(system, buffers)
    return results


def _tried(
    system: System,
    batch: Batch,
    progress: Progress,
    config: FitConfig,
    accelerator: Accelerator,
    learning: list[nn.Parameter],
) -> list[Tensor]:
    """What a step observes of a batch, and a gradient of it."""
    cuda = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), accelerator.autocast():
        seen = system.views(batch, progress)
        if config.accumulate > 1:
            with torch.no_grad():
                system.observe(seen)
        observed = system.observe(seen)
    outputs = [x for x in (observed.logits, *observed.features.values()) if x.requires_grad]
    gradients = torch.autograd.grad(
        [output.float().square().mean() for output in outputs], learning, allow_unused=True
    )
    gradient = torch.cat([each.flatten() for each in gradients if each is not None])
    return [*(output.detach() for output in outputs), gradient]


def _put_back(system: System, buffers: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in system.named_buffers():
            value.copy_(buffers[name])


def _difference(found: Tensor, wanted: Tensor) -> float:
    """The largest one, relative to the largest entry."""
    largest = wanted.abs().max().clamp(min=torch.finfo(wanted.dtype).tiny)
    return float((found - wanted).abs().max() / largest)
