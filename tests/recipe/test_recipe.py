"""A recipe: short forms, YAML's facts, overrides, rules, and the way out and back."""

import copy
from pathlib import Path

import pytest
from pydantic import ValidationError
from torch import nn

from congener.engine import FitConfig
from congener.errors import RecipeError
from congener.losses import KDLoss
from congener.recipe import (
    LossSpec,
    ModelSpec,
    Recipe,
    TaskSpec,
    dump_recipe,
    load_recipe,
    parse_recipe,
)
from congener.schedules import Schedule
from congener.types import Term

PLAIN = {
    "task": "image_classification",
    "teacher": {"name": "cnn1d", "train": {"steps": 5}},
    "student": "mlp",
    "terms": [{"loss": "kd"}],
    "train": {"steps": 5},
}


def changed(**keys):
    values = copy.deepcopy(PLAIN) | keys
    return {key: value for key, value in values.items() if value is not None}


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


YAML = """\
task: image_classification
student: mlp
train: {steps: 5, lr: 3e-4, weight_decay: 5E-4, schedule: constant}
title: no
"""


def test_a_name_stands_for_a_mapping() -> None:
    recipe = parse_recipe(PLAIN)
    assert recipe.task == TaskSpec(name="image_classification")
    assert recipe.student == ModelSpec(name="mlp")
    assert recipe.terms[0].loss == LossSpec(name="kd")
    assert recipe == parse_recipe(changed(task={"name": "image_classification"},
                                          student={"name": "mlp"},
                                          terms=[{"loss": {"name": "kd"}}]))  # fmt: skip


def test_one_tap_stands_for_a_list_of_one() -> None:
    term = {"loss": "sp", "student": "hidden", "teacher": ["layer3"]}
    parsed = parse_recipe(changed(terms=[term])).terms[0]
    assert (parsed.student, parsed.teacher) == (("hidden",), ("layer3",))


def test_other_keys_are_arguments() -> None:
    recipe = parse_recipe(changed(student={"name": "mlp", "hidden": [3], "checkpoint": "a.pt"}))
    assert recipe.student.arguments == {"hidden": [3]}
    assert recipe.student.checkpoint == Path("a.pt")


def test_terms_are_short_for_one_arm() -> None:
    short = parse_recipe(changed(task_weight=0.25))
    arm = {"distilled": {"task_weight": 0.25, "terms": [{"loss": "kd"}]}}
    long = parse_recipe(changed(terms=None, arms=arm))
    assert short.all_arms == long.all_arms
    assert list(short.all_arms) == ["alone", "distilled"]
    assert list(parse_recipe(changed(alone=False)).all_arms) == ["distilled"]
    alone = parse_recipe(changed(terms=None, teacher=None))
    assert list(alone.all_arms) == ["alone"]
    assert alone.all_arms["alone"].task_weight == 1


def test_yaml_1_2(tmp_path) -> None:
    recipe = load_recipe(write(tmp_path / "a.yaml", YAML))
    assert (recipe.train.lr, recipe.train.weight_decay) == (3e-4, 5e-4)
    assert recipe.title == "no"
    assert recipe.name == "a"
    octal = load_recipe(write(tmp_path / "b.yaml", YAML.replace("steps: 5", "steps: 010")))
    assert octal.train.steps == 10
    dated = load_recipe(write(tmp_path / "c.yaml", YAML.replace("no", "'2024-01-01'")))
    assert dated.title == "2024-01-01"


