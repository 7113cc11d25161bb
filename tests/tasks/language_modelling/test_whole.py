"""Language recipes from end to end: examined, run, and shown."""

from pathlib import Path
from typing import Any

from congener.preflight import doctor
from congener.recipe import parse_recipe
from congener.runner import execute

RECIPE: dict[str, Any] = {
    "name": "words",
    "task": {
        "name": "language_modelling",
        "data": {"name": "shuffle", "digits": 3, "samples": 120, "test": 12, "labelled": 30,
                 "teacher": 60},
    },
    "teacher": {"name": "llama", "hidden_size": 16, "layers": 1, "heads": 2,
                "train": {"steps": 3, "batch_size": 8, "threads": 1}},
    "student": {"name": "llama", "hidden_size": 8, "layers": 1, "heads": 2},
    "terms": [{"loss": {"name": "gkd", "beta": 0}}],
    "train": {"steps": 3, "batch_size": 8, "labelled_per_batch": 4, "threads": 1},
}  # fmt: skip


def test_a_sound_recipe_has_no_findings() -> None:
    assert doctor(RECIPE) == []


def test_a_run_measures_all_and_shows_answers(tmp_path: Path) -> None:
    run = execute(parse_recipe(RECIPE), tmp_path / "run")
    assert list(run.metrics["arms"]) == ["teacher", "alone", "distilled"]
    assert run.metrics["metric"] == "valid_sampled"
    shown = (run.folder / "exhibits.json").read_text()
    assert "What networks answer" in shown
    assert "KL to the teacher" in shown
