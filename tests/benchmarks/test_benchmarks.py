"""The benchmarks say what they print, print what they should, and do not stop at a miss."""

import importlib
import json
import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests.benchmarks import tiny

FOLDER = Path(__file__).parents[2] / "benchmarks"
FILES = sorted(path.stem for path in FOLDER.glob("bench_*.py"))


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(load("harness"), "START", "fork")  # importing torch anew takes seconds


def load(name: str):
    return importlib.import_module(name)


def test_every_benchmark_names_its_lines() -> None:
    names = [name for file in FILES for bench in load(file).BENCHES for name in bench.names]
    assert len(FILES) >= 10
    assert len(set(names)) == len(names) > 100


@pytest.mark.parametrize("file", FILES)
def test_nothing_is_measured_that_was_not_asked_for(file) -> None:
    assert [line for bench in load(file).BENCHES for line in bench.run([])] == []


@pytest.mark.parametrize(
    ("ratio", "goal", "more", "reached"),
    [
        (1.0, None, [], None), (1.0, 1.0, [], True), (1.1, 1.0, [], False),
        (1.0, 1.0, [False], False), (None, 1.0, [True], True), (None, None, [False], False),
    ],
)  # fmt: skip
def test_line_is_reached_when_no_goal_is_missed(ratio, goal, more, reached) -> None:
    harness = load("harness")
    line = harness.line("x", 3, ratio=ratio, goal=goal, more_goals=more)
    assert line["reached"] is reached
    assert set(harness.KEYS) <= line.keys()


def test_comparison_prints_a_line(capsys, monkeypatch) -> None:
    harness = load("harness")
    asked = harness.Comparison(
        "the double", tiny.numbers, None, tiny.double, rounds=1, seconds_goal=0
    )
    monkeypatch.setattr("sys.argv", ["bench", "double"])
    with pytest.raises(SystemExit) as end:
        harness.main([asked, harness.Comparison("left out", tiny.numbers, None, tiny.fails)])
    (line,) = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert end.value.code == 1
    assert (line["name"], line["n"], line["reached"]) == ("the double", 1, False)
    assert line["seconds"] > 0 == line["seconds_goal"]
    assert line["memory_mb"] >= 0


def test_comparison_refuses_other_values() -> None:
    harness = load("harness")
    wrong = harness.Comparison("wrong", tiny.numbers, tiny.double, tiny.double, rtol=0.1)
    values = np.arange(6.0)
    harness._assert_equal(wrong, [values, 2 * values], [values, 1.9 * values], "plain")
    with pytest.raises(AssertionError, match="wrong: array 1 is 5 off plain's, whose largest"):
        harness._assert_equal(wrong, [values, 2 * values], [values, values], "plain")


def test_race_takes_turns_and_goes_on_without_a_loop_that_fails() -> None:
    races = load("races")
    loops = {"plain": tiny.train, "ours": partial(tiny.train), "broken": tiny.fails}
    lines = [
        races.Ratio("sound", "ours", "plain", goal=1e9, faults_goal=-1),
        races.Ratio("broken", "broken", "plain", goal=1.0),
    ]
    race = races.Race(loops, lines, alike={"ours": 1e-9, "broken": 1e-9}, rounds=2, starts=2)
    sound, broken = race.run(race.names)
    assert sound["ratio"] > 0
    assert (sound["n"], sound["reached"], sound["goal"]) == (4, False, 1e9)
    assert sound["faults"] >= 0 > sound["faults_goal"]
    assert broken["reached"] is False
    assert broken["error"] == "broken: RuntimeError: no such loop"


def test_race_refuses_a_loop_that_moves_otherwise() -> None:
    race = load("races").Race({"a": tiny.train, "b": tiny.train}, [], alike={"b": 0.01})
    moved = {"a": np.array([3.0, 4.0]), "b": np.array([3.0, 4.06])}
    with pytest.raises(
        AssertionError, match=r"'b' moves the parameters otherwise than 'a': by 0\.01"
    ):
        race._assert_alike("b", moved)
    race._assert_alike("b", moved | {"b": np.array([3.0, 4.04])})


def test_line_of_a_race_is_ours_over_the_other() -> None:
    races = load("races")
    turns = {
        "ours": [races.Turn(seconds, 5, 30) for seconds in (2.0, 3.0, 8.0)],
        "other": [races.Turn(seconds, 7, 20) for seconds in (1.0, 2.0, 4.0)],
    }
    goals = {"goal": 2, "memory_ratio_goal": 1.5, "excess_goal": 1e6, "faults_goal": 5}
    for key in (None, *goals):
        tight = goals | ({} if key is None else {key: 0.9 * goals[key]})
        each = races.Ratio("x", "ours", "other", **tight)
        line = races.Race({}, [each], rounds=3)._line(each, turns, {})
        assert (line["ratio"], line["memory_ratio"], line["excess_us"]) == (2, 1.5, 1e6)
        assert (line["faults"], line["faults_other"], line["seconds"]) == (5, 7, 3)
        assert (line["memory_mb"], line["memory_mb_other"], line["n"]) == (30, 20, 3)
        assert line["reached"] is (key is None)


