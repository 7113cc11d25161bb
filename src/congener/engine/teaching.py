"""How the teacher runs where that is not as the student does, and how far off that makes it.

Before a fit, a teacher that runs otherwise than in fp32 as it is (in bf16 or int8, with its maps in
channels_last, compiled) answers some training batches in both ways. What differs is told in one
event, ``teacher_error``: of the logits and of each tap.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset

from congener.engine.config import FitConfig
from congener.engine.feed import epoch_batches, seeded, size, to_device
from congener.engine.machine import on_first
from congener.errors import RecipeError
from congener.system import TeacherLike
from congener.task import Task
from congener.teachers import FrozenTeacher, Manner
from congener.teachers.int8 import Request, check_int8, quantised
from congener.types import Batch, Outputs, Progress

__all__ = ["check_teaching", "instruct", "output_error"]

SAMPLES = 768
"""On a third of them the error is measured, or on as many as the task measures at once, if they are
fewer, and int8's ranges are set on the other two thirds; ours."""
FAR, APART = 0.5, 0.9
"""An output that is off by more, or a teacher that agrees with itself on less, is another: ours."""

Views = Callable[[Batch, Progress], Batch]
Errors = dict[str, dict[str, float]]
"""For each output by name, figures by name."""


def check_teaching(
    teacher: TeacherLike | None, config: FitConfig, device: torch.device
) -> tuple[FrozenTeacher, ...]:
    """The networks of a teacher that can be told how to run.

    Raises:
        RecipeError: a teacher that cannot run as the settings ask, or packages that are missing.
    """
    asked = config.teacher_precision or config.teacher_layout or config.teacher_compile
    if teacher is None:
        return ()
    found: tuple[FrozenTeacher, ...] | None = getattr(teacher, "networks", None)
    if found is None and asked:
        raise RecipeError(
            "The system asks its teacher for more than answers (for gradients, say), so the "
            "teacher runs as the student does; leave out teacher_precision, teacher_layout and "
            "teacher_compile."
        )
    if found and config.teacher_precision == "int8":
        check_int8(device)
        if any(network.batch_statistics for network in found):
            raise RecipeError(
                "teacher_precision int8 fixes what a network normalises by, and this teacher "
                "normalises by the batch at hand; use bf16."
            )
    return found or ()


def instruct(
    teacher: TeacherLike | None,
    task: Task,
    config: FitConfig,
    accelerator: Accelerator,
    *,
    train: Dataset[Any],
    tell: Callable[..., None],
    views: Views = lambda batch, _: batch,
    fit: str = "fit",
    folder: Path | None = None,
) -> None:
    """Have a teacher run as ``config`` says, and tell how far off that makes its answers.

    Args:
        teacher: who is told, on its device already; ``None``: nobody.
        task: whose batches it answers.
        config: the settings of the fit that follows.
        accelerator: the processes; all do the same.
        train: the training set.
        tell: takes the events: ``RunLog.emit``, or ``RunLog.show`` where they are known already.
        views: what the teacher sees of a prepared batch: ``System.views``.
        fit: what the events are labelled with.
        folder: where int8 graphs are kept; default: nowhere.

    Raises:
        RecipeError: as :func:`check_teaching`, or a network that int8 cannot be made of.
    """
    networks, way = check_teaching(teacher, config, accelerator.device), _way(config)
    for network in networks:
        network.run_as(Manner(), config.precision)
    if not networks or teacher is None or way == Manner():
        return
    if way == Manner("fp32"):  # exact, whatever surrounds it
        for network in networks:
            network.run_as(way, "fp32")
        return
    with seeded(0), torch.no_grad():
        ranged, measured = _samples(task, config, accelerator, train, views)
        exact = _asked(teacher, measured)
        with _recorded(networks) as requests:
            _asked(teacher, ranged if way.precision == "int8" else [])
        if way.precision == "int8" and not all(requests):
            raise RecipeError(
                "teacher_precision int8 exports the network as a whole, and this task calls it "
                "part by part, as detectors are; use bf16."
            )
        for network, own in zip(networks, requests, strict=True):
            _run_as(network, way, config.precision, own, folder)
        try:
            with accelerator.autocast():
                found = _asked(teacher, measured)
        except Exception as error:
            if not way.compiled:
                raise
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            tell("not_compiled", fit=fit, network="teacher", reason=reason)
            way = replace(way, compiled=False)
            for network in networks:
                _run_as(network, way, config.precision, [], None)
            if way == Manner():
                return
            with accelerator.autocast():
                found = _asked(teacher, measured)
    errors, manner = output_error(exact, found), networks[0].manner
    line = _line(manner, errors, len(exact.logits))
    tell("teacher_error", fit=fit, manner=manner, outputs=errors, line=line)


def output_error(exact: Outputs, found: Outputs) -> Errors:
    """How far some outputs are from the exact ones of the same samples.

    Returns:
        For each output ``relative``, the norm of the difference over that of the output, and
        ``worst_row``, the same of the sample where it is largest; of logits also ``agreement``, the
        share of rows with the same largest logit, and ``kl``, the mean divergence
        KL(softmax(exact) ‖ softmax(found)), in nats.
    """
    theirs = _named(found)
    return {name: _error(value, theirs[name], name) for name, value in _named(exact).items()}


