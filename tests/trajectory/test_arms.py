"""Arms that build on other arms: two-stage FitNets and born-again chains, and what they refuse."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.systems.scenes import LEVEL, TinyScenes
from tests.trajectory.whole_runs import save_teacher

import congener
from congener.assembly import Assembly
from congener.engine import load_weights
from congener.errors import RecipeError, TapError
from congener.recipe import parse_recipe
from congener.report import write_report
from congener.runner import load_student
from congener.tasks.image_classification.models import mlp

KD = {"loss": "kd", "weight": 0.9}
SIMKD = {"name": "simkd", "student_tap": "hidden", "teacher_tap": "flatten"}


def recipe(arms: dict[str, Any], **changes: Any) -> dict[str, Any]:
    train = {"steps": 3, "batch_size": 32, "lr": 1e-12, "threads": 1, "device": "cpu"}
    return {
        "task": {"name": "image_classification", "data": "mnist1d"},
        "student": {"name": "mlp", "hidden": [16]},
        "arms": arms,
        "train": train,
    } | changes


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = save_teacher(tmp_path_factory.mktemp("teacher"))
    return {"name": "cnn1d", "channels": 8, "checkpoint": str(path)}


def test_an_arm_starts_from_the_student_of_another(teacher: Any, tmp_path: Path) -> None:
    arms = {
        "first": {"terms": [KD]},
        "second": {"terms": [KD], "starts_from": "first"},
        "other": {"terms": [KD]},
    }
    described = parse_recipe(recipe(arms, teacher=teacher))
    marked = mlp(hidden=(16,), num_classes=10, in_features=40)
    congener.run(described, out=tmp_path / "run")
    folder = tmp_path / "run" / "arms"
    with torch.no_grad():
        for parameter in marked.parameters():
            parameter.fill_(0.125)
    from safetensors.torch import save_model

    save_model(marked, str(folder / "first" / "seed-0" / "weights.safetensors"))
    for arm in ("second", "other"):
        (folder / arm / "seed-0" / "result.json").unlink()
        (folder / arm / "seed-0" / "checkpoint.pt").unlink()
    congener.run(described, out=tmp_path / "run", resume=True)
    found = {}
    for arm in ("second", "other"):
        load_weights(marked, folder / arm / "seed-0" / "weights.safetensors")
        found[arm] = torch.cat([p.detach().flatten() for p in marked.parameters()])
    assert torch.allclose(found["second"], torch.tensor(0.125), atol=1e-6)
    assert not torch.allclose(found["other"], torch.tensor(0.125), atol=1e-2)


def test_an_arm_learns_from_the_student_of_another(tmp_path: Path) -> None:
    chain = {"terms": [KD], "task_weight": 0.1, "learns_from": "alone"}
    described = parse_recipe(
        recipe({"again": chain, "thrice": chain | {"learns_from": "again"}}, seeds=[0, 1])
    )
    run = congener.run(described, out=tmp_path / "run")
    assert set(run.metrics["arms"]) == {"alone", "again", "thrice"}
    first = next(
        event
        for event in _events(tmp_path / "run")
        if event["event"] == "step" and event["fit"] == "again/1"
    )
    # With almost no learning rate, the student and its teacher are still the same network.
    assert first["terms"]["kd"] == pytest.approx(0, abs=1e-6)
    assert first["terms"]["task"] > 1
    trained = load_student(described, tmp_path / "run", "again", 1)
    alone = load_student(described, tmp_path / "run", "alone", 1)
    for a, b in zip(trained.parameters(), alone.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def _events(folder: Path) -> list[dict[str, Any]]:
    import json

    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ({"a": {"terms": [KD], "starts_from": "b"}, "b": {}}, "'a' starts from 'b'.*no arm before"),
        ({"a": {"terms": [KD], "learns_from": "a"}}, "'a' learns from 'a'.*there are: alone"),
        ({"a": {"terms": [KD], "system": "dml"}}, "'dml' has weights of its own, and no `terms`"),
        ({"a": {"task_weight": 0.5, "system": "dml"}}, "'dml' has weights of its own"),
        ({"a": {"learns_from": "alone"}}, "`learns_from` needs `terms` or a `system`"),
        ({"a": {"system": "dml", "learns_from": "alone"}}, "has no teacher, so `learns_from`"),
        (
            {"a": {"system": SIMKD}, "b": {"terms": [KD], "starts_from": "a"}},
            "'b' cannot start from 'a', which exports another network \\(SimKDStudent\\)",
        ),
        ({"a": {"system": "distillation"}}, "what `terms` make"),
        ({"a": {"system": "distilation"}}, "no system named 'distilation'; did you mean"),
    ],
)
def test_what_an_arm_cannot_be(arms: dict[str, Any], said: str, teacher: Any) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        Assembly(parse_recipe(recipe(arms, teacher=teacher))).check()
    assert "\n" not in str(caught.value)


def detection(arm: dict[str, Any], **changes: Any) -> Any:
    body = {"name": "small_cnn", "widths": [8, 8, 8], "norm": "none", "levels": 1, "channels": 32}
    described = recipe(
        {"mine": arm}, task=TinyScenes(20), student=body,
        teacher=body | {"train": {"steps": 2, "batch_size": 16, "device": "cpu"}},
    )  # fmt: skip
    return Assembly(parse_recipe(described | changes))


def test_terms_and_a_weight_beside_a_system_that_takes_them(tmp_path: Path) -> None:
    fgfi = {"name": "fgfi", "student_channels": 32, "teacher_channels": 32}
    terms = [
        {"loss": "detection_kd", "weight": 0.5},
        {"loss": fgfi, "student": LEVEL, "teacher": LEVEL},
    ]
    ikd = {"name": "ikd", "attack": {"steps": 1}, "alpha": 1e-3}
    arm = {"system": ikd, "terms": terms, "task_weight": 0.25}
    assembly = detection(arm, alone=False)
    assembly.check()
    congener.run(assembly.recipe, out=tmp_path / "run")
    steps = [event for event in _events(tmp_path / "run") if event["event"] == "step"]
    (first, *_) = (event for event in steps if event["fit"].startswith("mine"))
    weights = {"task": 0.25, "detection_kd": 0.5, "fgfi": 1.0, "adversarial": 1.0}
    assert first["terms"].keys() == weights.keys()
    for name, weight in weights.items():
        assert first["weighted"][name] == pytest.approx(weight * first["terms"][name], rel=1e-5)
    assert first["total"] == pytest.approx(sum(first["weighted"].values()), rel=1e-5)
    for wrong, said in (
        ({"system": ikd | {"terms": terms}}, "'ikd' gets its terms from the recipe's `terms`"),
        (arm | {"system": ikd | {"task_weight": 2.0}}, "'ikd' gets its task_weight from the rec"),
        ({"system": ikd | {"attack": {"step": 2}}}, "'attack' takes no argument 'step'; did you"),
    ):
        with pytest.raises(RecipeError, match=said):
            detection(wrong).check()


def test_an_arm_inherits_modules_of_its_teacher() -> None:
    arm = {"terms": [{"loss": "detection_kd"}], "inherits": ["backbone.fpn", "head"]}
    assembly = detection(arm)
    assembly.check()
    teacher, student = assembly.teacher(), assembly.student(1)
    assert teacher is not None
    before = {name: value.clone() for name, value in student.state_dict().items()}
    assembly.system("mine", student, teacher)
    theirs = teacher.state_dict()
    for name, value in student.state_dict().items():
        inherited = name.startswith(("backbone.fpn.", "head."))
        assert torch.equal(value, theirs[name] if inherited else before[name]), name
    alone = assembly.student(1)
    assembly.system("alone", alone, teacher)
    assert all(torch.equal(v, before[name]) for name, v in alone.state_dict().items())
    for wrong, changes, said in (
        (["haed"], {}, "no module 'haed'; did you mean 'head'"),
        (["head"], {"student": {"name": "small_cnn", "widths": [8], "levels": 1}}, "same widths"),
        (["head"], {"teacher": None}, "no `teacher` whose 'head' could be inherited"),
    ):
        arm = {"system": "dml"} if "teacher" in changes else {"terms": [{"loss": "detection_kd"}]}
        with pytest.raises(RecipeError, match=said):
            detection(arm | {"inherits": wrong}, **changes).check()


def test_what_an_arm_learns_from_is_what_the_other_exports(teacher: Any, tmp_path: Path) -> None:
    sp = {"loss": "sp", "student": "hidden", "teacher": "hidden"}
    arms = {"a": {"system": SIMKD}, "b": {"terms": [sp], "learns_from": "a"}}
    with pytest.raises(TapError, match=r"did you mean 'backbone\.hidden'"):
        Assembly(parse_recipe(recipe(arms, teacher=teacher))).check()
    sp["teacher"] = "backbone.hidden"
    described = parse_recipe(recipe(arms, teacher=teacher, alone=False))
    run = congener.run(described, out=tmp_path / "run")
    assert run.metrics["arms"]["b"]["terms"][0]["of"] == "a"
    assert type(load_student(described, tmp_path / "run", "a", 0)).__name__ == "SimKDStudent"
    with pytest.raises(RecipeError, match="There is no arm 'c'; known: 'a', 'b'"):
        load_student(described, tmp_path / "run", "c", 0)


def test_a_weight_beside_arms_is_refused(teacher: Any) -> None:
    with pytest.raises(RecipeError, match=r"`task_weight`.* or `arms`, not both"):
        parse_recipe(recipe({"a": {"terms": [KD]}}, teacher=teacher, task_weight=0.1))


def test_a_hint_is_shown_as_a_start_and_not_as_a_method(teacher: Any, tmp_path: Path) -> None:
    sp = {"loss": "sp", "student": "hidden", "teacher": "layer3"}
    arms = {
        "hint": {"task_weight": 0, "terms": [sp]},
        "fitnets": {"terms": [KD], "starts_from": "hint"},
        "apart": {"task_weight": 0, "terms": [KD]},
    }
    run = congener.run(recipe(arms, teacher=teacher), out=tmp_path / "run")
    roles = {name: row["role"] for name, row in run.metrics["arms"].items()}
    assert [roles[name] for name in arms] == ["start", "distilled", "distilled"]
    assert set(run.metrics["comparisons"]) == {"fitnets", "apart"}
    page = write_report(tmp_path / "run").read_text()
    assert page.count("the start of another arm") == 1
    (chart,) = re.findall(r"Dot chart of last-epoch accuracy[^\"]*", page)[:1]
    assert "hint" not in chart


def test_terms_need_a_teacher_unless_they_learn_from_an_arm() -> None:
    with pytest.raises(RecipeError, match="no `teacher` to distil from"):
        parse_recipe(recipe({"a": {"terms": [KD]}}))
    Assembly(parse_recipe(recipe({"a": {"terms": [KD], "learns_from": "alone"}}))).check()
