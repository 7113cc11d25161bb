"""The training loop: one function, ``fit``."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed
from torch.utils.data import Dataset

from congener.engine.accumulate import accumulated_step
from congener.engine.allocator import keep_memory
from congener.engine.checkpoint import (
    check_epochs,
    check_state,
    latest,
    restore_random,
    save_checkpoint,
)
from congener.engine.compiling import compiled_step
from congener.engine.config import FitConfig
from congener.engine.evaluate import evaluate
from congener.engine.feed import epoch_batches, in_training, size, steps_per_epoch
from congener.engine.figures import History, balance_figures, told
from congener.engine.guard import Guard, may_defer
from congener.engine.held import resident
from congener.engine.machine import any_process, build_accelerator, check_together, interrupts
from congener.engine.optim import build_optimizer, build_schedule
from congener.engine.samplers import check_groups
from congener.engine.shards import (
    gather,
    hand_back,
    load_optimizer,
    load_system,
    prepare_system,
    sharded,
)
from congener.engine.teaching import instruct
from congener.errors import CheckpointError, Interrupted
from congener.runlog import RunLog
from congener.system import System
from congener.task import Task
from congener.types import Progress

__all__ = ["FitResult", "fit"]


@dataclass(frozen=True, slots=True)
class FitResult:
    """What training came to: the last evaluation is the result, the best one is for information."""

    metrics: dict[str, float]
    best: dict[str, float]
    steps: int
    seconds: float


def fit(
    system: System,
    task: Task,
    config: FitConfig,
    *,
    train: Dataset[Any],
    test: Dataset[Any] | None,
    labelled: torch.Tensor | None = None,
    groups: torch.Tensor | None = None,
    seed: int = 0,
    name: str = "fit",
    log: RunLog | None = None,
    checkpoint: Path | None = None,
    folder: Path | None = None,
) -> FitResult:
    """Train a system; with an existing ``checkpoint``, go on from it, bit for bit on a CPU.

    Args:
        system: what is trained; its student is what is evaluated.
        task: how batches are made, prepared and measured.
        config: the settings.
        train: the training set.
        test: the set evaluated on; with none, the fit has no figures.
        labelled: positions in ``train`` that ``config.labelled_per_batch`` draws from.
        groups: group of each sample of ``train``, such as its class, or its length, for
            ``config.sampler``.
        seed: of the data order, augmentation and random layers.
        name: what the events of this fit are labelled with.
        log: where events go.
        checkpoint: file for the checkpoints; none are written without it.
        folder: where what is made of the teacher is kept for other fits; default: nowhere.

    Raises:
        DataError: data that ``config`` cannot make batches of.
        NonFiniteLossError: at the first loss that is NaN or infinite.
        Interrupted: after Ctrl-C or SIGTERM, with the checkpoint saved.
    """
    log = log or RunLog(None)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    accelerator = build_accelerator(config)
    rank, world = accelerator.process_index, accelerator.num_processes
    per_epoch = steps_per_epoch(train, config, labelled, processes=world)
    check_groups(config, groups, size(train), labelled=labelled, processes=world)
    check_together(config, seed=seed, train=size(train), test=None if test is None else size(test))
    steps = config.steps or per_epoch * (config.epochs or 0)
    train = resident(train, accelerator.device)
    test = None if test is None else resident(test, accelerator.device)
    given, system = system, sharded(system, task, config, accelerator)
    if config.layout == "channels_last":
        system.to(memory_format=torch.channels_last)
    set_seed(seed, device_specific=True)
    optimizer = build_optimizer(system.parameters(), config, accelerator.device)
    schedule = build_schedule(optimizer, config, steps=steps, steps_per_epoch=per_epoch)
    if system.teacher is not None:
        system.teacher.to(accelerator.device)
    module, prepared = prepare_system(system, optimizer, accelerator)
    scaled = accelerator.scaler is not None
    # Without a scaler past Accelerate's wrappers, which look for packages in every step.
    update = prepared if scaled else optimizer
    backward = accelerator.backward if scaled else torch.Tensor.backward
    guard = Guard(optimizer, name, deferred=may_defer(config, accelerator))

    step, history = 0, History(task)
    state = latest(checkpoint)
    if checkpoint is not None and state is not None:
        check_epochs(state, checkpoint, per_epoch)
        step = _restore(state, checkpoint, system, optimizer, schedule, accelerator, history)
        log.rewind(state["log_length"])
    else:
        log.emit("fit_started", fit=name, steps=steps, seed=seed, processes=world)
    tell = partial(log.show if step else log.emit, fit=name)  # a fit that goes on has told it
    if config.keep_memory:
        keep_memory(tell)
    instruct(
        system.teacher, task, config, accelerator, train=train, views=system.views,
        tell=log.show if step else log.emit, fit=name, folder=folder,
    )  # fmt: skip

    def save() -> None:
        guard.read()
        if checkpoint is not None:
            main = accelerator.is_main_process
            state = {
                "system": system.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "scaler": accelerator.scaler.state_dict() if accelerator.scaler else {},
                "history": history.state(),
                "step": step,
                "per_epoch": per_epoch,
                "log_length": log.length,
            }
            save_checkpoint(checkpoint, state, main=main)

    def measure() -> None:
        if test is None:
            return
        for buffer in system.student.buffers() if world > 1 else ():
            broadcast(buffer)  # the first process' statistics, which are the ones that are saved
        guard.read()
        gather(system)
        with as_written():
            figures = evaluate(
                system.student, task, test, accelerator,
                batch_size=max(config.batch_size, task.evaluation_batch), workers=config.workers,
            )  # fmt: skip
        history.add(step, figures)
        epoch = step / per_epoch
        log.emit("evaluation", fit=name, step=step, epoch=epoch, metrics=figures)

    cadence = config.evaluate_every * (per_epoch if config.epochs else 1)
    share = (rank, world)
    module.train()
    compiling = compiled_step(
        system, task, config, accelerator,
        train=train, progress=Progress(step, steps, step // per_epoch), tell=tell,
    )  # fmt: skip
    with interrupts() as interrupted, compiling as as_written:
        while step < steps:
            epoch, first = divmod(step, per_epoch)
            last = min(per_epoch, first + steps - step)
            view = config.view(epoch)
            batches = epoch_batches(
                task, train, batch_size=config.batch_size, seed=seed, epoch=epoch, view=view,
                first=first, last=last, share=share, workers=config.workers,
                labelled=labelled, labelled_per_batch=config.labelled_per_batch,
                groups=groups if config.grouped else None, per_group=config.per_class,
                lengths=groups if config.sampler == "by_length" else None,
                pin=accelerator.device.type == "cuda",
            )  # fmt: skip
            for raw in batches:
                started = time.perf_counter()
                batch = in_training(task, raw, config, accelerator.device, seed=seed, view=view)
                progress = Progress(step, steps, epoch)
                update.zero_grad(set_to_none=True)
                weigh = bool(config.balance_every) and step % config.balance_every == 0
                with told(step, name):
                    if config.accumulate == 1:
                        total, terms, balance = module(batch, progress, balance=weigh)
                        backward(total)
                    else:
                        total, terms, balance = accumulated_step(
                            system, batch, progress, config.accumulate, accelerator, balance=weigh
                        )
                guard.see(step, {"total": total, **terms})
                if config.clip is not None:
                    accelerator.clip_grad_norm_(module.parameters(), config.clip)
                lr = schedule.get_last_lr()[0]
                update.step()
                schedule.step()
                history.seconds += time.perf_counter() - started
                if step < 10 or step % config.log_every == 0:
                    values = guard.read()
                    total_value = values.pop("total")
                    weights = system.weights(progress)
                    weighted = {key: weights.get(key, 1.0) * v for key, v in values.items()}
                    log.emit(
                        "step", fit=name, step=step, epoch=epoch, lr=lr, total=total_value,
                        terms=values, weighted=weighted, **system.figures(),
                    )  # fmt: skip
                if balance:
                    log.emit("balance", fit=name, step=step, terms=balance_figures(balance))
                step += 1
                log.show("tick", fit=name, step=step, steps=steps)
                if cadence and step % cadence == 0 and step < steps:
                    measure()
                if config.checkpoint_every and step % config.checkpoint_every == 0:
                    save()
                if step < steps and any_process(interrupted, step, accelerator):
                    save()
                    log.emit("interrupted", fit=name, step=step)
                    raise Interrupted
        save()
        measure()
        hand_back(system, given)
        if any_process(interrupted, 0, accelerator):
            log.emit("interrupted", fit=name, step=step)
            raise Interrupted
    log.emit(
        "fit_finished", fit=name, step=step, metrics=history.last, best=history.best,
        seconds=round(history.seconds, 3),
    )  # fmt: skip
    return FitResult(history.last, history.best, step, history.seconds)


def _restore(
    state: dict[str, Any],
    path: Path,
    system: System,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    accelerator: Accelerator,
    history: History,
) -> int:
    """Put everything back as the checkpoint has it; the step to go on from."""
    try:
        check_state(system.student, _inside(state["system"], "student."), path)
        load_system(system, state["system"])
        load_optimizer(optimizer, state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        history.restore(state["history"])
        step = int(state["step"])
        if accelerator.scaler:
            accelerator.scaler.load_state_dict(state["scaler"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is a checkpoint of other networks or settings than these "
            f"({str(error).splitlines()[0]}); resume with the recipe it was made by."
        ) from error
    restore_random(state["random"], accelerator.process_index, step)
    return step


def _inside(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The entries below a prefix, under their own names."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
