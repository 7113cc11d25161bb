"""``import congener.losses`` loads torch, jaxtyping and the lowest floors, and nothing else."""

import json
import subprocess
import sys

import pytest

FLOORS = (
    "congener.losses",
    "congener.ops",
    "congener.types",
    "congener.errors",
    "congener.schedules",
)
FOREIGN = (
    "accelerate",
    "jinja2",
    "matplotlib",
    "mnist1d",
    "pydantic",
    "rich",
    "ruamel",
    "safetensors",
    "scipy",
    "timm",
    "torchmetrics",
    "torchvision",
    "transformers",
    "typer",
    "yaml",
)


def loaded_by(statement: str) -> set[str]:
    """Names of the modules that a fresh interpreter holds after a statement."""
    script = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def intruders(modules: set[str], allowed_by_torch: set[str]) -> set[str]:
    """Modules that importing the losses must not load."""
    ours = {name for name in modules if name.startswith("congener.")}
    above = {name for name in ours if not name.startswith(FLOORS)}
    foreign = {name for name in modules if name.partition(".")[0] in FOREIGN}
    return above | (foreign - allowed_by_torch)


@pytest.fixture(scope="module")
def torch_alone() -> set[str]:
    return loaded_by("import torch, jaxtyping")


def test_losses_need_torch_alone(torch_alone: set[str]) -> None:
    modules = loaded_by("import congener.losses")
    assert intruders(modules, torch_alone) == set()
    assert {"congener.losses.sp", "congener.ops.collectives", "torch"} <= modules
    added = {name.partition(".")[0] for name in modules - torch_alone}
    assert added - sys.stdlib_module_names == {"congener"}


def test_the_check_can_fail(torch_alone: set[str]) -> None:
    modules = loaded_by("import congener.losses, congener.task, safetensors")
    assert {"congener.task", "safetensors"} <= intruders(modules, torch_alone)