def test_gate_measures_the_steps_of_a_turn_alone(monkeypatch) -> None:
    races, clock = load("races"), iter([10.0, 16.0, 20.0])
    asked, answers = iter([3, "parameters", 1]), []
    pipe = SimpleNamespace(recv=lambda: next(asked), send=answers.append)
    monkeypatch.setattr(races.time, "process_time", lambda: next(clock))
    counts = iter([SimpleNamespace(ru_minflt=count) for count in (1000, 1150, 2000)])
    monkeypatch.setattr(races.resource, "getrusage", lambda who: next(counts))
    gate, net = races._Gate(pipe, Path()), tiny.nn.Linear(2, 1)
    for _ in range(3):
        gate(net)
    seconds, faults, peak = answers[0]
    assert (seconds, faults) == (2.0, 50.0)
    assert peak >= 0
    assert answers[1].shape == (3,)
    assert len(answers) == 2


def test_run_goes_on_after_a_failure_and_says_so(tmp_path) -> None:
    run = load("run")
    sound = {"name": "a", "ratio": 1, "goal": None, "reached": None, "memory_mb": None, "n": 1}
    file = tmp_path / "bench_broken.py"
    file.write_text(f'print({json.dumps(json.dumps(sound))})\nprint(\'{{"name": "b"}}\')\n1 / 0\n')
    found = list(run.lines_of(file, []))
    assert [line["name"] for line in found] == ["a", "b", "bench_broken failed"]
    assert [line["reached"] for line in found] == [None, False, False]
    assert found[0] == sound | {"bench": "bench_broken"}
    assert found[1]["missing"] == ["ratio", "goal", "reached", "memory_mb", "n"]
    assert found[2]["error"] == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize("reached", [None, True, False])
@pytest.mark.parametrize("words", [[], ["c"]])
def test_run_keeps_the_lines_that_it_did_not_measure(words, reached, tmp_path, monkeypatch) -> None:
    run = load("run")
    blank = {"ratio": 2, "goal": 1, "reached": False, "memory_mb": 3, "n": 4, "bench": "bench_x"}
    now = blank | {"name": "c", "n": 5, "reached": reached}
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results" / "latest.jsonl")
    monkeypatch.setattr(run, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(
        run, "lines_of", lambda file, words: [now, now | {"name": "d", "reached": True}]
    )
    (tmp_path / "bench_x.py").touch()
    run.RESULTS.parent.mkdir()
    old = [blank | {"name": name} for name in ("a", "c", "bench_x failed")]
    run.RESULTS.write_text("".join(json.dumps(line) + "\n" for line in old))
    run.PAGE.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    assert run.main(words) == (reached is False)
    kept = [json.loads(text) for text in run.RESULTS.read_text().splitlines()]
    found = [(line["name"], line["n"]) for line in kept]
    assert found == [("a", 4)] * len(words) + [("c", 5), ("d", 5)]
    page = run.PAGE.read_text()
    assert "old" not in page
    assert page.startswith("before\n<!-- results -->\n")
    word = {None: "", True: "yes", False: "**no**"}[reached]
    assert f"| c | 2 | ≤ 1 | {word} | 3.0 | 5 |\n" in page
    assert page.endswith("| d | 2 | ≤ 1 | yes | 3.0 | 5 |\n<!-- /results -->\nafter\n")


def test_table_shows_each_goal_beside_what_was_measured() -> None:
    page, harness = load("page"), load("harness")
    line = harness.line(
        "x", 9, ratio=0.51234, goal=0.5, memory_mb=12.34, more_goals=[True], faults=7.0,
        faults_goal=100, mb_per_second=400, mb_per_second_goal=300,
    )  # fmt: skip
    text = page.measured([line | {"bench": "bench_y"}])
    row = "| x | 0.512; 7 page faults; 400 MB/s | ≤ 0.5; ≤ 100; ≥ 300 | **no** | 12.3 | 9 |"
    assert text.endswith(row)
    assert "0 of 1 goals reached" in text
    assert "### y" in text


def test_page_has_the_plan_that_the_assumptions_give() -> None:
    page, plan = load("page"), load("paper_plan")
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.rewritten(text, {"plan": plan.tables()}) == text
    with pytest.raises(ValueError, match="has no place for 'other'"):
        page.rewritten(text, {"other": ""})


def test_plan_is_the_arithmetic_of_its_formulas() -> None:
    plan = load("paper_plan")
    images = plan.PLANS[0]
    field = images.fields["logits, fp16"]
    each = 2 * 1000 + 2 + 4  # numbers, the maximum, the witness
    assert plan.bytes_of(field) == each
    flops = plan.PEAK.value * plan.SHARE.value
    hour = plan.RANK_HOUR.value / 3600
    live = images.samples * images.epochs * images.teacher / flops * hour
    once = images.samples * images.views * images.teacher / flops * hour
    disk = images.samples * images.views * each / 1e9 * plan.DISK_MONTH.value * plan.MONTHS.value
    assert plan.demand(images, field) == pytest.approx(each * flops / (3 * images.student))
    assert plan.pays_from(images, field) == math.ceil((once + disk) / live)
    assert plan.pays_from(images, images.fields["last map, fp16"]) is None
    tokens = plan.PLANS[2]
    seconds = 3 * tokens.student * tokens.samples * tokens.epochs / flops
    assert plan.ranks(tokens) == math.ceil(seconds / (7 * 86400))
