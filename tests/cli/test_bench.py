"""``congener bench`` tells where its records are; ``report`` knows runs and records apart."""

from pathlib import Path
from typing import Any

import pytest
from tests.cli.refusal import refused
from tests.report.test_records import record

from congener.bench import Record


def test_bench_passes_on_what_it_was_told(recipe, congener, monkeypatch) -> None:
    asked: dict[str, Any] = {}

    def compare(recipes: Any, **options: Any) -> list[Record]:
        asked.update(options, recipes=recipes)
        return [Record(Path("mine/one"), {}), Record(Path("mine/two"), {})]

    monkeypatch.setattr("congener.bench.bench", compare)
    said = congener("bench", recipe, recipe, "--out", "o", "--records", "mine", "--holdout", 7,
                    "--trust", "theirs", "--resume")  # fmt: skip
    assert (said.code, said.err) == (0, "")
    assert said.out == "mine/one\nmine/two\nThe records are in mine/index.html\n"
    assert [described.name for described in asked["recipes"]] == ["recipe", "recipe"]
    assert (asked["out"], asked["records"], asked["holdout"]) == (Path("o"), Path("mine"), 7)
    assert (asked["resume"], asked["trust"]) == (True, ["theirs"])
    # Everything that changes the result or its place, and nothing that says "go on".
    assert asked["command"] == (
        f"congener bench {recipe} {recipe} --out o --records mine --holdout 7 --trust theirs"
    )


def test_bench_of_nothing_on_another_process_says_nothing(recipe, congener, monkeypatch) -> None:
    monkeypatch.setattr("congener.bench.bench", lambda *_, **__: [])
    assert congener("bench", recipe) == (0, "", "")


def test_ctrl_c_during_a_comparison(recipe, congener, monkeypatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        Path("o/tune/a").mkdir(parents=True)
        Path("o/tune/a/recipe.yaml").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("congener.bench.bench", interrupted)
    said = congener("bench", recipe, "--out", "o", "--records", "r")
    assert said.code == 130
    assert said.err == (
        "Stopped; what was done stays. Go on with:\n"
        f"  congener bench {recipe} --out o --records r --holdout 500 --resume\n"
    )


def test_a_report_of_records(tmp_path, congener) -> None:
    record(tmp_path)
    said = congener("report", tmp_path)
    assert (said.code, said.err) == (0, "")
    assert said.out == f"The records are in {tmp_path}/index.html\n"
    assert (tmp_path / "index.html").is_file()
    assert (tmp_path / "README.md").is_file()


@pytest.mark.parametrize("made", [True, False])
def test_a_folder_that_is_neither(tmp_path, congener, made) -> None:
    folder = tmp_path / "none"
    if made:
        folder.mkdir()
    refused(congener("report", folder), "nor does it hold records" if made else "no such directory")


def test_a_damaged_record(tmp_path, congener) -> None:
    (record(tmp_path) / "summary.json").write_text("{}")
    refused(congener("report", tmp_path), "is not what congener bench writes: ")
