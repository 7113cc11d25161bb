"""The page of records says what the summaries say, and plainly where a system does not help."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from tests.report.test_page import Reader

from congener.errors import RunError
from congener.report import holds_records, write_records, write_report
from congener.report.records import read_records

ALONE = [0.600, 0.610, 0.605]
KD = [0.650, 0.662, 0.655]
HARD = [0.640, 0.652, 0.643]
SYSTEM, RESULT, CONTROL_CELL, HARD_CELL, KD_CELL, BEST, VS_ALONE, TEACHER, SEEDS, WORDS = (
    0, 1, 3, 4, 5, 6, 7, 8, 9, 10,
)  # fmt: skip


def compared(mine: list[float], theirs: list[float], higher: bool) -> dict[str, Any]:
    """What ``congener bench`` says of two, from the t distribution itself."""
    differences = [a - b for a, b in zip(mine, theirs, strict=True)]
    n = len(differences)
    p = None
    if n > 1:
        error = np.std(differences, ddof=1) / n**0.5
        p = float(2 * stats.t.sf(abs(np.mean(differences)) / error, n - 1))
    wins = sum((d > 0) == higher and d != 0 for d in differences)
    return {"against": "x", "mean_difference": sum(differences) / n, "wins": wins, "n": n, "p": p}


def record(
    folder: Path, system: str = "sp", values: list[float] | None = None, **changes: Any
) -> Path:
    """A record as ``congener bench`` writes it, beside the student alone and the arms given."""
    values = [0.700, 0.713, 0.704] if values is None else values
    higher = changes.get("higher_is_better", True)
    arms = changes.pop("arms", {"alone": ALONE, "hard": HARD, "kd": KD, "control": [0.58]})
    others = {
        name: theirs * (len(values) if name == "control" else 1)
        for name, theirs in arms.items()
        if name != system
    }
    summary = {
        "task": "image_classification",
        "data": "mnist1d",
        "system": system,
        "metric": "accuracy",
        "higher_is_better": higher,
        "arms": arms | {system: values},
        "comparisons": {name: compared(values, them, higher) for name, them in others.items()},
        "control": {"classifier": "boosting", "metric": "accuracy", "value": 0.58},
        "teacher": [0.924],
        "teacher_model": "cnn1d",
        "learns_from": None,
        "student": "mlp",
        "seeds": list(range(len(values))),
        "steps": 3000,
        "batch_size": 100,
        "command": "congener bench sp --out runs/bench",
    } | changes
    home = folder / f"image_classification-mnist1d-{system}"
    home.mkdir(parents=True)
    (home / "summary.json").write_text(json.dumps(summary))
    return home


def page(folder: Path) -> Reader:
    return Reader(write_records(folder).read_text("utf-8"))


def rows(folder: Path) -> list[list[str]]:
    """The table without its head and the lines that name the data."""
    body = page(folder).tables[0][1:]
    return [[" ".join(cell.split()) for cell in row] for row in body if len(row) > 1]


def test_the_values_of_a_record(tmp_path: Path) -> None:
    record(tmp_path)
    (row,) = rows(tmp_path)
    assert row[SYSTEM] == "sp"
    assert row[RESULT] == "70.6 ± 0.7"
    assert row[2:6] == ["60.5", "58.0", "64.5", "65.6"]
    p = stats.ttest_rel([0.700, 0.713, 0.704], KD).pvalue
    assert row[BEST] == f"+5.0p {'<0.001' if p < 0.001 else f'= {p:.3f}'}, 3 of 3KD"
    assert row[VS_ALONE] == "+10.1p <0.001, 3 of 3"
    assert (row[TEACHER], row[SEEDS]) == ("92.4", "3")
    assert row[WORDS] == (
        "Helps: better than the student alone, the control, hard pseudo-labels and KD."
    )
    text = page(tmp_path).text
    assert "Of 1 record, one is better than the student alone, and one is better than eve" in text
    assert "mlp, taught by cnn1d; 3,000 steps of 100 samples, 3 seeds." in text
    assert "Control: boosting." in text
    assert "congener bench sp --out runs/bench" in text


def test_the_picture_has_every_system_and_every_level(tmp_path: Path) -> None:
    record(tmp_path)
    record(tmp_path, "dist", [0.66, 0.65, 0.67])
    labels = [label for label in page(tmp_path).values("aria-label") if "Dot chart" in label]
    assert len(labels) == 2  # wide and narrow
    assert labels[0] == (
        "Dot chart of accuracy, mean over seeds: sp 70.6 %, dist 66.0 %, alone 60.5 %, "
        "control 58.0 %, hard labels 64.5 %, KD 65.6 %."
    )
    source = (tmp_path / "index.html").read_text("utf-8")
    wide, narrow = source.split('<svg class="wide"')[1], source.split('<svg class="narrow"')[1]
    for name in ("alone", "control", "hard labels", "KD"):
        assert f">{name} {'60.5 %' if name == 'alone' else ''}" in wide
        assert f">{name}<" in narrow
    order = [row[SYSTEM] for row in rows(tmp_path)]
    assert order == ["sp", "dist"]  # the best one first


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.590, 0.597, 0.594], "Does not help: better than the control; worse than the student "
         "alone, hard pseudo-labels and KD."),
        ([0.630, 0.590, 0.600], "No clear gain: not separated from the student alone, the "
         "control, hard pseudo-labels and KD."),
        ([0.590, 0.620, 0.601], "Does not help: not separated from the student alone and the "
         "control; worse than hard pseudo-labels and KD."),
        ([0.656, 0.657, 0.655], "Helps: better than the student alone and the control; not "
         "separated from hard pseudo-labels and KD."),
    ],
)  # fmt: skip
def test_a_system_that_does_not_help_is_told_so(tmp_path: Path, values: Any, said: str) -> None:
    record(tmp_path, values=values)
    assert rows(tmp_path)[0][WORDS] == said
    source = (tmp_path / "index.html").read_text("utf-8")
    assert "none is better than everything beside it" in source
    assert re.search(r'<td class="">\d\d\.\d <span class="sd">', source)  # its result is not bold
    written = (tmp_path / "README.md").read_text("utf-8")
    assert said in written
    assert not re.search(r"\| \*\*\d", written)


def test_only_what_is_clear_is_bold(tmp_path: Path) -> None:
    record(tmp_path)
    record(tmp_path, "dist", [0.630, 0.590, 0.600])
    source = (tmp_path / "README.md", write_records(tmp_path))[0].read_text("utf-8")
    sp, dist = (line for line in source.splitlines() if line.startswith("| mnist1d"))
    assert "| **70.6** ± 0.7 |" in sp
    assert "| **+5.0** (KD; p " in sp
    assert "| 60.7 ± 2.1 |" in dist
    assert "| +0.2 (p = " in dist
    bold = re.findall(r'<td class="main">([^<]*)', write_records(tmp_path).read_text("utf-8"))
    assert [text.strip() for text in bold] == ["70.6", "+5.0", "+10.1"]


def test_lower_is_better(tmp_path: Path) -> None:
    arms = {"alone": [0.40, 0.41, 0.405], "kd": [0.350, 0.362, 0.355]}
    record(tmp_path, values=[0.30, 0.313, 0.304], arms=arms, metric="error", control=None,
           higher_is_better=False)  # fmt: skip
    record(tmp_path, "dist", [0.44, 0.453, 0.444], arms=arms, metric="error", control=None,
           higher_is_better=False)  # fmt: skip
    sp, dist = rows(tmp_path)
    assert (sp[SYSTEM], dist[SYSTEM]) == ("sp", "dist")
    assert sp[BEST].startswith("−5.0")
    assert sp[BEST].endswith("3 of 3KD")
    assert sp[WORDS].startswith("Helps: better than the student alone and KD; not compared with ")
    assert dist[WORDS].startswith("Does not help: worse than the student alone and KD; not ")


def test_one_seed_is_no_test(tmp_path: Path) -> None:
    arms = {"alone": [0.6], "kd": [0.65], "control": [0.58]}
    record(tmp_path, values=[0.9], arms=arms)
    (row,) = rows(tmp_path)
    assert row[RESULT] == "90.0"
    assert row[VS_ALONE] == "+30.0 1 of 1".replace(" ", "", 1)
    assert row[WORDS].startswith("One seed, no test: not separated from the student alone, the co")
    assert "<strong" not in (tmp_path / "index.html").read_text("utf-8")
    assert 'class="main"' not in (tmp_path / "index.html").read_text("utf-8")


def test_what_was_not_run_is_told(tmp_path: Path) -> None:
    record(tmp_path, arms={"alone": ALONE}, control=None, teacher=[], teacher_model="",
           learns_from="alone")  # fmt: skip
    (row,) = rows(tmp_path)
    assert row[2:6] == ["60.5", "–", "–", "–"]
    assert row[BEST].endswith("alone")
    assert row[TEACHER] == "–alone"
    assert row[WORDS] == (
        "Helps: better than the student alone; not compared with the control, hard pseudo-labels "
        "and KD."
    )
    assert "taught by" not in page(tmp_path).text


def test_a_control_of_another_metric_stands_apart(tmp_path: Path) -> None:
    arms = {"alone": ALONE, "kd": KD}
    record(tmp_path, arms=arms, metric="macro_accuracy")
    (row,) = rows(tmp_path)
    assert row[CONTROL_CELL] == "58.0 % accuracy"
    assert "not compared with the control and hard pseudo-labels" in row[WORDS]


def test_names_of_metrics_are_words(tmp_path: Path) -> None:
    control = {"classifier": "pixels", "metric": "recall_at_1", "value": 0.58}
    record(tmp_path, arms={"alone": ALONE, "kd": KD}, metric="micro_auprc", control=control)
    (row,) = rows(tmp_path)
    assert row[CONTROL_CELL] == "58.0 % recall@1"
    text = page(tmp_path).text
    assert "Micro AUPRC in percent on the test set" in text
    assert "mlp, micro AUPRC %" in text
    assert "mlp, micro AUPRC %" in (tmp_path / "README.md").read_text("utf-8")
    for source in (text, (tmp_path / "index.html").read_text("utf-8")):
        assert "auprc" not in source.replace("AUPRC", "")


def test_kd_itself_may_be_the_system(tmp_path: Path) -> None:
    record(tmp_path, "kd", KD, arms={"alone": ALONE, "hard": HARD, "control": [0.58]})
    (row,) = rows(tmp_path)
    assert (row[SYSTEM], row[KD_CELL], row[HARD_CELL]) == ("kd", "–", "64.5")
    assert "not compared" not in row[WORDS]


def test_comparisons_do_not_mix(tmp_path: Path) -> None:
    record(tmp_path)
    record(tmp_path, "dist", [0.66, 0.65, 0.67])
    other = {"alone": [0.5, 0.51, 0.52], "kd": [0.6, 0.61, 0.62], "control": [0.58]}
    record(tmp_path, "crd", [0.66, 0.65, 0.67], arms=other)
    reader = page(tmp_path)
    told = [label for label in reader.values("aria-label") if "Dot chart" in label][::2]
    assert [re.findall(r"(\w+) \d", label.partition("alone")[0]) for label in told] == [
        ["crd"], ["sp", "dist"],
    ]  # fmt: skip
    assert [row[2] for row in rows(tmp_path)] == ["51.0", "60.5", "60.5"]


def test_names_are_text(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    home = record(tmp_path, data=f"{hostile}|`a`\n**b**", student=hostile, command=hostile)
    home.rename(tmp_path / 'a" onclick=(1) [b]')
    record(tmp_path, "$x_{$ <b>|")
    path = write_records(tmp_path)
    source = path.read_text("utf-8")
    reader = Reader(source)
    assert "<script" not in source
    assert "onclick" not in {name for _, attrs in reader.tags for name in attrs}
    assert reader.text.count(hostile) >= 4
    lines = (tmp_path / "README.md").read_text("utf-8").splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 4
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 13 for line in table)
    assert r"\<script\>alert(1)\</script\>\|\`a\` \*\*b\*\*" in table[2]
    assert "(a%22%20onclick%3D%281%29%20%5Bb%5D/recipe.yaml)" in table[2]


def test_no_network_unique_ids_and_the_colours_of_the_page(tmp_path: Path) -> None:
    record(tmp_path)
    record(tmp_path, "dist", data="fashion_mnist")
    source = write_records(tmp_path).read_text("utf-8")
    reader = Reader(source)
    for tag, attrs in reader.tags:
        assert tag not in ("script", "link", "img", "iframe", "object")
        assert "src" not in attrs
        href = attrs.get("href") or ""
        assert ":" not in href
        assert not href.startswith("//")
    assert "@import" not in source
    ids = reader.values("id")
    assert len(ids) == len(set(ids))
    assert "prefers-color-scheme: dark" in source
    assert not re.search(r"#0(?:10203|a0b0\d)", source)  # a sentinel colour shows in one theme only
    assert source.count("<h2>") == 3
    assert 'name="viewport"' in source


def test_the_same_twice_and_the_same_in_markdown(tmp_path: Path) -> None:
    record(tmp_path / "a")
    record(tmp_path / "a", "dist", [0.66, 0.65, 0.67])
    first = write_records(tmp_path / "a").read_bytes()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert write_records(tmp_path / "b").read_bytes() == first
    assert sorted(p.name for p in (tmp_path / "b").iterdir() if p.is_file()) == [
        "README.md", "index.html",
    ]  # fmt: skip
    written = (tmp_path / "b" / "README.md").read_text("utf-8")
    for row in rows(tmp_path / "b"):
        assert row[WORDS] in written
        assert row[RESULT] in written.replace("**", "")


def test_runs_are_no_records(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text("{}")
    (tmp_path / "run" / "metrics.json").write_text("{}")
    assert not holds_records(tmp_path)
    assert not holds_records(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"holds no records; congener bench writes them.*\.$"):
        write_records(tmp_path)
    with pytest.raises(RunError, match=r"not finished yet; nor does it hold records"):
        write_report(tmp_path)
    record(tmp_path)
    assert holds_records(tmp_path)
    assert list(read_records(tmp_path)) == ["image_classification-mnist1d-sp"]
    assert not holds_records(folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("{", "is not readable JSON"),
        ("[1]", "must hold a JSON object, not a list"),
        ({"system": None}, "is not what congener bench writes: system: "),
        ({"system": "dist"}, "writes: the top: arms has no 'dist'"),
        ({"arms": {"sp": [0.7, 0.7, 0.7]}}, "arms has no 'alone'"),
        ({"arms": {"alone": [0.6], "sp": [0.7, 0.7, 0.7]}}, "arms.alone has 1 values for 3 seeds"),
        ({"arms": {"alone": ALONE, "sp": ALONE, "control": []}}, "arms.control has 0 values"),
        ({"comparisons": {}}, "comparisons has no 'alone'"),
        ({"seeds": []}, "seeds: "),
        ({"comparisons": {"alone": {"against": "alone"}}}, "comparisons.alone.mean_difference: "),
    ],
    ids=str,
)
def test_a_damaged_record_is_one_sentence(tmp_path: Path, change: Any, sentence: str) -> None:
    path = record(tmp_path) / "summary.json"
    text = change
    if isinstance(change, dict):
        text = json.dumps(json.loads(path.read_text()) | change)
    path.write_text(text)
    with pytest.raises(RunError, match=r"\.$") as caught:
        write_records(tmp_path)
    assert sentence in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "index.html").exists()


def test_values_that_are_not_finite_leave_gaps(tmp_path: Path) -> None:
    record(tmp_path, "adain", [float("nan")] * 3)
    record(tmp_path, "dist", [0.66, 0.65, 0.67])
    good, bad = rows(tmp_path)
    assert (good[SYSTEM], bad[SYSTEM], bad[RESULT]) == ("dist", "adain", "– ± –")
    assert bad[WORDS].startswith("Does not help: not separated from")


def test_records_do_not_import_torch(tmp_path: Path) -> None:
    record(tmp_path)
    code = (
        "import sys; from pathlib import Path; from congener.report import write_records\n"
        f"write_records(Path({str(tmp_path)!r}))\n"
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_a_larger_network_is_said_to_be_larger(tmp_path: Path) -> None:
    record(tmp_path, system="sp", parameters={"alone": 7434, "sp": 7434})
    record(tmp_path, system="simkd", parameters={"alone": 7434, "simkd": 303_000})
    said = {row[SYSTEM]: row[WORDS] for row in rows(tmp_path)}
    assert len([row for row in page(tmp_path).tables[0][1:] if len(row) == 1]) == 1  # one group
    assert said["simkd"].endswith("larger: 303k parameters, 7.43k of the student alone.")
    assert "larger" not in said["sp"]
