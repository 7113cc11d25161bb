"""Ctrl-C on the command line: it saves, says how to go on, and what it says works."""

import shlex
import signal
import sys
from pathlib import Path

import pytest
from tests.trajectory.whole_runs import events, start, timeless, wait_for, weights

import congener
import congener.cli

RECIPE = """
task: {name: image_classification, data: mnist1d}
teacher: {name: cnn1d, channels: 8, train: {steps: 10, batch_size: 100, threads: 1, device: cpu}}
student: tests.trajectory.whole_runs.DropoutNormStudent
alone: false
terms: [{loss: sp, weight: 100, student: hidden, teacher: layer3}]
train:
  {steps: 900, batch_size: 96, lr: 5e-3, evaluate_every: 400, log_every: 20, threads: 1,
   device: cpu}
"""


def test_control_c_saves_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = tmp_path / "a recipe.yaml", tmp_path / "stopped"
    recipe.write_text(RECIPE)
    process = start(recipe, out, "student.width=16", "--trust", "tests")
    wait_for(process, out, "step", step=40)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    said, command = errors.split("Stopped; the checkpoint is saved. ")[1].split("\n", 1)
    assert said == "Go on with:"
    assert "Traceback" not in errors
    assert shlex.split(command) == [
        "congener", "run", str(recipe), "student.width=16", "--out", str(out), "--trust", "tests",
        "--resume",
    ]  # fmt: skip
    last = events(out)[-1]
    assert last["event"] == "interrupted"
    assert 40 <= last["step"] < 900
    assert list(weights(out)) == ["teacher/weights.safetensors"]

    monkeypatch.setattr(sys, "argv", shlex.split(command))
    monkeypatch.setattr(congener.cli, "_print_table", lambda folder: None)
    with pytest.raises(SystemExit) as ended:
        congener.cli.main()
    assert ended.value.code == 0
    straight = tmp_path / "straight"
    congener.run(recipe, out=straight, overrides=["student.width=16"], trust=["tests"])
    assert weights(out) == weights(straight)
    found, wanted = timeless(out), timeless(straight)
    assert found[0].pop("name") == wanted[0].pop("name") == "a recipe"
    assert found == wanted
