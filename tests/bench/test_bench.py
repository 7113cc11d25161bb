"""A fair comparison: what is merged, what is tuned on what, and that a record says what was run."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import mnist1d.data
import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from scipy import stats
from tests.bench.conftest import CLASSIFIERS, TERMS, recipe
from tests.report.tagging import Tones

from congener import bench
from congener.assembly import Assembly
from congener.errors import CongenerError, NonFiniteLossError, RecipeError, RunError
from congener.recipe import Recipe, dump_recipe, load_recipe, parse_recipe
from congener.report import write_records
from congener.runlog import read_json
from congener.runner import compare

NOTHING: dict[str, Any] = {"trust": (), "observers": (), "command": None}
ROOT = "image_classification-mnist1d-"


def yaml(text: str) -> dict[str, Any]:
    values: dict[str, Any] = YAML(typ="safe").load(text)
    return values


def refused(*recipes: Recipe) -> str:
    with pytest.raises(RecipeError, match=r"\.$") as caught:
        bench.merge(recipes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def summary(home: Path, arm: str = "sp") -> dict[str, Any]:
    return read_json(home / "records" / f"{ROOT}{arm}" / "summary.json")


# merge


def test_arms_of_all_recipes_in_their_order() -> None:
    merged = bench.merge([recipe("kd", "sp"), recipe("kd")])
    assert list(merged.all_arms) == ["alone", "kd", "sp"]
    assert merged.title == "kd+sp, kd"


def test_the_one_arm_of_a_short_recipe_counts() -> None:
    short = recipe(terms=TERMS["kd"]["terms"], task_weight=0.1)
    merged = bench.merge([short, recipe("sp")])
    assert list(merged.contenders) == ["distilled", "sp"]
    assert merged.contenders["distilled"].task_weight == 0.1


def test_a_merged_recipe_can_be_read_again() -> None:
    merged = bench.merge([recipe(terms=TERMS["kd"]["terms"], task_weight=0.1)])
    assert parse_recipe(yaml(dump_recipe(merged))).contenders == merged.contenders


def test_what_is_only_the_start_of_another_arm_has_no_record() -> None:
    hint = TERMS["sp"] | {"task_weight": 0}
    arms = {"hint": hint, "kd": TERMS["kd"], "fitnets": TERMS["kd"] | {"starts_from": "hint"}}
    assert bench._methods(recipe(arms=arms)) == ["fitnets"]
    arms["hint"] = TERMS["sp"] | {"task_weight": 0.1}
    assert bench._methods(recipe(arms=arms)) == ["hint", "fitnets"]
    assert bench._methods(recipe("kd")) == ["kd"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("task", {"name": "image_classification", "data": "mnist1d"}),
        ("teacher", {"name": "mlp", "train": {"steps": 1}}),
        ("teachers", {"second": {"name": "mlp", "checkpoint": "a.pt"}}),
        ("student", "mlp"),
        ("train", {"steps": 6}),
        ("seeds", [0]),
    ],
)
def test_what_differs_is_not_compared(key: str, value: Any) -> None:
    assert f"differ in {key!r}; a fair" in refused(recipe("kd"), recipe("sp", **{key: value}))


def test_what_cannot_be_merged() -> None:
    assert "name one recipe or more" in refused()
    assert "has no arms to compare" in refused(recipe())
    other = recipe(arms={"kd": TERMS["kd"] | {"task_weight": 0.2}}, name="other")
    assert "The arm 'kd' of 'other' differs from that of another" in refused(recipe("kd"), other)
    assert "'sp' says `alone: false`; a fair" in refused(recipe("kd"), recipe("sp", alone=False))
    assert "cannot be called 'control'" in refused(recipe(arms={"control": TERMS["kd"]}))


# the validation slice


def test_the_slice_is_the_end_of_the_training_set() -> None:
    whole = Assembly(recipe("kd", task={"name": "image_classification", "data": "mnist1d"})).task
    for data in ("mnist1d", {"name": "mnist1d", "pool": 300}):
        given = recipe("kd", task={"name": "image_classification", "data": data})
        splits = Assembly(bench._sliced(given, 60)).task.splits
        assert torch.equal(splits["test"].images, whole.splits["train"].images[-60:])
        assert torch.equal(splits["test"].labels, whole.splits["train"].labels[-60:])
        assert not set(splits["test"].ids.tolist()) & set(splits["train"].ids.tolist())
        assert len(splits["train"]) == (3940 if data == "mnist1d" else 300)


def test_what_cannot_be_sliced() -> None:
    task = Assembly(recipe("kd")).task
    held = {"name": "image_classification", "data": {"name": "mnist1d", "holdout": 10}}
    for given, sentence in {
        task: "needs a `task` by name with its `data`",
        "image_classification": "needs a `task` by name with its `data`",
        json.dumps(held): "leave `holdout` out of the recipe",
    }.items():
        value = json.loads(given) if str(given).startswith("{") else given
        with pytest.raises(RecipeError, match=sentence):
            bench._sliced(recipe("kd", task=value), 60)


# tuning


def test_the_best_on_the_slice_is_chosen(tmp_path: Path, monkeypatch: Any) -> None:
    """With a run that only tells its settings, and a slice on which the second is best."""
    monkeypatch.setattr(bench, "FACTORS", {"lr": (1 / 3, 1.0, 3.0), "weight_decay": (1.0, 3.0)})
    asked: list[Recipe] = []

    def run(described: Recipe, *, out: Path, **_: Any) -> None:
        asked.append(described)
        if described.train.lr == 0.03:
            raise NonFiniteLossError("The loss is not finite.")
        value = described.train.lr + (0.5 if described.train.weight_decay == 0.1 else 0)
        out.mkdir(parents=True)
        found = {"metric": "accuracy", "arms": {"alone": {"accuracy": [value - 0.1, value + 0.1]}}}
        (out / "metrics.json").write_text(json.dumps(found))

    monkeypatch.setattr(bench, "run", run)
    tried = bench._tune(recipe("kd", seeds=[4, 2, 9]), tmp_path, 60, NOTHING)
    assert [each["settings"] for each in tried] == [
        {"lr": lr, "weight_decay": decay} for lr in (0.00333, 0.01, 0.03) for decay in (0.1, 0.3)
    ]
    assert [each["mean"] for each in tried] == pytest.approx(
        [0.50333, 0.00333, 0.51, 0.01, None, None]
    )
    assert all(each["seeds"] == [4, 2] for each in tried)
    assert bench._best(tried, higher=True)["settings"] == {"lr": 0.01, "weight_decay": 0.1}
    assert bench._best(tried, higher=False)["settings"] == {"lr": 0.00333, "weight_decay": 0.3}
    for described in asked:
        assert list(described.all_arms) == ["alone"]
        assert described.seeds == (4, 2)
        assert described.teacher is None
        assert described.task.arguments["data"]["holdout"] == 60


def test_no_setting_that_works_is_one_sentence() -> None:
    tried = [{"mean": None}, {"mean": float("nan")}]
    with pytest.raises(CongenerError, match=r"diverges under every setting.*lower train\.lr\.$"):
        bench._best(tried, higher=True)


def test_settings_without_multiples_are_tried_once(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(bench, "FACTORS", {"weight_decay": (1 / 3, 1.0, 3.0)})
    train = recipe("kd").train.model_dump() | {"weight_decay": 0.0, "lr": 0.012345}
    monkeypatch.setattr(bench, "_run", lambda *_: {"metric": "m", "arms": {"alone": {"m": [1.0]}}})
    tried = bench._tune(recipe("kd", train=train), tmp_path, 60, NOTHING)
    assert [each["settings"] for each in tried] == [{"weight_decay": 0.0}]
    assert bench._scaled(0.012345, 1.0) == 0.012345  # the recipe's own, not rounded
    assert bench._scaled(0.012345, 1 / 3) == 0.00411  # three digits are enough


def test_a_sampler_that_needs_the_teacher_has_it(tmp_path: Path, monkeypatch: Any) -> None:
    asked = []
    monkeypatch.setattr(
        bench,
        "_run",
        lambda alone, *_: asked.append(alone) or {"metric": "m", "arms": {"alone": {"m": [1.0]}}},
    )
    train = recipe("kd").train.model_dump() | {"sampler": "superclass_uniform", "batch_size": 8}
    given = recipe("kd", train=train)
    bench._tune(given, tmp_path, 60, NOTHING)
    assert all(alone.teacher == given.teacher for alone in asked)


def test_tuning_never_looks_at_the_test_set(tmp_path: Path, monkeypatch: Any) -> None:
    """Another test set changes nothing, and another slice does."""

    def tuned(name: str) -> list[float]:
        return [t["mean"] for t in bench._tune(recipe("kd"), tmp_path / name, 60, NOTHING)]

    before = tuned("before")
    draw = mnist1d.data.make_dataset

    def spoilt(part: str, arguments: Any) -> Any:
        drawn = dict(draw(arguments))
        size = slice(None) if part.endswith("test") else slice(-60, None)
        drawn[part] = np.array(drawn[part])
        drawn[part][size] = (drawn[part][size] + 1) % 10
        return drawn

    monkeypatch.setattr(mnist1d.data, "make_dataset", partial(spoilt, "y_test"))
    assert tuned("test") == before
    monkeypatch.setattr(mnist1d.data, "make_dataset", partial(spoilt, "y"))
    assert tuned("slice") != before


# the control


def test_the_control_is_chosen_on_the_slice(monkeypatch: Any) -> None:
    """Of two, the one that is better on the slice and worse on the test set."""
    whole = recipe("kd")
    task, held = Assembly(whole).task, Assembly(bench._sliced(whole, 60)).task
    seen: list[tuple[str, int, int]] = []

    class Told:
        def __init__(self, name: str) -> None:
            self.name = name

        def fit(self, x: Any, y: Any) -> "Told":
            assert x.shape == (len(y), 40)
            self.trained = len(y)
            return self

        def score(self, x: Any, y: Any) -> float:
            seen.append((self.name, self.trained, len(y)))
            return {("a", 60): 0.6, ("b", 60): 0.5, ("a", 1000): 0.1, ("b", 1000): 0.9}[
                self.name, len(y)
            ]

    monkeypatch.setattr(bench, "_classifiers", lambda: {n: partial(Told, n) for n in "ab"})
    found = bench.control(task, held)
    assert (found["classifier"], found["metric"], found["value"]) == ("a", "accuracy", 0.1)
    assert found["chosen_on"] == {"a": 0.6, "b": 0.5}
    assert seen == [("a", 300, 60), ("b", 300, 60), ("a", 300, 1000)]


def test_the_control_learns_from_labelled_samples_only() -> None:
    data = {"name": "mnist1d", "pool": 300, "labelled": 40}
    task = Assembly(recipe("kd", task={"name": "image_classification", "data": data})).task
    x, y = bench._arrays(task, "train")
    assert (x.shape, y.shape) == ((40, 40), (40,))
    assert (y >= 0).all()


def test_a_task_may_know_its_own_control(monkeypatch: Any) -> None:
    task = Assembly(recipe("kd")).task
    told = {"classifier": "a rule", "metric": "accuracy", "value": 0.25, "chosen_on": {"a rule": 1}}
    asked = []
    task.control = lambda held: asked.append(held) or told  # type: ignore[method-assign]
    monkeypatch.setattr(bench, "_classifiers", None)
    assert bench.control(task, held="the slice") == told  # type: ignore[arg-type]
    assert asked == ["the slice"]


def test_without_classes_or_images_no_control_is_known(monkeypatch: Any) -> None:
    monkeypatch.setattr(bench, "_classifiers", None)
    assert bench.control(Tones(), Tones()) is None
    task = Assembly(recipe("kd")).task
    task.class_names = ()
    assert bench.control(task, task) is None


def test_without_scikit_learn_the_install_line(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    monkeypatch.setattr(bench, "_classifiers", CLASSIFIERS)
    with pytest.raises(CongenerError, match=r'pip install "congener\[bench\]"$'):
        bench.bench([recipe("kd")], out=tmp_path / "out", records=tmp_path / "records")
    assert not list(tmp_path.iterdir())  # before anything is trained


# the whole


def test_a_record_has_the_numbers_of_its_run(compared: Path) -> None:
    metrics = read_json(compared / "out" / "run" / "metrics.json")
    assert sorted(p.name for p in (compared / "records").iterdir() if p.is_dir()) == [
        f"{ROOT}again", f"{ROOT}later", f"{ROOT}sp",
    ]  # fmt: skip
    for arm in ("sp", "later", "again"):
        told = summary(compared, arm)
        rows = metrics["arms"]
        for name in ("alone", "kd", arm):
            assert told["arms"][name] == rows[name]["accuracy"]
        assert set(told["arms"]) == {"alone", "kd", arm, "control"}
        assert told["arms"]["control"] == [told["control"]["value"]]
        assert told["teacher"] == rows["teacher"]["accuracy"][:1]
        assert (told["system"], told["seeds"], told["steps"]) == (arm, [0, 1], 5)
        assert set(told["comparisons"]) == {"alone", "kd", "control"}
        for name, said in told["comparisons"].items():
            theirs = told["arms"][name] * (2 if name == "control" else 1)
            difference = np.subtract(told["arms"][arm], theirs)
            assert said["mean_difference"] == pytest.approx(difference.mean())
            assert (said["wins"], said["n"]) == ((difference > 0).sum(), 2)
            if said["p"] is not None:
                assert said["p"] == pytest.approx(stats.ttest_rel(told["arms"][arm], theirs).pvalue)
        assert told["comparisons"]["alone"]["p"] == told["paired_p"]
    assert summary(compared, "later")["starts_from"] == "sp"
    assert summary(compared, "again")["learns_from"] == "later"


def test_the_setting_that_was_best_on_the_slice_was_run(compared: Path) -> None:
    tuning = summary(compared)["tuning"]
    assert tuning["on"] == "a slice of the training data, holdout=60"
    assert [each["settings"] for each in tuning["tried"]] == [{"lr": 0.01}, {"lr": 0.03}]
    for each in tuning["tried"]:
        folder = compared / "out" / "tune" / f"lr-{each['settings']['lr']:g}"
        values = read_json(folder / "metrics.json")["arms"]["alone"]["accuracy"]
        assert each["mean"] == pytest.approx(np.mean(values))
    assert tuning["chosen"]["mean"] == max(each["mean"] for each in tuning["tried"])
    ran = load_recipe(compared / "out" / "run" / "recipe.yaml")
    assert ran.train.lr == tuning["chosen"]["settings"]["lr"]
    assert "holdout" not in ran.task.arguments["data"]


def test_a_record_can_be_repeated(compared: Path) -> None:
    told = summary(compared)
    assert told["command"] == "congener bench tiny"
    assert told["environment"] == read_json(compared / "out" / "run" / "environment.json")
    assert told["control"]["package"].startswith("scikit-learn ")
    whole = load_recipe(compared / "out" / "run" / "recipe.yaml")
    for arm, arms in {
        "sp": ["kd", "sp"],
        "later": ["kd", "sp", "later"],  # with the arm it starts from
        "again": ["kd", "sp", "later", "again"],  # and those that this one builds on in turn
    }.items():
        kept = load_recipe(compared / "records" / f"{ROOT}{arm}" / "recipe.yaml")
        assert kept == whole.model_copy(update={"arms": {a: whole.arms[a] for a in arms}})


def test_the_log_is_that_of_the_arms_in_the_record(compared: Path) -> None:
    path = compared / "records" / f"{ROOT}sp" / "log.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert {event["fit"] for event in events} == {
        "teacher", *(f"{arm}/{seed}" for arm in ("alone", "kd", "sp") for seed in (0, 1)),
    }  # fmt: skip
    ends = {e["fit"]: e["metrics"]["accuracy"] for e in events if e["event"] == "fit_finished"}
    assert [ends["sp/0"], ends["sp/1"]] == summary(compared)["arms"]["sp"]


def test_the_log_keeps_stages_and_drops_torn_lines(tmp_path: Path) -> None:
    lines = [
        {"event": "fit_started", "fit": "stages/head"},
        {"event": "fit_started", "fit": "stagesp/0"},
        {"event": "evaluation", "fit": "sp/1"},
        {"event": "step", "fit": "sp/1"},
        {"event": "fit_finished", "fit": "spx/1"},
        {"event": "run_finished"},
    ]
    path = tmp_path / "events.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"event": "fit_fin')
    kept = [json.loads(line) for line in bench._log(path, {"sp"}).splitlines()]
    assert kept == [lines[0], lines[2]]


def test_the_page_of_records(compared: Path) -> None:
    page = (compared / "records" / "index.html").read_text("utf-8")
    for arm in ("sp", "later", "again"):
        assert f'href="{ROOT}{arm}/recipe.yaml"' in page
    assert f"| [sp]({ROOT}sp/recipe.yaml) |" in (compared / "records" / "README.md").read_text()


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*") if path.is_file()
    }  # fmt: skip


@pytest.fixture
def again(compared: Path, tmp_path: Path) -> tuple[Any, Path]:
    """``bench`` once more on a copy of what it left, with --resume if nothing else is said."""
    home = Path(shutil.copytree(compared, tmp_path / "compared"))

    def call(*recipes: Recipe, **changes: Any) -> Any:
        given = recipes or (recipe("kd", "sp"), recipe("kd", "sp", "later", "again"))
        options = {"out": home / "out", "records": home / "records", "holdout": 60,
                   "command": "congener bench tiny", "resume": True}  # fmt: skip
        return bench.bench(given, **(options | changes))

    return call, home


def test_a_finished_comparison_is_not_run_again(again: Any, monkeypatch: Any) -> None:
    call, home = again
    before = snapshot(home / "out")
    records = {k: v for k, (v, _) in snapshot(home / "records").items()}
    monkeypatch.setattr(bench, "run", None)
    monkeypatch.setattr(bench, "control", None)
    assert [record.folder.name for record in call()] == [
        f"{ROOT}sp", f"{ROOT}later", f"{ROOT}again",
    ]  # fmt: skip
    assert snapshot(home / "out") == before
    assert {k: v for k, (v, _) in snapshot(home / "records").items()} == records


def test_an_older_comparison_is_neither_mixed_nor_lost(again: Any) -> None:
    call, home = again
    before = snapshot(home)
    with pytest.raises(RunError, match=r"already holds a comparison; add --resume"):
        call(resume=False)
    with pytest.raises(RunError, match=r"was started by another recipe .*'holdout: 60'"):
        call(holdout=70)
    other = recipe("kd", "sp", student={"name": "mlp", "hidden": [8]})
    with pytest.raises(RunError, match=r"-sp is the record of another task, teacher or student; "):
        call(other, out=home / "new", resume=False)
    assert snapshot(home) == before


def test_an_interruption_leaves_no_half_record(again: Any, monkeypatch: Any) -> None:
    call, home = again
    write = bench.write_text

    def stopped(path: Path, text: str) -> None:
        if path.name == "log.jsonl":
            raise KeyboardInterrupt
        write(path, text)

    monkeypatch.setattr(bench, "write_text", stopped)
    with pytest.raises(KeyboardInterrupt):
        call()
    assert not (home / "records" / f"{ROOT}sp" / "summary.json").exists()
    monkeypatch.setattr(bench, "write_text", write)
    call()
    assert summary(home)["system"] == "sp"


def test_an_interrupted_run_leaves_no_record(tmp_path: Path, monkeypatch: Any) -> None:
    run = bench.run

    def stopped(described: Recipe, **options: Any) -> Any:
        if options["out"].name == "run":
            raise KeyboardInterrupt
        return run(described, **options)

    monkeypatch.setattr(bench, "run", stopped)
    out, records = tmp_path / "out", tmp_path / "records"
    with pytest.raises(KeyboardInterrupt):
        bench.bench([recipe("kd")], out=out, records=records, holdout=60)
    assert not records.exists()
    # An arm that stands beside others is the record where there is no other one.
    monkeypatch.setattr(bench, "run", run)
    (found,) = bench.bench([recipe("kd")], out=out, records=records, holdout=60, resume=True)
    assert set(found.summary["arms"]) == {"alone", "kd", "control"}
    assert set(found.summary["comparisons"]) == {"alone", "control"}


def test_a_control_of_another_metric_is_not_among_the_arms(again: Any) -> None:
    _, home = again
    metrics = read_json(home / "out" / "run" / "metrics.json")
    floor = {"classifier": "x", "metric": "macro_accuracy", "value": 0.5}
    found = bench._record(
        home / "other", "sp", recipe("kd", "sp"), home / "out" / "run", metrics, {}, floor
    ).summary
    assert "control" not in found["arms"]
    assert "control" not in found["comparisons"]
    assert found["control"] == floor


def test_a_record_without_a_control(again: Any) -> None:
    _, home = again
    metrics = read_json(home / "out" / "run" / "metrics.json")
    written = bench._record(
        home / "other", "sp", recipe("kd", "sp"), home / "out" / "run", metrics, {}, None
    )
    assert written.summary["control"] is None
    assert set(written.summary["comparisons"]) == {"alone", "kd"}
    text = write_records(home / "other").read_text("utf-8")
    assert "not compared with the control and hard pseudo-labels" in text
    assert "Control:" not in text


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("mnist1d", "mnist1d"),
        ({"name": "mnist1d", "pool": 300}, "mnist1d"),
        ("/data/my images/", "my_images"),
        ({"name": "../../etc"}, "etc"),
    ],
)
def test_the_folder_of_a_record_stays_among_the_records(data: Any, name: str) -> None:
    given = recipe("kd", task={"name": "their.pack.Task", "data": data})
    assert bench._home(Path("records"), given, "kd+sp") == Path(
        f"records/their.pack.Task-{name}-kd+sp"
    )


def test_equal_differences_are_no_evidence() -> None:
    told = compare([0.126, 0.146], [0.116, 0.136], higher=True)  # rounding makes them differ
    assert told == {"mean_difference": pytest.approx(0.01), "wins": 2, "n": 2, "p": None}
    assert compare([0.1], [0.2], higher=False)["wins"] == 1
    assert compare([0.1, 0.3], [0.2, 0.2], higher=True)["p"] == pytest.approx(1.0)
