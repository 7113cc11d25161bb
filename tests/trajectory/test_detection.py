"""A run of detectors: what it leaves, and that a kill amid IKD leaves no trace."""

import json
from pathlib import Path

import pytest
from tests.trajectory.whole_runs import events, losses, start, timeless, wait_for, weights

import congener
from congener.report.page import write_report

RECIPE = """
task:
  name: detection
  augment: sample_specific
  data: {name: digit_scenes, scenes: 60, test: 20, labelled: 40}
teacher: {name: small_cnn, channels: 32, train: {steps: 3, batch_size: 8, threads: 1, device: cpu}}
student: {name: small_cnn, widths: [8, 12, 16, 16], channels: 32, convolutions: 1}
arms:
  ikd: {system: {name: ikd, alpha: 0.01}, terms: [{loss: detection_kd}]}
train:
  {steps: 10, batch_size: 8, lr: 0.01, checkpoint_every: 3, log_every: 1, evaluate_every: 5,
   threads: 1, device: cpu}
alone: false
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that was left in peace, and one that was killed in the student's training."""
    folder = tmp_path_factory.mktemp("detection")
    recipe, peace, war = (folder / name for name in ("recipe.yaml", "peace", "war"))
    recipe.write_text(RECIPE)
    congener.run(recipe, out=peace)
    process = start(recipe, war)
    wait_for(process, war, "step", step=5)
    process.kill()
    process.communicate()
    assert list(weights(war)) == ["teacher/weights.safetensors"]
    congener.run(recipe, out=war, resume=True)
    return peace, war


def test_a_kill_leaves_no_trace(runs: tuple[Path, Path]) -> None:
    peace, war = runs
    assert weights(peace) == weights(war)
    assert len(weights(peace)) == 2
    assert [e for e in timeless(peace) if "step" in e] == [e for e in timeless(war) if "step" in e]


def test_every_term_is_at_work(runs: tuple[Path, Path]) -> None:
    logged = losses(runs[0], "ikd/0")
    assert [each["step"] for each in logged] == list(range(10))
    assert set(logged[0]) == {"step", "total", "task", "detection_kd", "adversarial"}
    assert all(each["detection_kd"] > 0 and each["adversarial"] > 0 for each in logged)
    assert sum(each["task"] > 0 for each in logged) > 5  # a batch may have no annotated image


def test_the_report_has_what_a_detector_shows(runs: tuple[Path, Path]) -> None:
    peace = runs[0]
    assert not [e for e in events(peace) if e["event"].endswith("failed")]
    exhibits = json.loads((peace / "exhibits.json").read_text())["exhibits"]
    titles = [each["title"] for each in exhibits]
    assert titles[:2] == ["What is found", "Where each network looks"]
    assert {row["name"] for row in exhibits[0]["rows"]} == {"truth", "teacher", "ikd"}
    page = write_report(peace).read_text(encoding="utf-8")
    assert all(title in page for title in titles)
    assert "mAP" in page
    assert page.count('<li class="scene') >= 4 * len(exhibits[0]["rows"])
    measured = [e["metrics"] for e in events(peace) if e["event"] == "evaluation"]
    assert {"map", "map_50", "map_small", "map_medium"} <= set(measured[-1])
    kept = json.loads((peace / "metrics.json").read_text())["arms"]
    assert kept["ikd"]["metrics"] == {name: [value] for name, value in measured[-1].items()}
    assert kept["ikd"]["metrics"]["map"] == kept["ikd"]["map"]
    assert kept["teacher"]["metrics"].keys() >= {"map", "map_50"}
    assert "mAP small" in page
