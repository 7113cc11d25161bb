"""Networks in shards: who holds how much, and what cannot be cut."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tests.systems.tiny import TinyTask, student_net, teacher_net
from tests.trajectory.processes import in_processes
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from congener.engine import FitConfig, build_accelerator, shards
from congener.errors import RecipeError
from congener.losses import KDLoss
from congener.system import System
from congener.systems import Distillation
from congener.teachers import FrozenTeacher, TeacherGroup
from congener.types import Term


def system_of(task: TinyTask, *, taught: bool = True) -> System:
    teachers = {"second": teacher_net()} if taught else None
    terms = [Term(KDLoss()), Term(KDLoss(), name="more", of="second")] if taught else []
    teacher = teacher_net() if taught else None
    return Distillation(student_net(), teacher, terms, task=task, teachers=teachers)


def config_of(shard: Any) -> FitConfig:
    return FitConfig(steps=1, shard=shard, device="cpu")


def size(network: nn.Module) -> int:
    """How many numbers of its weights this process holds."""
    own = [p.to_local() if isinstance(p, DTensor) else p for p in network.parameters()]
    return sum(p.numel() for p in own)


def sizes(system: System) -> list[int]:
    """Of the student and of the two teachers."""
    assert isinstance(system.teacher, TeacherGroup)
    second = system.teacher.others["second"]
    networks = [system.student]
    for teacher in (system.teacher.main, second):
        assert isinstance(teacher, FrozenTeacher)
        networks.append(teacher.model)
    return [size(network) for network in networks]


def test_each_process_holds_its_share(tmp_path: Path) -> None:
    """83 weights of the student and 195 of each teacher over three processes."""
    whole = [student_net(), teacher_net(), teacher_net()]
    mine, theirs = size(whole[0]), size(whole[1])
    for found in zip(*in_processes(3, tmp_path, _held), strict=True):
        assert [sum(held) for held in zip(*found, strict=True)] in (
            [mine, theirs, theirs], [mine, 3 * theirs, 3 * theirs], [3 * mine, theirs, theirs],
        )  # fmt: skip
        assert len({tuple(held) for held in found}) > 1  # the last one holds less
    none = in_processes(2, tmp_path, _held_without)
    assert none == [[mine, theirs, theirs]] * 2


def _held(rank: int) -> list[list[int]]:
    task, found = TinyTask(), []
    for kind in ("both", "student", "teacher"):
        system, config = system_of(task), config_of(kind)
        before = sizes(system)
        copy = shards.sharded(system, task, config, build_accelerator(config))
        assert sizes(system) == before
        assert copy.student is not system.student
        assert copy.task is task  # type: ignore[attr-defined]
        assert (copy.teacher is system.teacher) == (kind == "student")
        found.append(sizes(copy))
    return found


def _held_without(rank: int) -> list[int]:
    task, config = TinyTask(), config_of("none")
    system = system_of(task)
    assert shards.sharded(system, task, config, build_accelerator(config)) is system
    return sizes(system)


def test_one_process_shares_nothing() -> None:
    task, config = TinyTask(), config_of("both")
    system = system_of(task)
    assert shards.sharded(system, task, config, build_accelerator(config)) is system


def test_the_first_process_weights_count(tmp_path: Path) -> None:
    first, second = in_processes(2, tmp_path, _weights)
    assert all(torch.equal(first[name], value) for name, value in second.items())
    assert first["student.hidden.0.bias"].eq(0).all()
    assert first["student.hidden.1.running_mean"].eq(0).all()


def _weights(rank: int) -> dict[str, Tensor]:
    task, config = TinyTask(), config_of("student")
    system = system_of(task)
    for value in system.state_dict().values():
        value.fill_(rank)
    copy = shards.sharded(system, task, config, build_accelerator(config))
    shards.hand_back(copy, system)
    assert not any(isinstance(value, DTensor) for value in system.state_dict().values())
    return system.state_dict()


def test_large_parts_of_sequences_are_gathered_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "UNIT", 100)
    inner = nn.Linear(60, 60)
    outer = nn.Sequential(inner, nn.ReLU())
    network = nn.Sequential(nn.Linear(50, 50), outer, nn.Linear(3, 3))
    assert shards._units(network) == [inner, outer, network[0]]
    blocks = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(20, 20), nn.ModuleList([inner])])})
    assert shards._units(blocks) == [inner, blocks["blocks"][0]]


def test_what_cannot_be_cut_is_said(tmp_path: Path) -> None:
    for said in in_processes(2, tmp_path, _refused):
        assert said["asked"].startswith("The system asks its teacher for more than answers")
        assert "cannot be cut into shards (" in said["scalar"]
        assert "scalar" in said["scalar"]
        assert "set `shard` to 'none'" in said["scalar"]


def _refused(rank: int) -> dict[str, str]:
    task, config = TinyTask(), config_of("both")
    asked, scalar = system_of(task), system_of(task)
    asked.teacher = lambda batch: batch  # type: ignore[assignment]
    scalar.student.scale = nn.Parameter(torch.tensor(1.0))
    said = {}
    for name, system in {"asked": asked, "scalar": scalar}.items():
        with pytest.raises(RecipeError) as error:
            shards.sharded(system, task, config, build_accelerator(config))
        said[name] = str(error.value)
    return said


def test_a_student_alone_has_no_teacher_to_cut(tmp_path: Path) -> None:
    whole = size(student_net())
    assert sum(in_processes(2, tmp_path, _alone, "both")) == whole
    assert in_processes(2, tmp_path, _alone, "teacher") == [whole] * 2


def _alone(rank: int, shard: str) -> int:
    task, config = TinyTask(), config_of(shard)
    system = system_of(task, taught=False)
    return size(shards.sharded(system, task, config, build_accelerator(config)).student)


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"precision": "fp16"}])
@pytest.mark.parametrize("shard", ["student", "both"])
def test_settings_that_do_not_go_with_shards(changes: dict[str, Any], shard: str) -> None:
    with pytest.raises(ValidationError, match=f"`shard: {shard}`"):
        FitConfig.model_validate({"steps": 1, "shard": shard} | changes)
    FitConfig.model_validate({"steps": 1, "shard": "teacher"} | changes)
