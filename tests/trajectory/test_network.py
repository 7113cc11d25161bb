"""Two machines, each a network namespace with an address of its own, and a process killed on one.

sudo pytest -m slow tests/trajectory/test_network.py
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.trajectory.test_two_processes import RECIPE, assert_same_run
from tests.trajectory.whole_runs import (
    REPOSITORY,
    TORCHRUN,
    environment,
    events,
    finish,
    save_teacher,
    start,
    wait_for,
    weights,
)

import congener

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ADDRESSES = ("10.213.7.1", "10.213.7.2")
SOON = 90.0  # seconds within which nobody waits any more for a process that was killed


@pytest.fixture(scope="module")
def machines() -> Iterator[list[str]]:
    """Two network namespaces that a cable joins; for each, the words that run a command in it."""
    names = [f"congener{os.getpid()}{side}" for side in "ab"]
    commands = [f"netns add {name}" for name in names]
    commands += [f"link add cg0 netns {names[0]} type veth peer name cg0 netns {names[1]}"]
    for name, address in zip(names, ADDRESSES, strict=True):
        commands += [f"-n {name} addr add {address}/24 dev cg0", f"-n {name} link set lo up"]
        commands += [f"-n {name} link set cg0 up"]
    try:
        for command in commands:
            try:
                subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True)
            except (OSError, subprocess.CalledProcessError) as error:
                reason = getattr(error, "stderr", "") or error
                pytest.skip(f"network namespaces are not permitted here: ip {command}: {reason}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("TEACHER", str(save_teacher(folder))))
    return path


@pytest.fixture(scope="module")
def alone(recipe: Path) -> Path:
    """The run of one process."""
    congener.run(recipe, out=recipe.parent / "one")
    return recipe.parent / "one"


def start_nodes(machines: list[str], recipe: Path, folder: Path, *arguments: str) -> list[Any]:
    """One launcher on each machine, and for each a run folder that the other does not see."""
    found = []
    for rank, machine in enumerate(machines):
        command = ["ip", "netns", "exec", machine, sys.executable, "-m", "torch.distributed.run"]
        command += ["--nnodes", "2", "--node-rank", str(rank), "--nproc-per-node", "1"]
        command += ["--master-addr", ADDRESSES[0], "--master-port", "29500", "-m", "congener"]
        command += ["run", str(recipe), "--out", str(folder / f"node{rank}"), *arguments]
        process = subprocess.Popen(
            command, env=environment() | {"GLOO_SOCKET_IFNAME": "cg0"}, cwd=REPOSITORY, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        found.append(process)
    return found


def test_two_machines_train_as_one_process(
    machines: list[str], recipe: Path, alone: Path, tmp_path: Path
) -> None:
    for process in start_nodes(machines, recipe, tmp_path):
        finish(process)
    assert_same_run(alone, tmp_path / "node0")
    assert not (tmp_path / "node1").exists()


LONGER = ("train.steps=600", "train.checkpoint_every=20", "train.log_every=20")


def test_a_machine_that_dies_ends_the_run_and_it_goes_on(
    machines: list[str], recipe: Path, tmp_path: Path
) -> None:
    for process in start_nodes(machines, recipe, tmp_path / "peace", *LONGER):
        finish(process)
    out = tmp_path / "war" / "node0"
    nodes = start_nodes(machines, recipe, tmp_path / "war", *LONGER)
    wait_for(nodes[0], out, "step", step=100)
    kill_a_worker(nodes[1])
    assert_all_end(nodes)
    assert 100 <= events(out)[-1]["step"] < 600
    for process in start_nodes(machines, recipe, tmp_path / "war", *LONGER, "--resume"):
        finish(process)
    assert weights(out) == weights(tmp_path / "peace" / "node0")


def test_a_worker_that_is_killed_ends_the_run_and_it_goes_on(recipe: Path, tmp_path: Path) -> None:
    """Two processes of one launcher; the second is killed, and the run resumed."""
    peace, war = tmp_path / "peace", tmp_path / "war"
    finish(start(recipe, peace, *LONGER, launcher=tuple(TORCHRUN)))
    process = start(recipe, war, *LONGER, launcher=tuple(TORCHRUN))
    wait_for(process, war, "step", step=100)
    kill_a_worker(process)
    assert_all_end([process])
    finish(start(recipe, war, *LONGER, "--resume", launcher=tuple(TORCHRUN)))
    assert weights(war) == weights(peace)


def kill_a_worker(launcher: Any) -> None:
    """Kill the last of a launcher's processes that trains."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)


def assert_all_end(launchers: list[Any]) -> None:
    deadline = time.monotonic() + SOON
    for launcher in launchers:
        _, errors = launcher.communicate(timeout=max(1, deadline - time.monotonic()))
        assert launcher.returncode != 0, errors
