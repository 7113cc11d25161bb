"""A whole run whose teacher runs in int8 says so, on the terminal and on its page."""

from pathlib import Path

import pytest
from tests.trajectory.whole_runs import events, finish, save_teacher, start

import congener
from congener.errors import RecipeError

RECIPE = """
task: {name: image_classification, data: mnist1d}
teacher: {name: cnn1d, channels: 8, checkpoint: TEACHER}
student: mlp
arms:
  kd: {terms: [{loss: {name: kd, temperature: 4}}]}
  sp: {terms: [{loss: sp, weight: 100, student: hidden, teacher: layer3}]}
alone: true
seeds: [0, 1]
train: {steps: 6, batch_size: 64, log_every: 1, threads: 1, device: cpu, teacher_precision: int8}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("TEACHER", str(save_teacher(tmp_path))))
    return path


@pytest.mark.slow
def test_int8_in_a_run(recipe: Path, tmp_path: Path) -> None:
    _, shown = finish(start(recipe, tmp_path / "run"))
    told = [event for event in events(tmp_path / "run") if event["event"] == "teacher_error"]
    assert [event["fit"] for event in told] == ["kd/0", "kd/1", "sp/0", "sp/1"]
    lines = {event["fit"]: event["line"] for event in told}
    assert lines["kd/0"] == lines["kd/1"] != lines["sp/0"] == lines["sp/1"]  # of other taps
    assert "layer3" in lines["sp/0"]
    assert shown.count("teacher in int8 (onnxruntime") == 2
    page = (tmp_path / "run" / "report.html").read_text()
    for arm in ("kd", "sp"):
        assert f'<p class="facts">{arm}: {lines[f"{arm}/0"]}</p>' in page
    assert len(list((tmp_path / "run" / "stages").glob("teacher-int8-*.onnx"))) == 2


def test_what_cannot_be_is_refused_before_the_run(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("congener.teachers.int8.importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="line 10: teacher_precision int8 needs onnx, onnx"):
        congener.run(recipe, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
