"""What a recipe leaves to the plan, and how its teachers see their images."""

import pytest
import torch
from torch.utils.data import TensorDataset

import congener
from congener import api
from congener.assembly import Assembly
from congener.errors import RecipeError
from congener.recipe import Recipe, load_recipe, parse_recipe
from congener.tasks.image_classification import ImageClassification
from congener.teachers import Bridge

STEPS = {"steps": 2, "batch_size": 20, "device": "cpu"}
BASE = {
    "task": {"name": "image_classification", "data": "mnist1d"},
    "teacher": {"name": "cnn1d", "train": STEPS},
    "student": "mlp",
    "train": STEPS,
}


def recipe(*terms: dict[str, object], **changes: object) -> Recipe:
    return parse_recipe(BASE | {"terms": list(terms)} | changes)


def pictures(normalisation: object = ((0.5,) * 3, (0.25,) * 3)) -> ImageClassification:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(40, 3, 16, 16), torch.arange(40) % 4)
    return ImageClassification.from_datasets(data, data, num_classes=4, normalisation=normalisation)


def terms_of(described: Recipe) -> list[congener.Term]:
    assembly = Assembly(described)
    student, teacher = assembly.student(0), assembly.teacher()
    system = assembly.system("distilled", student, teacher)
    told = assembly.terms(described.contenders["distilled"])
    assert [(t.student, t.teacher) for t in told] == [
        (b.term.student, b.term.teacher) for b in system.terms
    ]  # the report reads the same taps
    return told


def test_auto_finds_the_taps() -> None:
    (sp,) = terms_of(recipe({"loss": "sp", "taps": "auto", "weight": 7}))
    assert (sp.student, sp.teacher, sp.weight) == (("hidden",), ("layer3",), 7)
    api.validate(recipe({"loss": "rkd", "taps": "auto"}))


def test_auto_gives_all_stages_to_a_loss_of_lists() -> None:
    net = {"name": "small_cnn", "widths": [4, 6], "train": STEPS}
    student = {"name": "small_cnn", "widths": [2, 3]}
    changes = {"task": pictures(), "teacher": net, "student": student}
    (reviewkd,) = terms_of(recipe({"loss": "reviewkd", "taps": "auto"}, **changes))
    assert reviewkd.student == reviewkd.teacher == ("layer1", "layer2")
    assert reviewkd.loss.student_channels == [2, 3]
    assert reviewkd.loss.teacher_channels == [4, 6]
    api.validate(recipe({"loss": "reviewkd", "taps": "auto"}, **changes))


def test_widths_need_not_be_written() -> None:
    net = {"name": "small_cnn", "widths": [4, 6], "train": STEPS}
    student = {"name": "small_cnn", "widths": [2, 3]}
    changes = {"task": pictures(), "teacher": net, "student": student}
    written = {"loss": "fitnets", "student": "layer2", "teacher": "layer1"}
    (fitnets,) = terms_of(recipe(written, **changes))
    assert fitnets.loss.student_shape == (3, 4, 4)
    assert fitnets.loss.teacher_shape == (4, 8, 8)
    api.validate(recipe(written, **changes))
    (vid,) = terms_of(recipe({"loss": "vid", "student": "layer2", "teacher": "layer2"}, **changes))
    assert (vid.loss.student_channels, vid.loss.teacher_channels) == (3, 6)
    chosen = {"name": "vid", "student_channels": 3, "teacher_channels": 6, "hidden_channels": 5}
    (vid,) = terms_of(recipe({"loss": chosen, "student": "layer2", "teacher": "layer2"}, **changes))
    assert vid.loss.hidden_channels == 5


def test_a_loss_without_its_widths_and_taps_still_asks_for_them() -> None:
    with pytest.raises(RecipeError, match="'vid' needs the argument 'student_channels'"):
        api.validate(recipe({"loss": "vid"}))


@pytest.mark.parametrize(("term", "sentence"), [
    ({"loss": "kd", "taps": "auto"}, "The plan has no taps for the loss 'kd'; it can place ab, "),
    ({"loss": "vid", "taps": "auto"}, "`taps: auto` finds none for 'vid': "),
    ({"loss": "sp", "taps": "auto", "student": "hidden"}, "so `student` and `teacher` beside it"),
    ({"loss": "sp", "taps": "atuo"}, r"'terms.0.taps' is 'atuo': expected 'auto'"),
    ({"loss": "sp", "taps": "auto", "of": "nobody"}, "a teacher 'nobody' that is not there"),
])  # fmt: skip
def test_what_auto_cannot_do_is_said(term, sentence) -> None:
    with pytest.raises(RecipeError, match=sentence):
        api.validate(recipe(term))


