"""A run of two-stage detectors: a kill leaves no trace, and every term is at work."""

from pathlib import Path

import pytest
from tests.trajectory.whole_runs import losses, start, timeless, wait_for, weights

import congener

RECIPE = """
task:
  name: detection
  detector: faster_rcnn
  anchor_scale: 2
  proposals: 32
  augment: sample_specific
  data: {name: digit_scenes, scenes: 60, test: 20, labelled: 40}
teacher:
  {name: small_cnn, channels: 16, box_width: 32,
   train: {steps: 3, batch_size: 8, threads: 1, device: cpu}}
student: {name: small_cnn, widths: [8, 12, 16, 16], channels: 16, box_width: 32}
arms:
  all:
    system: {name: ikd, alpha: 0.01}
    terms:
      - {loss: {name: detection_kd, activation: softmax}}
      - {loss: dist, at: proposals}
      - {loss: sp, at: objects, student: &fine backbone.fpn.layer_blocks.0, teacher: *fine}
      - {loss: fgd, student: *fine, teacher: *fine}
      - {loss: fgfi, student: *fine, teacher: *fine}
train:
  {steps: 8, batch_size: 8, lr: 0.01, checkpoint_every: 3, log_every: 1, evaluate_every: 5,
   threads: 1, device: cpu}
alone: false
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that was left in peace, and one that was killed in the student's training."""
    folder = tmp_path_factory.mktemp("two-stage")
    recipe, peace, war = (folder / name for name in ("recipe.yaml", "peace", "war"))
    recipe.write_text(RECIPE)
    congener.run(recipe, out=peace)
    process = start(recipe, war)
    wait_for(process, war, "step", step=4)
    process.kill()
    process.communicate()
    congener.run(recipe, out=war, resume=True)
    return peace, war


def test_a_kill_leaves_no_trace(runs: tuple[Path, Path]) -> None:
    peace, war = runs
    assert weights(peace) == weights(war)
    assert len(weights(peace)) == 2
    assert [e for e in timeless(peace) if "step" in e] == [e for e in timeless(war) if "step" in e]


def test_every_term_is_at_work(runs: tuple[Path, Path]) -> None:
    logged = losses(runs[0], "all/0")
    assert [each["step"] for each in logged] == list(range(8))
    terms = {"detection_kd", "dist", "sp", "fgd", "fgfi", "adversarial"}
    assert set(logged[0]) == {"step", "total", "task", *terms}
    assert all(each[name] > 0 for each in logged for name in terms)
