"""Checkpoints: everything comes back, damage is told in a sentence, nothing is executed."""

import os
import pickle
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from tests.systems.tiny import TinyTask, student_net
from torch import nn

from congener.engine import FitConfig, fit, load_weights
from congener.engine.checkpoint import load_checkpoint, restore_random, save_checkpoint
from congener.errors import CheckpointError
from congener.systems import Distillation


def draws() -> tuple[Any, ...]:
    normal = random.gauss(0, 1), np.random.standard_normal(3).tolist()  # noqa: NPY002
    return *normal, random.random(), torch.randn(3).tolist(), torch.rand(2).tolist()


def test_all_random_generators_come_back(tmp_path: Path) -> None:
    draws()  # leaves numpy and Python with half of a Gaussian pair at hand
    random.gauss(0, 1)
    np.random.standard_normal()  # noqa: NPY002
    save_checkpoint(tmp_path / "c.pt", {"step": 3, "value": torch.ones(2)}, main=True)
    wanted = draws()
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    assert draws() != wanted
    state = load_checkpoint(tmp_path / "c.pt")
    restore_random(state["random"], 0, 3)
    assert draws() == wanted
    assert state["step"] == 3
    assert torch.equal(state["value"], torch.ones(2))


def test_a_process_more_than_before_draws_by_its_seed_and_the_step(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pt", {}, main=True)
    state = load_checkpoint(tmp_path / "c.pt")
    found = []
    for seed, step, used in [(3, 10, 0), (3, 10, 5), (3, 20, 0), (4, 10, 0)]:
        torch.manual_seed(seed)
        torch.rand(used)
        restore_random(state["random"], 1, step)
        found.append(draws())
    assert found[0] == found[1]  # and not by what was drawn before
    assert len({str(drawn) for drawn in found}) == 3


def test_checkpoint_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"step": 1}, main=True)

    def full(state: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, {"step": 2}, main=True)
    assert load_checkpoint(path)["step"] == 1


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pt", {"step": 1}, main=False)
    assert list(tmp_path.iterdir()) == []


def test_truncated_checkpoints_are_told(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"value": torch.ones(500)}, main=True)
    content = path.read_bytes()
    for length in [0, 1, 2, 10, 100, 1000, len(content) // 2, len(content) - 10, len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"c\.pt (cannot be read|is damaged)") as error:
            load_checkpoint(path)
        assert "\n" not in str(error.value)


def test_garbage_is_told(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    chance = random.Random(0)
    samples = [b"hello world\n" * 50, b"\x80\x02", b"PK\x03\x04" + bytes(50), b"\x80\x04K\x01."]
    samples += [chance.randbytes(200) for _ in range(200)]
    samples += [b"\x80\x02" + chance.randbytes(100) for _ in range(200)]
    for sample in samples:
        path.write_bytes(sample)
        for load in (load_checkpoint, lambda file: load_weights(nn.Linear(2, 2), file)):
            with pytest.raises(CheckpointError):
                load(path)


class Bomb:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def bombs(folder: Path) -> list[Path]:
    bomb = {"weight": Bomb(folder / "exploded"), "random": []}
    (folder / "plain.pt").write_bytes(pickle.dumps(bomb, protocol=2))
    torch.save(bomb, folder / "zipped.pt")
    torch.save(bomb, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    return [folder / "plain.pt", folder / "zipped.pt", folder / "legacy.pth"]


def test_pickled_code_is_refused_and_not_executed(tmp_path: Path) -> None:
    for path in bombs(tmp_path):
        for load in (load_checkpoint, lambda file: load_weights(nn.Linear(2, 2), file)):
            with pytest.raises(CheckpointError, match="which is never executed"):
                load(path)
        assert not (tmp_path / "exploded").exists()
    pickle.loads((tmp_path / "plain.pt").read_bytes())  # it does explode where it is let
    assert (tmp_path / "exploded").exists()


def test_pickled_whole_network_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match="save a state dict"):
        load_weights(nn.Linear(2, 2), tmp_path / "net.pt")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("wrap", ["", "state_dict", "model", "module."])
def test_weights_come_back(tmp_path: Path, suffix: str, wrap: str) -> None:
    net, path = student_net(), tmp_path / f"w{suffix}"
    state = {f"module.{k}" if wrap == "module." else k: v for k, v in net.state_dict().items()}
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({wrap: state} if wrap in ("state_dict", "model") else state, path)
    other = student_net()
    for value in other.state_dict().values():
        value.zero_()
    load_weights(other, path)
    for name, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_another_architecture_is_told_by_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_model(student_net(), str(path))
    with pytest.raises(CheckpointError) as error:
        load_weights(student_net(norm=False), path)
    assert re.fullmatch(
        re.escape(f"{path} belongs to another architecture than Sequential: first missing key ")
        + r"'none', first unexpected key 'hidden\.1\.\w+'; name the network that it was trained "
        r"as\.",
        str(error.value),
    )
    save_model(student_net(norm=False), str(path))
    with pytest.raises(CheckpointError, match=r"first missing key 'hidden\.1\.weight', first unex"):
        load_weights(student_net(), path)


def test_another_width_is_told_by_its_shape(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_model(student_net(5), str(path))
    with pytest.raises(CheckpointError) as error:
        load_weights(student_net(4), path)
    assert str(error.value) == (
        f"{path} belongs to another architecture than Sequential: 'hidden.0.weight' has shape "
        "(5, 6) there and (4, 6) here; check widths and number of classes."
    )


def test_nothing_is_loaded_of_weights_that_do_not_fit(tmp_path: Path) -> None:
    save_model(student_net(5), str(tmp_path / "w.safetensors"))
    net = student_net(4)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(CheckpointError):
        load_weights(net, tmp_path / "w.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_missing_damaged_and_foreign_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"There is no checkpoint .*none\.pt; check the path"):
        load_weights(nn.Linear(2, 2), tmp_path / "none.pt")
    save_model(nn.Linear(2, 2), str(tmp_path / "w.safetensors"))
    content = (tmp_path / "w.safetensors").read_bytes()
    for length in (0, 5, 20, len(content) - 1):
        (tmp_path / "w.safetensors").write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"w\.safetensors is damaged"):
            load_weights(nn.Linear(2, 2), tmp_path / "w.safetensors")
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        load_weights(nn.Linear(2, 2), tmp_path / "other.pt")


def resume(path: Path, student: nn.Module, **settings: Any) -> None:
    task = TinyTask()
    system = Distillation(student, None, [], task=task)
    config = FitConfig(**{"steps": 2, "batch_size": 8, "threads": 1, "device": "cpu"} | settings)
    fit(
        system, task, config,
        train=task.splits["train"], test=task.splits["test"], checkpoint=path,
    )  # fmt: skip


def test_resuming_from_other_networks_is_told(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    resume(path, student_net())
    with pytest.raises(CheckpointError, match=r"first unexpected key 'hidden\.1\.weight'"):
        resume(path, student_net(norm=False))
    with pytest.raises(CheckpointError, match=r"has shape \(8, 6\) there and \(9, 6\) here"):
        resume(path, student_net(9))
    resume(path, student_net())


def test_resuming_from_something_else_is_told(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"epoch": 3}, path)
    with pytest.raises(CheckpointError, match="is no checkpoint of a run; remove it to start"):
        resume(path, student_net())
    torch.save({"random": [], "log_length": 0}, path)
    with pytest.raises(CheckpointError, match="is a checkpoint of other networks or settings"):
        resume(path, student_net())
