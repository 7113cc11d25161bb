"""Every example runs, in a process of its own, as its first lines say."""

import io
import os
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from tests.trajectory.processes import in_processes
from tests.trajectory.whole_runs import REPOSITORY

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))
STEPS = "3"


def run(rank: int, path: Path, folder: Path) -> str:
    """What the example prints, as a program in a folder and with the launcher's words unset."""
    for word in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        del os.environ[word]
    os.chdir(folder)
    sys.argv = [str(path), STEPS]
    with redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(str(path), run_name="__main__")
    return printed.getvalue()


def test_there_are_examples() -> None:
    assert [path.name[:3] for path in EXAMPLES] == [f"{n:02}_" for n in range(1, 1 + len(EXAMPLES))]
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path: Path, tmp_path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 80
    assert f"python examples/{path.name}" in text.split('"""')[1]
    (printed,) = in_processes(1, tmp_path, run, path, tmp_path)
    assert Path(tmp_path, printed.splitlines()[-1]).stat().st_size > 10_000
