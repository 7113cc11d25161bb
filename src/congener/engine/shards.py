"""Networks cut into shards over the processes (FSDP2), for what does not fit on one device.

A fit trains a sharded *copy* of its system and hands the weights back whole, so that nothing
outside the fit ever meets a shard: checkpoints and exported weights are those of whole networks,
whatever number of processes wrote or reads them.

The student keeps its shards of the optimiser's state and of the gradients; its weights are whole
between forward and backward, since systems may read them there. The teacher, which is the large
one, is gathered unit by unit as it runs. PyTorch's ``fully_shard`` is called here and not through
Accelerate, whose plugin does nothing on CPUs.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from congener.engine.config import FitConfig
from congener.errors import RecipeError
from congener.system import System, TeacherLike
from congener.taps import bare
from congener.task import Task
from congener.teachers import FrozenTeacher

__all__ = [
    "gather",
    "hand_back",
    "load_optimizer",
    "load_system",
    "prepare_system",
    "sharded",
    "whole",
]

UNIT = 1_000_000  # parameters below which a part of a teacher is not gathered by itself


def sharded(system: System, task: Task, config: FitConfig, accelerator: Accelerator) -> System:
    """The system to train: a sharded copy, or the system itself where nothing is to be sharded.

    Args:
        system: what is to be trained; the first process' weights count.
        task: what the copy shares with it.
        config: ``shard`` says what is cut.
        accelerator: the processes.

    Raises:
        RecipeError: a teacher that is asked for more than answers, or parameters without axes.
    """
    if config.shard == "none" or accelerator.num_processes == 1:
        return system
    reason = system.needs_whole_weights()
    if reason and config.shard in ("student", "both"):
        raise RecipeError(
            f"The system's weights cannot be cut into shards: {reason}; set `shard` to 'none' or "
            "'teacher'."
        )
    networks = _networks(system.teacher) if config.shard in ("teacher", "both") else []
    shared: list[Any] = [task]
    if not networks:  # the teacher, and its network wherever a system holds parts of it
        answering = getattr(system.teacher, "networks", ())
        shared += [system.teacher, *(part for n in answering for part in n.model.modules())]
    memo: dict[int, Any] = {id(each): each for each in shared}
    copy = deepcopy(system, memo).to(accelerator.device)
    for value in copy.state_dict().values():
        broadcast(value)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    try:
        for network in (memo[id(each)] for each in networks):
            for unit in _units(network):
                fully_shard(unit, mesh=mesh)
            fully_shard(network, mesh=mesh)
        if config.shard in ("student", "both"):
            # In one piece, for a system may call parts of the student and not the student.
            fully_shard(copy, mesh=mesh, reshard_after_forward=False)
    except ValueError as error:
        raise RecipeError(
            f"The networks cannot be cut into shards ({error}); set `shard` to 'none'."
        ) from error
    return copy


def prepare_system(
    system: System, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> tuple[Any, Any]:
    """``accelerator.prepare``; what is cut into shards needs no data parallelism around it."""
    cut = isinstance(system, FSDPModule)
    module = accelerator.prepare_model(system, evaluation_mode=cut)
    return module, accelerator.prepare_optimizer(optimizer)


def gather(system: System) -> None:
    """Have the weights whole until the next step, for a student that runs by itself."""
    if isinstance(system, FSDPModule):
        system.unshard()


def hand_back(trained: System, system: System) -> None:
    """Give the weights of a sharded copy to the system that it was made from."""
    if trained is not system:
        system.load_state_dict(whole(trained.state_dict()))


def whole(state: Any) -> Any:
    """Whatever it is made of, with whole tensors for the shards; all processes call it together."""
    return tree_map_only(DTensor, lambda shard: shard.full_tensor(), state)


def load_system(system: nn.Module, state: Mapping[str, Tensor]) -> None:
    """``system.load_state_dict``, of whole tensors."""
    own = system.state_dict()
    system.load_state_dict({k: _like(own[k], v) if k in own else v for k, v in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """``optimizer.load_state_dict``, of whole tensors."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    shards = {
        index: {key: _like(parameters[index], value) for key, value in values.items()}
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": shards})


def _like(own: Tensor, value: Any) -> Any:
    """The shard of a whole tensor that belongs to one's own shard of it."""
    if not (isinstance(own, DTensor) and torch.is_tensor(value) and own.shape == value.shape):
        return value
    value = value.to(own.device)
    return distribute_tensor(value, own.device_mesh, own.placements, src_data_rank=None)


def _networks(teacher: TeacherLike | None) -> list[nn.Module]:
    """The networks that answer as a teacher; none where there is none, or its answers are kept."""
    networks: tuple[FrozenTeacher, ...] | None = getattr(teacher, "networks", None)
    if networks is None and teacher is not None:
        raise RecipeError(
            "The system asks its teacher for more than answers (for gradients, say), so the "
            "teacher cannot be cut into shards; set `shard` to 'student' or 'none'."
        )
    return [network.model for network in networks or ()]


def _units(network: nn.Module) -> list[nn.Module]:
    """The parts of a network that are gathered one after the other: large members of sequences."""
    parts = [
        part
        for sequence in bare(network).modules()
        if isinstance(sequence, nn.Sequential | nn.ModuleList)
        for part in sequence
        if not isinstance(part, nn.ModuleList | nn.ModuleDict)
        and sum(parameter.numel() for parameter in part.parameters()) >= UNIT
    ]
    return list(dict.fromkeys(reversed(parts)))  # the inner ones first