def _way(config: FitConfig) -> Manner:
    # What is quantised or cut into shards has the layout that it has.
    fixed = config.teacher_precision == "int8" or config.shard in ("teacher", "both")
    channels_last = "channels_last" in (config.teacher_layout, config.layout) and not fixed
    return Manner(config.teacher_precision, channels_last, config.teacher_compile)


def _samples(
    task: Task, config: FitConfig, accelerator: Accelerator, train: Dataset[Any], views: Views
) -> tuple[list[Batch], list[Batch]]:
    """Training batches, as a teacher sees them and as large as it is asked about in a step.

    They are the same in each process and for each seed, so that one graph serves all fits.

    Returns:
        Those that set int8's ranges, and those that the error is measured on: others, if there are.
    """
    rows = max(2, config.batch_size // (config.accumulate * accelerator.num_processes))
    count = min(max(1, size(train) // rows), max(2, SAMPLES // rows))
    third = max(1, count // 3)
    measured = max(1, min(third, task.evaluation_batch // rows))
    if config.teacher_precision != "int8":
        count = measured
    raws = epoch_batches(
        task, train, batch_size=rows, seed=0, epoch=0, first=0, last=count, share=(0, 1),
        workers=0,
    )  # fmt: skip
    batches = (to_device(raw, accelerator.device) for raw in raws)
    prepared = [task.prepare(raw, train=True, seed=0, epoch=0) | {"view": 0} for raw in batches]
    seen = [views(batch, Progress(0, 1, 0)) for batch in prepared]
    return seen[third:] or seen, seen[:measured]


def _asked(teacher: TeacherLike, batches: Sequence[Batch]) -> Outputs:
    said = [teacher(batch) for batch in batches]
    return Outputs.concatenate(said) if said else Outputs(torch.zeros(0, 0))


@contextmanager
def _recorded(networks: Sequence[FrozenTeacher]) -> Iterator[list[list[Request]]]:
    """What each network is called with, filled in while the teacher is asked."""
    seen: list[list[Request]] = [[] for _ in networks]
    with ExitStack() as undo:
        for network, requests in zip(networks, seen, strict=True):

            def record(
                _module: Any, arguments: Any, named: Any, requests: list[Request] = requests
            ) -> None:
                requests.append((arguments, named))

            hook = network.model.register_forward_pre_hook(record, with_kwargs=True)
            undo.callback(hook.remove)
        yield seen


def _run_as(
    network: FrozenTeacher, way: Manner, ambient: str, seen: Sequence[Request], folder: Path | None
) -> None:
    if way.precision != "int8":
        network.run_as(way, way.named(ambient))
        return
    import onnxruntime

    words = f"int8 (onnxruntime {onnxruntime.__version__}, {len(seen)} batches)"
    network.run_as(
        way, words, instead=quantised(network.model, network.taps, seen, folder, once=on_first)
    )


def _named(said: Outputs, before: str = "") -> dict[str, Tensor]:
    """Every output by name; those of members after the member's."""
    found = {f"{before}logits": said.logits}
    found |= {f"{before}{path}": value for path, value in said.features.items()}
    for member, each in said.members.items():
        found |= _named(each, f"{member}/")
    return found


def _error(exact: Tensor, found: Tensor, name: str) -> dict[str, float]:
    def norms(value: Tensor) -> Tensor:
        rows: Tensor = torch.linalg.vector_norm(value.flatten(1), dim=1, dtype=torch.float64)
        return rows

    off, whole = norms(found.float() - exact.float()), norms(exact)
    least = torch.finfo(torch.float64).tiny
    figures = {
        "relative": off.norm() / whole.norm().clamp(min=least),
        "worst_row": (off / whole.clamp(min=least)).amax(),
    }
    if name.rpartition("/")[2] == "logits":
        mine, theirs = (x.double().log_softmax(dim=-1) for x in (found, exact))
        figures["agreement"] = (mine.argmax(dim=-1) == theirs.argmax(dim=-1)).double().mean()
        figures["kl"] = (theirs.exp() * (theirs - mine)).sum(dim=-1).mean()
    return {key: float(f"{value.item():.4g}") for key, value in figures.items()}


def _line(manner: str, errors: Mapping[str, Mapping[str, float]], samples: int) -> str:
    """The errors in one sentence, the largest of the features; a warning where they are absurd."""
    logits = errors["logits"]
    words = (
        f"teacher in {manner}: logits off by {_share(logits['relative'])} (worst sample "
        f"{_share(logits['worst_row'])}), the same answer to {_share(logits['agreement'])} of "
        f"{samples} samples, KL {logits['kl']:.1e}"
    )
    others = {name: each["relative"] for name, each in errors.items() if name != "logits"}
    if others:
        worst = max(others, key=lambda name: others[name])
        words += f"; features off by {_share(others[worst])} at most ({worst})"
    near = all(
        each["relative"] <= FAR and each.get("agreement", 1.0) >= APART for each in errors.values()
    )
    return words if near else f"{words}. WARNING: this is another teacher; use bf16 or fp32"


def _share(value: float) -> str:
    percent = 100 * value
    return f"{percent:.2f} %" if percent >= 0.01 or value == 0 else f"{percent:.0e} %"