def test_text_in_utf_8(tmp_path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(YAML.replace("no", "Gram-Matrizen für γ").encode())
    assert load_recipe(path).title == "Gram-Matrizen für γ"


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("train.lr=0.5", lambda r: r.train.lr == 0.5),
        ("train.lr=3e-2", lambda r: r.train.lr == 0.03),
        ("train.clip=2", lambda r: r.train.clip == 2),
        ("title=yes", lambda r: r.title == "yes"),
        ("title=a=b", lambda r: r.title == "a=b"),
        ("name=x", lambda r: r.name == "x"),
        ("seeds=[1, 2]", lambda r: r.seeds == (1, 2)),
        ("train={epochs: 1}", lambda r: r.train == FitConfig(epochs=1)),
        ("task.data=mnist1d", lambda r: r.task.arguments == {"data": "mnist1d"}),
        ("task.data.holdout=9", lambda r: r.task.arguments == {"data": {"holdout": 9}}),
        ("student.hidden=[3]", lambda r: r.student == ModelSpec(name="mlp", hidden=[3])),
        ("published.source=x", None),
    ],
)
def test_overrides(override, read, tmp_path) -> None:
    path = write(tmp_path / "a.yaml", YAML)
    if read is None:  # reaches into a key that was not there, and is then validated
        with pytest.raises(RecipeError, match=r"'published\.arms' is missing"):
            load_recipe(path, [override])
        return
    assert not read(load_recipe(path))
    assert read(load_recipe(path, [override]))


def test_overrides_of_list_items_and_in_order(tmp_path) -> None:
    text = YAML + "teacher: {name: mlp, checkpoint: a.pt}\nterms: [{loss: kd}]\n"
    overrides = ["terms.0.loss.temperature=2", "terms.0.weight=7", "terms.0.weight=8"]
    term = load_recipe(write(tmp_path / "a.yaml", text), overrides).terms[0]
    assert term.loss == LossSpec(name="kd", temperature=2)
    assert term.weight == 8
    recipe = load_recipe(tmp_path / "a.yaml", ["train.epochs=2", "train.steps=null"])
    assert (recipe.train.epochs, recipe.train.steps) == (2, None)


@pytest.mark.parametrize(
    "values",
    [
        PLAIN,
        changed(terms=None, arms={"kd+sp": {"terms": [
            {"loss": {"name": "kd", "temperature": 2.5}, "weight": 1e-7},
            {"loss": "sp", "student": ["a", "b"], "teacher": ["c", "d"], "name": "gram"}]}}),
        changed(title="no", name="3e4", seeds=[0, 1, 2]),
        changed(title="a: b # c\n'\"γ", published={"source": "x", "arms": {"alone": 0.5}}),
        changed(task={"name": "image_classification", "data": {"name": "mnist1d", "pool": 9},
                      "augment": "none"}),
        changed(teacher={"name": "cnn1d", "checkpoint": "a b.pt", "channels": 4}),
        changed(train={"epochs": 3, "schedule": "multistep", "milestones": [1, 2], "clip": 0.5}),
    ],
    ids=range(7),
)  # fmt: skip
def test_out_and_back(values, tmp_path) -> None:
    recipe = parse_recipe(values)
    text = dump_recipe(recipe)
    again = load_recipe(write(tmp_path / "other.yaml", text))
    assert again == recipe
    assert dump_recipe(again) == text
    assert "lr: 0.001" in text  # defaults are written out


def test_shipped_recipes_go_out_and_back(tmp_path) -> None:
    import congener

    for path in Path(congener.__file__).parent.joinpath("recipes").rglob("*.yaml"):
        recipe = load_recipe(path)
        assert load_recipe(write(tmp_path / "r.yaml", dump_recipe(recipe))) == recipe


def test_objects_stand_beside_names() -> None:
    student, term = nn.Linear(2, 2), Term(KDLoss(), 0.5)
    recipe = parse_recipe(changed(student=student, terms=[term]))
    assert recipe.student is student
    assert recipe.terms == (term,)
    text = dump_recipe(recipe)
    assert "<Linear given in Python>" in text
    assert "<Term given in Python>" in text


