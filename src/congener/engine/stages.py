"""What a system needs before it is fitted: parts fitted first, and surveys of the data."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset, Subset

from congener.engine.asking import ask_each
from congener.engine.checkpoint import check_state, read_tensors
from congener.engine.config import FitConfig
from congener.engine.feed import evaluation_batches, size, steps_per_epoch, to_device
from congener.engine.loop import fit
from congener.engine.machine import build_accelerator, on_first, process_state
from congener.errors import CheckpointError, RecipeError, did_you_mean
from congener.naming import expected
from congener.runlog import RunLog
from congener.system import AnswerStage, FitStage, Stage, SurveyStage, TeacherLike
from congener.task import Task
from congener.teachers import fingerprint, structure
from congener.types import Batch, Progress

__all__ = ["check_stage", "data_fingerprint", "prepare", "stage_path"]

SAMPLED = 256  # samples that tell one data set from another
ROOM = 1 << 26  # bytes of samples, before they are prepared, that are looked at together; ours


class Prepared(Protocol):
    """Whatever has stages: a system, or what else is to be known before a fit."""

    @property
    def teacher(self) -> TeacherLike | None:
        """Whom the stages ask."""

    def stages(self) -> Sequence[Stage]:
        """What must be done, in order."""


def prepare(
    system: Prepared,
    task: Task,
    config: FitConfig,
    *,
    train: Dataset[Any] | None = None,
    seed: int = 0,
    folder: Path | None = None,
    log: RunLog | None = None,
) -> None:
    """Do everything that a system asks for before :func:`congener.engine.fit`.

    With a folder, results are kept there under a key of all that they depend on (the networks, the
    data, the settings), and read back where the key is the same. A fit goes on from its checkpoint.

    Args:
        system: what will be fitted.
        task: whose data are used.
        config: the settings of the fit that is prepared for; a stage may change some.
        train: what the student learns from; default: the task's training set.
        seed: of the stages' fits; no part of the key, for one result serves every student.
        folder: where results are kept; default: nowhere.
        log: where events go.

    Raises:
        CheckpointError: a kept result that is damaged.
        Interrupted: as :func:`congener.engine.fit`.
    """
    train = task.splits["train"] if train is None else train
    process_state(config)
    for stage in system.stages():
        data = _data(stage, task, train)
        if isinstance(stage, AnswerStage):
            key = stage_path(Path(), stage, task, config, train).name
            ask_each(stage, task, config, data, key, folder, log)
            continue
        path = None if folder is None else stage_path(folder, stage, task, config, train)
        kept = on_first(partial(_kept, path))
        if path is not None and kept is not None:
            _receive(stage, kept, path)
        elif isinstance(stage, FitStage):
            _fit(stage, task, config, data, seed, path, log)
        else:
            _survey(stage, system, task, config, data, path)


def stage_path(
    folder: Path,
    stage: Stage,
    task: Task,
    config: FitConfig,
    train: Dataset[Any] | None = None,
) -> Path:
    """Where :func:`prepare` keeps the result of a stage: its arguments, and all they hold, say."""
    train = task.splits["train"] if train is None else train
    key = _key(stage, task, config, _data(stage, task, train))
    if isinstance(stage, AnswerStage):
        return folder / f"{stage.name}-{key}"
    return folder / f"{stage.name}-{key}.safetensors"


def check_stage(stage: Stage, task: Task, config: FitConfig, batch: Batch) -> bool:
    """Refuse a stage that could not be done, before anything is trained, and stand in for it.

    The system that asks for the stage can then be tried, and is of no other use.

    Args:
        stage: what is checked; what it fits sees the batch once, in training mode.
        task: whose data are used.
        config: the settings of the fit that comes later.
        batch: a prepared batch of two samples or more.

    Returns:
        Whether something stands in for the result.

    Raises:
        RecipeError: settings that there are not.
        DataError: data that the settings cannot make batches of, or that cannot be measured so.
    """
    data = _data(stage, task, task.splits["train"])
    if isinstance(stage, FitStage):
        settings = _settings(stage, config)
        steps_per_epoch(data, settings, None, processes=process_state(config).num_processes)
        with torch.no_grad():
            stage.system.train()(batch, Progress(0, 1, 0))
        return True
    if isinstance(stage, AnswerStage):
        answers = stage.ask(batch).logits
        stage.receive(partial(_first_rows, answers))
        return True
    if stage.stand_in is not None:
        stage.receive(stage.stand_in(size(data)))
    return stage.stand_in is not None


def _first_rows(answers: Tensor, index: Tensor) -> Tensor:
    """What stands in for the answers about any samples."""
    return answers[torch.zeros_like(index)].to(index.device)


def _data(stage: Stage, task: Task, train: Dataset[Any]) -> Dataset[Any]:
    return task.splits.get("teacher", train) if stage.data == "teacher" else train


def _fit(
    stage: FitStage,
    task: Task,
    config: FitConfig,
    data: Dataset[Any],
    seed: int,
    path: Path | None,
    log: RunLog | None,
) -> None:
    # With the key, so that two stages of one name have each their own events.
    name = f"stages/{stage.name if path is None else path.stem}"
    checkpoint = None if path is None else path.with_suffix(".pt")
    if log is not None and checkpoint is not None and not checkpoint.exists():
        log.forget(fit=name)
    settings = _settings(stage, config)
    fit(
        stage.system, task, settings,
        train=data, test=None, seed=seed, name=name, log=log, checkpoint=checkpoint,
        folder=None if path is None else path.parent,
    )  # fmt: skip
    stage.system.cpu()
    # Of all processes, the first one's buffers: batch normalisation sees another share on each.
    stage.system.load_state_dict(on_first(stage.system.state_dict))
    _keep(stage.system.state_dict(), path, config)


def _survey(
    stage: SurveyStage,
    system: Prepared,
    task: Task,
    config: FitConfig,
    data: Dataset[Any],
    path: Path | None,
) -> None:
    accelerator = build_accelerator(config.model_copy(update={"precision": "fp32"}))
    share = (accelerator.process_index, accelerator.num_processes)
    if system.teacher is not None:
        system.teacher.to(accelerator.device)

    def batches() -> Iterator[Batch]:
        for raw in evaluation_batches(
            task, data, batch_size=max(config.batch_size, 256), share=share, workers=config.workers
        ):
            batch = to_device(raw, accelerator.device)
            yield task.prepare(batch, train=False, seed=0, epoch=0)

    with torch.no_grad():
        figures = {name: value.cpu() for name, value in stage.measure(batches()).items()}
    _keep(figures, path, config)
    stage.receive(figures)


def _kept(path: Path | None) -> dict[str, Tensor] | None:
    """What an earlier session left, if it did; what it does from here on has a folder."""
    if path is None:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return None
    try:
        return read_tensors(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is damaged; remove it, and it will be made anew.") from error


def _receive(stage: FitStage | SurveyStage, figures: dict[str, Tensor], path: Path) -> None:
    if isinstance(stage, SurveyStage):
        stage.receive(figures)
        return
    check_state(stage.system, figures, path)
    stage.system.load_state_dict(figures)


def _keep(figures: Mapping[str, Tensor], path: Path | None, config: FitConfig) -> None:
    """The first process writes; the others wait for it."""
    state = build_accelerator(config.model_copy(update={"precision": "fp32"}))
    if path is not None and state.is_main_process:
        draft = path.with_name(f".{path.name}.draft")
        save_file({name: value.clone().contiguous() for name, value in figures.items()}, draft)
        # First: a fit that went on from its end would cut off the log of all that came later.
        path.with_suffix(".pt").unlink(missing_ok=True)
        draft.replace(path)
    state.wait_for_everyone()


def _settings(stage: FitStage, config: FitConfig) -> FitConfig:
    """The settings of a stage's fit: a length of its own replaces the other measure of length."""
    changes: dict[str, Any] = {"labelled_per_batch": 0, "balance_every": 0, "evaluate_every": 0}
    changes |= {"sampler": "shuffle", "shard": "none"}
    if {"epochs", "steps"} & stage.settings.keys():
        changes |= {"epochs": None, "steps": None}
        if config.milestones and not {"schedule", "milestones"} & stage.settings.keys():
            raise RecipeError(
                f"The settings of the stage {stage.name!r}: with a length of its own it needs "
                "`milestones` of its own too, or another `schedule`."
            )
    if "schedule" in stage.settings:
        changes["milestones"] = ()
    try:
        return FitConfig.model_validate(config.model_dump() | changes | dict(stage.settings))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            wrong = f"{key!r} is unknown; {did_you_mean(key, FitConfig.model_fields)}"
        else:
            wrong = f"{key}: {expected(problem)}.".removeprefix(": ")
        raise RecipeError(f"The settings of the stage {stage.name!r}: {wrong}") from error


