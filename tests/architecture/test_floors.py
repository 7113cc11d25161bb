"""Imports go only downwards, and light things stay light; each check can fail."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import congener

ROOT = Path(__file__).parents[2]
SOURCE = Path(congener.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def lint(folder: Path, config: str, source: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of a configuration file against the packages in ``source``."""
    (folder / "contracts.toml").write_text(config)
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [program, "--config", "contracts.toml", "--no-cache"], cwd=folder, capture_output=True,
        text=True, timeout=120, check=False, env=os.environ | {"PYTHONPATH": str(source)},
    )  # fmt: skip


def test_contracts_hold(tmp_path) -> None:
    config = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    said = lint(tmp_path, config, SOURCE.parent)
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    assert said.returncode == 0, said.stdout + said.stderr
    assert f"{len(contracts)} kept, 0 broken" in said.stdout
    assert len(contracts) >= 3


FLOORS = """
[tool.importlinter]
root_package = "house"
include_external_packages = true
[[tool.importlinter.contracts]]
name = "floors"
type = "layers"
layers = ["house.roof", "house.cellar"]
[[tool.importlinter.contracts]]
name = "light"
type = "forbidden"
source_modules = ["house.cellar"]
forbidden_modules = ["torch"]
"""


@pytest.mark.parametrize(
    ("cellar", "verdict"),
    [
        ("", "2 kept, 0 broken"),
        ("import house.roof", "1 kept, 1 broken"),
        ("def f():\n    from house import roof", "1 kept, 1 broken"),
        ("import torch", "1 kept, 1 broken"),
    ],
)
def test_a_contract_can_break(cellar, verdict, tmp_path) -> None:
    (tmp_path / "house").mkdir()
    for name, content in {"__init__": "", "roof": "", "cellar": cellar}.items():
        (tmp_path / "house" / f"{name}.py").write_text(content)
    said = lint(tmp_path, FLOORS, tmp_path)
    assert verdict in said.stdout, said.stdout + said.stderr
    assert (said.returncode == 0) == ("0 broken" in verdict)


def loaded_by(code: str) -> set[str]:
    """The top-level packages that a fresh interpreter has after running some code."""
    said = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        capture_output=True, text=True, timeout=120, check=True,
        env=os.environ | {"PYTHONPATH": str(SOURCE.parent)},
    )  # fmt: skip
    return {name.split(".")[0] for name in said.stdout.split()}


def test_the_report_loads_no_torch() -> None:
    loaded = loaded_by("import congener.report")
    assert "congener" in loaded
    assert not loaded & {"torch", "accelerate", "torchvision"}


def test_the_command_starts_light() -> None:
    assert not loaded_by("import congener, congener.cli") & {"torch", "accelerate", "matplotlib"}


def test_a_load_of_torch_would_show() -> None:
    assert "torch" in loaded_by("import congener.report, congener.types")
