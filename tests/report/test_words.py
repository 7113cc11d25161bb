"""The headline says what happened, and the summary table holds its numbers."""

import json
from pathlib import Path

import numpy as np
import pytest

from congener.errors import RunError
from congener.report import summary_table, write_report
from congener.report.data import read_run
from congener.report.words import headline, tiles


@pytest.fixture
def said(tmp_path: Path, make):
    """The headline of a run with these metrics."""

    def say(content) -> str:
        (tmp_path / "metrics.json").write_text(json.dumps(content))
        return headline(read_run(tmp_path))

    return say


def test_does_not_help(said, make) -> None:
    sentence = said(make.metrics({"alone": 0.61, "kd": 0.58, "sp": 0.602}))
    assert sentence == (
        "Distillation does not help here: the best arm, sp, ends at 60.2 % accuracy where the "
        "same mlp student alone has 61.0 % (−0.8 points, better in 0 of 3 seeds); "
        "the teacher has 92.4 %."
    )
    assert said(make.metrics({"alone": 0.61, "sp": 0.602})).startswith("SP does not help here: it")


def test_no_clear_difference(said, make) -> None:
    content = make.metrics({"alone": 0.61, "sp": 0.612})
    content["comparisons"]["sp"] |= {"wins": 2, "p": 0.4}
    assert "no clear difference here" in said(content)
    assert "(+0.2 points, better in 2 of 3 seeds, p = 0.400)" in said(content)
    content["comparisons"]["sp"] |= {"wins": 3, "mean_difference": 0.0002}
    assert "no clear difference here" in said(content)


def test_weak_evidence_shows_its_p(said, make) -> None:
    content = make.metrics()
    content["comparisons"]["sp"]["p"] = 0.21
    assert "(+9.5 points, 3 of 3 seeds, p = 0.210)" in said(content)


def test_one_seed_says_so(said, make) -> None:
    assert "points, one seed); the teacher" in said(make.metrics(seeds=1))


def test_a_control_that_does_as_well_is_named(said, make) -> None:
    content = make.metrics()
    content["arms"]["kd"] |= {"role": "control", "accuracy": [0.71, 0.72, 0.71]}
    assert said(content).endswith("But the control kd does as well (71.3 %).")


def test_a_teacher_that_is_no_better_than_the_student_is_told(said, make) -> None:
    content = make.metrics({"alone": 0.61, "sp": 0.602})
    assert "no better than" not in said(content)
    content["arms"]["teacher"]["accuracy"] = [0.1] * 3
    assert said(content).endswith("the teacher has 10.0 %, no better than the student alone.")


def test_lower_is_better(said, make) -> None:
    content = make.metrics({"alone": 0.39, "kd": 0.36, "sp": 0.30})
    content |= {"metric": "error", "higher_is_better": False}
    for arm in content["arms"].values():
        arm["error"] = arm.pop("accuracy")
    content["comparisons"]["sp"]["wins"] = 3
    assert said(content).startswith("SP brings the mlp student from 39.0 to 30.0 % error (−9.0")


def test_without_a_teacher_or_a_student_alone(said, make) -> None:
    content = make.metrics()
    del content["arms"]["teacher"], content["arms"]["alone"]
    content["comparisons"] = {}
    assert said(content) == (
        "SP brings the mlp student to 70.5 % accuracy; "
        "no student was trained alone to compare it with."
    )
    for arm in ("kd", "sp", "kd+sp"):
        content["arms"][arm]["accuracy"] = [float("nan")] * 3
    assert "no distilled student with a finite accuracy" in said(content)


def test_a_metric_that_is_no_fraction_is_no_percentage(said, make) -> None:
    content = make.metrics()
    for arm in content["arms"].values():
        arm["accuracy"] = [4 * value for value in arm["accuracy"]]
    content["comparisons"]["sp"]["mean_difference"] *= 4
    assert "from 2.440 to 2.820 accuracy (+0.380, 3 of 3 seeds)" in said(content)


@pytest.mark.parametrize("levels", [{"alone": 0.6}, {"sp": 0.7}])
def test_pages_of_partial_runs(tmp_path: Path, make, levels) -> None:
    content = make.metrics({"alone": 0.6, "sp": 0.7})
    content["arms"] = {name: content["arms"][name] for name in levels}
    content["comparisons"] = {}
    assert write_report(make.run(tmp_path / "run", content)).stat().st_size > 10_000


def test_tiles(tmp_path: Path, make, folder: Path) -> None:
    figures = [figure for figure, _ in tiles(read_run(folder))]
    assert figures == ["70.5 %", "+9.5", "30 %", "84.8×"]
    content = make.metrics()
    content["comparisons"]["sp"]["wins"] = 2
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    assert [figure for figure, _ in tiles(read_run(tmp_path))] == ["70.5 %", "+9.5", "84.8×"]


def test_summary_table(folder: Path) -> None:
    rows = summary_table(folder)
    assert [row.arm for row in rows] == ["teacher", "alone", "kd", "sp", "kd+sp"]
    teacher, alone, _, sp, _ = rows
    assert (teacher.n, teacher.sd, teacher.agreement, teacher.difference) == (1, None, None, None)
    values = json.loads((folder / "metrics.json").read_text())["arms"]["sp"]["accuracy"]
    assert sp.mean == pytest.approx(np.mean(values), abs=1e-15)
    assert sp.sd == pytest.approx(np.std(values, ddof=1), abs=1e-15)
    assert (sp.n, sp.wins, sp.pairs, sp.p) == (3, 3, 3, 0.0021)
    assert sp.difference == pytest.approx(sp.mean - alone.mean)
    assert (sp.parameters, sp.latency_ms, sp.published) == (61_770, 0.42, None)
    assert sp.cells[:6] == ("sp", "70.5 ± 0.4", "71.3", "+9.5", "0.002", "3 of 3")
    assert len(sp.cells) == len(sp.COLUMNS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no metrics.json"),
        ("{", "is not readable JSON"),
        ("[]", "must hold a JSON object, not a list"),
        ('{"metric": 1, "arms": [1]}', "metrics.json is not what a run writes"),
        ("{}", "metrics.json is not what a run writes: name: Field required"),
    ],
)
def test_what_is_no_run_says_so_in_one_sentence(tmp_path: Path, content, message) -> None:
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(RunError, match=r"\.$") as caught:
        write_report(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_folder_and_no_half_page(tmp_path: Path, make) -> None:
    with pytest.raises(RunError, match="is not a run folder"):
        summary_table(tmp_path / "nowhere")
    folder = make.run(tmp_path / "run")
    (folder / "environment.json").write_text("{")
    with pytest.raises(RunError, match=r"environment\.json is not readable JSON"):
        write_report(folder)
    assert not list(folder.glob("*report*"))
