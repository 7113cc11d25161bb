"""Two processes train as one does on the same global batches, in every loss term."""

import sys
from pathlib import Path

import pytest
from tests.trajectory.whole_runs import TORCHRUN, events, finish, losses, save_teacher, start

import congener

# The last batch of an epoch has 4000 - 41 · 96 = 64 samples; steps 41 and 42 straddle epochs.
RECIPE = """
task: {name: image_classification, data: mnist1d}
teacher: {name: cnn1d, channels: 8, checkpoint: TEACHER}
student: mlp
alone: false
terms:
  - {loss: sp, weight: 3000, student: hidden, teacher: layer3}
  - {loss: {name: kd, temperature: 4}, weight: 0.9}
train:
  {steps: 60, batch_size: 96, lr: 5e-3, evaluate_every: 30, log_every: 1, threads: 1, device: cpu}
"""
ACCELERATE = (
    sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
    "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
)  # fmt: skip


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


def assert_same_run(one: Path, two: Path) -> None:
    assert [e["processes"] for e in events(one) if e["event"] == "fit_started"] == [1]
    assert [e["processes"] for e in events(two) if e["event"] == "fit_started"] == [2]
    mine, theirs = losses(one, "distilled/0"), losses(two, "distilled/0")
    assert len(mine) == len(theirs) == 60
    for expected, found in zip(mine, theirs, strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert set(found) == {"step", "total", "task", "sp", "kd"}
    assert mine[0]["total"] > 1.1 * mine[-1]["total"]  # something was learnt
    figures = [
        [e["metrics"] for e in events(out) if e["event"] == "evaluation"] for out in (one, two)
    ]
    assert len(figures[0]) == len(figures[1]) == 2
    for before, after in zip(*figures, strict=True):
        assert after == pytest.approx(before, abs=2e-3)  # a few of 1000 samples on the fence
        assert after["cross_entropy"] == pytest.approx(before["cross_entropy"], abs=1e-4)


def test_torchrun_matches_one_process(recipe: Path, alone: Path) -> None:
    two = recipe.parent / "two"
    _, said = finish(start(recipe, two, launcher=tuple(TORCHRUN)))
    assert "2 processes on cpu" in said
    assert_same_run(alone, two)
    figures = [congener.runlog.read_json(out / "metrics.json")["arms"] for out in (alone, two)]
    assert figures[0]["teacher"]["accuracy"] == figures[1]["teacher"]["accuracy"]


@pytest.mark.slow
def test_accelerate_launch_matches_one_process(recipe: Path, alone: Path) -> None:
    two = recipe.parent / "accelerated"
    finish(start(recipe, two, launcher=ACCELERATE))
    assert_same_run(alone, two)


@pytest.mark.slow
def test_auto_device_joins_the_processes_too(recipe: Path, alone: Path) -> None:
    """Without an accelerator, `device: auto` is not two runs over each other's files."""
    two = recipe.parent / "auto"
    finish(start(recipe, two, "train.device=auto", launcher=tuple(TORCHRUN)))
    assert_same_run(alone, two)
