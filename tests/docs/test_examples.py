"""Every example runs, in a process of its own, as its first lines say."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.trajectory.whole_runs import REPOSITORY, environment

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))
STEPS = "3"


def test_there_are_examples() -> None:
    assert [path.name[:3] for path in EXAMPLES] == [f"{n:02}_" for n in range(1, 1 + len(EXAMPLES))]
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path: Path, tmp_path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 80
    assert f"python examples/{path.name}" in text.split('"""')[1]
    command = [sys.executable, "-W", "error", str(path), STEPS]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert Path(tmp_path, done.stdout.splitlines()[-1]).stat().st_size > 10_000
