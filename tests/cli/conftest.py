"""A recipe on tiny files, and the command called in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.tasks.image_classification.conftest import write_mnist

from congener.cli import main

RECIPE = """\
# A perceptron teaches a smaller one.
task:
  name: image_classification
  data: {name: mnist, root: ROOT}
teacher:
  name: mlp
  hidden: [16]
  train: {steps: 2, batch_size: 10, device: cpu}
student: {name: mlp, hidden: [8]}
arms:
  kd:
    task_weight: 0.5
    terms:
      - loss: {name: kd, temperature: 4}
        weight: 0.5
  sp:
    terms:
      - loss: sp
        weight: 10
        student: hidden
        teacher: hidden.0
train: {steps: 2, batch_size: 10, device: cpu}
seeds: [0]
"""


class Said(NamedTuple):
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def congener(monkeypatch, capsys) -> Command:
    """``congener("run", path)`` calls the command's entry point in this process."""

    def call(*words: object) -> Said:
        monkeypatch.setattr("sys.argv", ["congener", *map(str, words)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        return Said(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """Thirty images in the original files of MNIST."""
    folder = tmp_path_factory.mktemp("mnist")
    write_mnist(folder, zipped=False)
    return folder


@pytest.fixture
def text(digits: Path) -> str:
    """A recipe that runs."""
    return RECIPE.replace("ROOT", str(digits))


@pytest.fixture
def recipe(text: str, tmp_path: Path, monkeypatch) -> Path:
    """The file of a recipe that runs, in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path