def test_a_recipe_is_frozen() -> None:
    recipe = parse_recipe(PLAIN)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.alone = False
    with pytest.raises(ValidationError, match="frozen"):
        recipe.train.lr = 1.0
    with pytest.raises(ValidationError, match="frozen"):
        recipe.student.name = "x"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (changed(arms={"a": {}}), "either `terms` .* or `arms`, not both"),
        (changed(terms=None, arms={"alone": {}}), "arm cannot be called 'alone'"),
        (changed(terms=None, arms={"teacher": {}}), "arm cannot be called 'teacher'"),
        *[(changed(terms=None, arms={bad: {}}), "names a folder")
          for bad in ("", "a/b", "a\\b", "..", ".a", "a\nb", "a\x00", "x" * 101)],
        *[(changed(name=bad), "names a folder") for bad in ("", "a/b", "../a", ".")],
        (changed(seeds=[]), "at least 1 item"),
        (changed(seeds=[1, 1]), "the seed 1 is listed twice"),
        (changed(seeds=[-1]), "expected greater than or equal to 0"),
        (changed(seeds=[2**31]), "expected less than"),
        (changed(seeds=[0.5]), "expected a whole number"),
        (changed(terms=None, alone=False), "nothing to train"),
        (changed(teacher=None), "no `teacher` to distil from"),
        (changed(teacher={"name": "a"}), "either `checkpoint` or `train`"),
        (changed(teacher={"name": "a", "checkpoint": "b", "train": {"steps": 1}}), "either"),
        (changed(teacher={"name": "a", "train": {"steps": 1}, "seed": -1}), "teacher.*seed.*-1"),
        (changed(task_weight=float("nan")), "'task_weight' is nan: expected a finite number"),
        (changed(terms=[{"loss": "kd", "weight": float("inf")}]), "expected a finite number"),
        (changed(terms=[{"loss": "kd", "weights": 1}]), "did you mean 'weight'"),
        (changed(terms=[{"loss": "kd", "schedules": {"weight": {"shape": "lin"}}}]), "'linear'"),
        (changed(terms=[{"loss": "kd", "schedules": {"weight": {"epoch": 2}}}]), "epoch"),
        (changed(terms=[{"loss": "kd", "schedules": {"weight": {"epochs": 0}}}]), "at least 1"),
        (changed(teachers={"b": "cnn1d"}), "further teacher 'b' needs a `checkpoint`"),
        (changed(terms=[{"weight": 1}]), "'terms.0.loss' is missing"),
        (changed(terms="kd"), "'terms' is 'kd': expected a list"),
        (changed(task=None), "'task' is missing"),
        (changed(train=None), "'train' is missing"),
        (changed(student=None), "'student' is missing"),
        (changed(published={"source": "x"}), "'published.arms' is missing"),
        (changed(sutdent="mlp"), "unknown key 'sutdent'; did you mean 'student'"),
    ],
)  # fmt: skip
def test_rules_of_a_recipe(values, sentence) -> None:
    with pytest.raises(RecipeError, match=sentence) as caught:
        parse_recipe(values)
    assert str(caught.value).startswith("recipe: ")
    assert "\n" not in str(caught.value)
    assert not str(caught.value).endswith((".?", "?.", ".."))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "either `epochs` or `steps`"),
        ({"steps": 1, "epochs": 1}, "either `epochs` or `steps`"),
        ({"steps": 0}, "'train.steps' is 0"),
        ({"epochs": -1}, "'train.epochs' is -1"),
        ({"steps": 1, "batch_size": 0}, "'train.batch_size' is 0"),
        ({"steps": 1, "lr": 0}, "'train.lr' is 0: expected greater than 0"),
        ({"steps": 1, "lr": float("nan")}, "'train.lr' is nan"),
        ({"steps": 1, "lr": float("inf")}, "'train.lr' is inf: expected a finite number"),
        ({"steps": 1, "weight_decay": -1}, "'train.weight_decay' is -1"),
        ({"steps": 1, "momentum": 1}, "'train.momentum' is 1: expected less than 1"),
        ({"steps": 1, "optimizer": "adm"}, "did you mean 'adamw'"),
        ({"steps": 1, "schedule": "cosin"}, "did you mean 'cosine'"),
        ({"steps": 1, "schedule": "multistep"}, "`milestones` and `schedule: multistep`"),
        ({"steps": 1, "milestones": [1]}, "`milestones` and `schedule: multistep`"),
        ({"steps": 1, "schedule": "multistep", "milestones": [0]}, "'train.milestones.0' is 0"),
        ({"steps": 1, "gamma": 0}, "'train.gamma' is 0"),
        ({"steps": 1, "warmup": -1}, "'train.warmup' is -1"),
        ({"steps": 1, "clip": 0}, "'train.clip' is 0"),
        ({"steps": 1, "accumulate": 0}, "'train.accumulate' is 0"),
        ({"steps": 1, "accumulate": 9, "batch_size": 8}, "more pieces than it has samples"),
        ({"steps": 1, "labelled_per_batch": -1}, "'train.labelled_per_batch' is -1"),
        ({"steps": 1, "labelled_per_batch": 8, "batch_size": 8}, "leaves no room for other"),
        ({"steps": 1, "sampler": "class_unifrom"}, "did you mean 'class_uniform'"),
        ({"steps": 1, "per_class": 0}, "'train.per_class' is 0"),
        ({"steps": 1, "superclasses": 0}, "'train.superclasses' is 0"),
        ({"steps": 1, "views": 0}, "'train.views' is 0"),
        ({"steps": 1, "precision": "fp61"}, "did you mean 'fp16'"),
        ({"steps": 1, "evaluate_every": -1}, "'train.evaluate_every' is -1"),
        ({"steps": 1, "checkpoint_every": -1}, "'train.checkpoint_every' is -1"),
        ({"steps": 1, "log_every": 0}, "'train.log_every' is 0"),
        ({"steps": 1, "balance_every": -1}, "'train.balance_every' is -1"),
        ({"steps": 1, "drop_last": "perhaps"}, "expected true or false"),
        ({"steps": 1, "workers": -1}, "'train.workers' is -1"),
        ({"steps": 1, "device": "gpu"}, "'train.device' is 'gpu': expected 'auto' or 'cpu'"),
        ({"steps": 1, "threads": 0}, "'train.threads' is 0"),
        ({"steps": 1, "teacher_precision": "int4"}, "did you mean 'int8'"),
        ({"steps": 1, "teacher_layout": "channels_lost"}, "expected 'channels_last'"),
        ({"steps": 1, "teacher_compile": "perhaps"}, "expected true or false"),
        ({"steps": 1, "layout": "channels_lost"}, "did you mean 'channels_last'"),
        ({"steps": 1, "fused": "perhaps"}, "expected true or false"),
        ({"steps": 1, "compile": "perhaps"}, "expected true or false"),
        ({"steps": 1, "compile": True, "shard": "both"}, "`compile` and `shard: both` do not go"),
        ({"steps": 1, "keep_memory": "perhaps"}, "expected true or false"),
        ({"steps": 1, "learning_rate": 1}, "unknown key 'train.learning_rate'"),
    ],
)
def test_rules_of_training(settings, sentence) -> None:
    with pytest.raises(RecipeError, match=sentence):
        parse_recipe(changed(train=settings))
    with pytest.raises(ValidationError):
        FitConfig(**settings)


