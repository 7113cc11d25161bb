"""Checkpoints that are whole or absent, and hold everything a resumed run needs."""

import os
import pickle
import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object, set_seed
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from congener.engine.machine import on_first
from congener.engine.shards import whole
from congener.errors import CheckpointError
from congener.taps import bare

__all__ = [
    "check_epochs",
    "check_state",
    "latest",
    "load_checkpoint",
    "load_weights",
    "read_tensors",
    "restore_random",
    "save_checkpoint",
]


class _Random(NamedTuple):
    """The states of the random generators of one process, as tensors and plain lists."""

    python: list[Any]
    numpy: list[Any]
    torch: Tensor
    cuda: list[Tensor]


def save_checkpoint(path: Path, state: dict[str, Any], *, main: bool) -> None:
    """Write ``state`` and every process' random generators; all processes call it together.

    What they hold in shards is written whole.
    """
    python, numpy = random.getstate(), np.random.get_state(legacy=True)  # noqa: NPY002
    assert isinstance(numpy, tuple)
    own = _Random(
        python=[python[0], list(python[1]), python[2]],
        numpy=[numpy[0], torch.from_numpy(numpy[1].astype(np.int64)), *numpy[2:]],
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    )
    everyone, state = gather_object([own._asdict()]), whole(state)
    if not main:
        return
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("wb") as file:
        torch.save(state | {"random": everyone}, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def latest(path: Path | None) -> dict[str, Any] | None:
    """The checkpoint that a fit goes on from, if there is one; the first process reads it for all.

    Raises:
        CheckpointError: as :func:`load_checkpoint`, on all processes.
    """
    if path is None:
        return None
    return on_first(lambda: load_checkpoint(path) if path.exists() else None)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote; nothing in it is executed.

    Raises:
        CheckpointError: a file that is damaged or no checkpoint of ours.
    """
    state = _load(path)
    if not isinstance(state, dict) or "random" not in state:
        raise CheckpointError(f"{path} is no checkpoint of a run; remove it to start afresh.")
    return state


def check_epochs(state: dict[str, Any], path: Path, per_epoch: int) -> None:
    """Make sure that an epoch has as many batches as where the checkpoint was written.

    Raises:
        CheckpointError: other data or settings, or a last batch that more processes leave out.
    """
    before = state.get("per_epoch", per_epoch)
    if before != per_epoch:
        raise CheckpointError(
            f"{path} was written by a fit with {before} batches in an epoch, and here there are "
            f"{per_epoch}: resume with the same data and settings. (A last batch of fewer samples "
            "than processes is left out; start no more processes than it has samples.)"
        )


def restore_random(states: list[dict[str, Any]], rank: int, step: int) -> None:
    """Put a process' random generators back to where its checkpoint left them.

    A process that there was none of before draws by its own seed and the step it begins at.
    """
    if rank >= len(states):
        set_seed(hash((torch.initial_seed(), step)) % 2**32)
        return
    own = _Random(**states[rank])
    random.setstate((own.python[0], tuple(own.python[1]), own.python[2]))
    name, keys, *rest = own.numpy
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(own.torch)
    if own.cuda and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(own.cuda)


def load_weights(model: nn.Module, path: Path, *, from_first: bool = False) -> None:
    """Load a network's weights from ``.safetensors``, or from a ``.pt``/``.pth`` state dict.

    Of tied weights, which are one tensor under several names, the file may hold one name alone.

    Args:
        model: the network.
        path: the file.
        from_first: the first of several processes reads it for all, which then all call this.

    Raises:
        CheckpointError: a missing or damaged file, or weights of another architecture (the first
            missing and the first unexpected key, or the first shape that differs, are named).
    """
    weights = on_first(lambda: read_tensors(path)) if from_first else read_tensors(path)
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    model = bare(model)
    weights |= _tied(model, weights, path)
    check_state(model, weights, path)
    model.load_state_dict(weights)


def _tied(model: nn.Module, weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tied weights under all of their names, of a file that may hold one of them.

    Raises:
        CheckpointError: a file in which they differ.
    """
    groups: dict[Any, list[str]] = {}
    for name, value in model.state_dict().items():
        if value.numel():
            groups.setdefault((value.data_ptr(), value.shape, value.stride()), []).append(name)
    found: dict[str, Tensor] = {}
    for names in groups.values():
        there = [name for name in names if name in weights]
        for other in there[1:]:
            if not torch.equal(weights[there[0]], weights[other]):
                raise CheckpointError(
                    f"{path} holds {there[0]!r} and {other!r} apart, which are one tensor in this "
                    f"{type(model).__name__}; build it untied, as it was trained."
                )
        found |= {name: weights[there[0]] for name in names if there}
    return found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read names and tensors from ``.safetensors``, or from a ``.pt``/``.pth`` state dict.

    Raises:
        CheckpointError: a missing or damaged file.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path}; check the path.")
    if path.suffix == ".safetensors":
        try:
            weights: Any = load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged ({error}); copy it again.") from error
    else:
        weights = _load(path)
        for key in ("state_dict", "model"):
            if isinstance(weights, dict) and isinstance(weights.get(key), dict):
                weights = weights[key]
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise CheckpointError(f"{path} holds no state dict (names to tensors); save one there.")
    return weights


def check_state(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Make sure that the weights read from ``path`` are those of a network like ``model``.

    Raises:
        CheckpointError: as for :func:`load_weights`.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in weights]
    unexpected = [name for name in weights if name not in own]
    if missing or unexpected:
        raise CheckpointError(
            f"{path} belongs to another architecture than {type(model).__name__}: "
            f"first missing key {missing[0] if missing else 'none'!r}, "
            f"first unexpected key {unexpected[0] if unexpected else 'none'!r}; "
            "name the network that it was trained as."
        )
    for name, value in own.items():
        if value.shape != weights[name].shape:
            raise CheckpointError(
                f"{path} belongs to another architecture than {type(model).__name__}: {name!r} "
                f"has shape {tuple(weights[name].shape)} there and {tuple(value.shape)} here; "
                "check widths and number of classes."
            )


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors and plain values, which is never "
            "executed; save a state dict (or safetensors) instead."
        ) from error
    except Exception as error:  # damage makes the unpickler fail in any way it likes
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path} cannot be read ({reason}); it is damaged or truncated: "
            "copy it again, or remove it to start afresh."
        ) from error
