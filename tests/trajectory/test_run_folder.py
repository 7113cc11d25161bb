"""A run folder after a start that was cut off, and after a run that had ended already."""

from pathlib import Path

from tests.trajectory.whole_runs import timeless, weights

import congener

RECIPE = {
    "name": "small",
    "task": {"name": "image_classification", "data": "mnist1d"},
    "student": "mlp",
    "train": {"steps": 3, "threads": 1, "device": "cpu"},
}


def test_resuming_a_run_that_had_ended_changes_nothing(tmp_path: Path) -> None:
    congener.run(RECIPE, out=tmp_path / "run")
    events, before = timeless(tmp_path / "run"), weights(tmp_path / "run")
    congener.run(RECIPE, out=tmp_path / "run", resume=True)
    assert timeless(tmp_path / "run") == events
    assert weights(tmp_path / "run") == before


def test_draft_of_a_start_that_was_cut_off_is_no_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / ".recipe.yaml.4242").write_text("task: {na")
    congener.run(RECIPE, out=out)
    assert timeless(out)[0]["event"] == "run_started"


def test_run_cut_off_before_its_first_event_still_gets_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    congener.run(RECIPE, out=tmp_path / "straight")
    out.mkdir()
    for name in ("recipe.yaml", "environment.json"):
        (out / name).write_text((tmp_path / "straight" / name).read_text())
    congener.run(RECIPE, out=out, resume=True)
    assert timeless(out) == timeless(tmp_path / "straight")