def test_every_setting_of_training_is_among_the_rules() -> None:
    tested = {key for case in test_rules_of_training.pytestmark[0].args[1] for key in case[0]}
    assert set(FitConfig.model_fields) - {"nesterov"} <= tested


def test_places_point_at_the_line(tmp_path) -> None:
    recipe = load_recipe(write(tmp_path / "a.yaml", YAML))
    assert recipe.place("student") == f"{tmp_path / 'a.yaml'}, line 2"
    assert recipe.place("train", "lr") == f"{tmp_path / 'a.yaml'}, line 3"
    assert recipe.place("teacher") == str(tmp_path / "a.yaml")
    assert parse_recipe(PLAIN).place("student") == "recipe"
    assert Recipe.model_validate(PLAIN).place("student") == "recipe"


def test_terms_have_schedules_layers_and_teachers(tmp_path: Path) -> None:
    term = {
        "loss": "sp", "student": ["a", "b"], "teacher": ["c", "d"], "layer_weights": [1, 0.5],
        "schedules": {"weight": {"shape": "linear", "epochs": 20}}, "of": "second",
    }  # fmt: skip
    other = {"name": "cnn1d", "checkpoint": "b.safetensors"}
    recipe = parse_recipe(changed(terms=[term], teachers={"second": other}))
    assert recipe.terms[0].schedules == {"weight": Schedule("linear", epochs=20)}
    assert recipe.terms[0].layer_weights == (1.0, 0.5)
    assert recipe.teachers["second"] == ModelSpec(**other)
    assert load_recipe(write(tmp_path / "run.yaml", dump_recipe(recipe))) == recipe