def _key(stage: Stage, task: Task, config: FitConfig, data: Dataset[Any]) -> str:
    """A hash of all that the result of a stage depends on."""
    digest = hashlib.sha256(stage.name.encode())
    for network in stage.depends:
        digest.update(f"{fingerprint(network)}{structure(network)}".encode())
    if isinstance(stage, FitStage):
        shapes = {name: list(v.shape) for name, v in stage.system.state_dict().items()}
        settings = _settings(stage, config).model_dump(mode="json")
        digest.update(json.dumps([shapes, settings, repr(stage.system)]).encode())
    elif isinstance(stage, AnswerStage):
        digest.update(json.dumps([stage.key, stage.dtype, config.precision]).encode())
    else:
        digest.update(json.dumps(stage.key).encode())
    digest.update(data_fingerprint(task, data, train=isinstance(stage, FitStage)))
    return digest.hexdigest()[:16]


def data_fingerprint(
    task: Task, data: Dataset[Any], *, train: bool, seed: int = 0, labels: bool = True
) -> bytes:
    """A hash of how many samples there are, and of some, evenly spread, as networks see them.

    Args:
        task: prepares the samples.
        data: the data set.
        train: as prepared for training, in epoch 0.
        seed: of the random transforms.
        labels: whether other labels make another hash.
    """
    count = size(data)
    places = torch.linspace(0, count - 1, min(count, SAMPLED)).long().tolist()

    def batches(rows: int, taken: list[int]) -> Iterator[Batch]:
        some = Subset(data, taken)
        return evaluation_batches(task, some, batch_size=rows, share=(0, 1), workers=0)

    first = next(batches(1, places[:1])).values()
    each = sum(value.nbytes for value in first if isinstance(value, Tensor))
    digest = hashlib.sha256(str(count).encode())
    for raw in batches(max(1, min(len(places), ROOM // max(1, each))), places):
        batch = task.prepare(raw, train=train, seed=seed, epoch=0)
        for name in sorted(batch):
            value = batch[name]
            if isinstance(value, Tensor) and name != "index" and (labels or name != "labels"):
                digest.update(value.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.digest()