def test_the_line_of_a_recipe_is_named(tmp_path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "task: {name: image_classification, data: mnist1d}\n"
        "teacher: {name: cnn1d, train: {steps: 2, device: cpu}}\n"
        "student: mlp\n"
        "terms:\n- {loss: sp, taps: auto}\n- {loss: vid, taps: auto}\n"
        "train: {steps: 2, device: cpu}\n"
    )
    with pytest.raises(RecipeError, match=r"recipe.yaml, line 6: `taps: auto` finds none"):
        api.validate(load_recipe(path))


def test_distill_plans_for_itself(tmp_path) -> None:
    described = api.describe("mlp", BASE["teacher"], "mnist1d", terms="auto", **STEPS)
    kd, sp = described.terms
    assert (kd.loss.name, kd.weight) == ("kd", 0.9)
    assert (sp.loss.name, sp.weight) == ("sp", 3000)
    assert (sp.student, sp.teacher) == (("hidden",), ("layer3",))
    assert not described.alone
    found = congener.distill(
        "mlp", BASE["teacher"], "mnist1d", terms="auto", out=tmp_path / "run", **STEPS
    )
    assert "layer3" in (found.run.folder / "recipe.yaml").read_text()  # what was chosen is recorded


@pytest.mark.parametrize(("teacher", "terms"), [(None, "auto"), (BASE["teacher"], "sp")])
def test_distill_refuses_other_words(teacher, terms) -> None:
    with pytest.raises(RecipeError, match=f"terms='{terms}' should be 'auto', with a teacher, or"):
        api.describe("mlp", teacher, "mnist1d", terms=terms, **STEPS)


SEEN = {"mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2], "size": 8}


def test_a_teacher_sees_its_own_preprocessing() -> None:
    teacher = {"name": "small_cnn", "train": STEPS, "preprocessing": SEEN}
    changes = {"task": pictures(), "teacher": teacher, "student": "small_cnn"}
    described = recipe({"loss": "sp", "student": "layer3", "teacher": "layer3"}, **changes)
    found = Assembly(described).teacher()
    assert isinstance(found, Bridge)
    assert found.own.sides == (8, 8)
    assert found.given.mean == (0.5,) * 3
    api.validate(described)
    assert Assembly(recipe(**changes | {"teacher": teacher | {"preprocessing": None}})).teacher()


def test_a_bridged_teacher_is_trained_kept_and_read_back(tmp_path) -> None:
    teacher = {"name": "small_cnn", "train": STEPS, "preprocessing": SEEN}
    changes = {"task": pictures(), "teacher": teacher, "student": "small_cnn"}
    described = recipe({"loss": "kd"}, **changes)
    found = api.run(described, out=tmp_path / "run")
    weights = tmp_path / "run" / "teacher" / "weights.safetensors"
    again = {"name": "small_cnn", "checkpoint": str(weights)}
    plain = Assembly(recipe({"loss": "kd"}, **changes | {"teacher": again})).teacher()
    bridged = Assembly(
        recipe({"loss": "kd"}, **changes | {"teacher": again | {"preprocessing": SEEN}})
    ).teacher()
    assert isinstance(bridged, Bridge)
    assert plain is not None
    assert "layer1.0.weight" in plain.state_dict() or plain.state_dict().keys()
    api.run(described, out=tmp_path / "run", resume=True)
    assert found.metrics


@pytest.mark.parametrize(("preprocessing", "sentence"), [
    ("own", "carries no preprocessing of its own"),
    ("ownn", "'teacher.preprocessing' is 'ownn': expected 'own', or a mapping of mean, std and"),
    (SEEN | {"sizes": 3}, "'teacher.preprocessing.sizes' is 3: expected no key of that name"),
    ({"mean": [0.5]}, "the key 'teacher.preprocessing.std' is missing"),
    (SEEN | {"std": [0.2, 0.2, 0.0]}, r"teacher.preprocessing: A preprocessing needs one mean and"),
    (SEEN | {"mean": "grey"}, "'teacher.preprocessing.mean' is 'grey': expected a list"),
])  # fmt: skip
def test_a_preprocessing_that_is_none_is_refused(preprocessing, sentence) -> None:
    teacher = {"name": "small_cnn", "train": STEPS, "preprocessing": preprocessing}
    with pytest.raises(RecipeError, match=sentence) as caught:
        api.validate(recipe({"loss": "kd"}, task=pictures(), teacher=teacher, student="small_cnn"))
    assert not str(caught.value).endswith("..")


def test_a_student_has_none_and_data_must_say_theirs() -> None:
    with pytest.raises(RecipeError, match="`preprocessing` is a teacher's"):
        recipe(student={"name": "mlp", "preprocessing": "own"})
    teacher = {"name": "small_cnn", "train": STEPS, "preprocessing": SEEN}
    with pytest.raises(RecipeError, match="do not say by which mean and std"):
        api.validate(
            recipe({"loss": "kd"}, task=pictures(None), teacher=teacher, student="small_cnn")
        )
