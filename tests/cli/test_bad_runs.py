"""Checkpoints and run folders that do not fit are refused, and nothing in them is executed."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.cli.refusal import names, refused
from torch import nn

from congener.tasks.image_classification import models

TEACHER = "teacher={name: mlp, hidden: [16], checkpoint: %s}"


def perceptron(hidden: int) -> nn.Module:
    return models.mlp(num_classes=10, in_features=784, hidden=[hidden])


class Bomb:
    """Unpickling it would leave a file."""

    def __reduce__(self):
        return (os.mkdir, ("fired",))


def weights(hidden: int) -> dict[str, torch.Tensor]:
    return dict(perceptron(hidden).state_dict())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


CHECKPOINTS = [
    ("missing.pt", lambda p: None, r"There is no checkpoint missing.pt; check the path"),
    ("folder.pt", lambda p: p.mkdir(), r"There is no checkpoint folder.pt; check the path"),
    ("cut.safetensors", lambda p: (save_file(weights(16), p), cut(p)),
     r"cut.safetensors is damaged"),
    ("cut.pt", lambda p: (torch.save(weights(16), p), cut(p)),
     r"cut.pt cannot be read \(.*\); .*copy"),
    ("empty.pt", lambda p: p.write_bytes(b""), r"empty.pt cannot be read"),
    ("empty.safetensors", lambda p: p.write_bytes(b""), r"empty.safetensors is damaged"),
    ("words.pt", lambda p: p.write_text("weights"), r"words.pt is damaged, or holds more than"),
    ("list.pt", lambda p: torch.save([1, 2], p), r"list.pt holds no state dict"),
    ("bomb.pt", lambda p: torch.save({"model": Bomb()}, p),
     r"bomb.pt is damaged, or holds more than tensors .*never executed; save a state dict"),
    ("module.pt", lambda p: torch.save(perceptron(16), p), r"more than tensors .* never executed"),
    ("cnn.pt", lambda p: torch.save(models.small_cnn(num_classes=10).state_dict(), p),
     r"cnn.pt belongs to another architecture than Sequential: first missing key "
     r"'hidden.0.0.weight', first unexpected key 'layer1.0.weight'; name the network"),
    ("wide.safetensors", lambda p: save_file(weights(32), p),
     r"architecture .*'hidden.0.0.weight' has shape \(32, 784\) there and \(16, 784\) here"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "make", "sentence"), CHECKPOINTS, ids=[case[0] for case in CHECKPOINTS]
)
def test_a_teacher_that_cannot_be_loaded(name, make, sentence, recipe, congener) -> None:
    make(Path(name))
    refused(congener("run", recipe, TEACHER % name), r"recipe.yaml, line 5: .*" + sentence)
    assert {*names()} <= {"recipe.yaml", name}


def test_the_bomb_would_fire(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Bomb()}, "bomb.pt")
    torch.load("bomb.pt", weights_only=False)
    assert Path("fired").exists()


@pytest.fixture(scope="session")
def finished(digits, tmp_path_factory) -> Path:
    """A run of the recipe, to be copied."""
    from tests.cli.conftest import RECIPE

    from congener import api

    folder = tmp_path_factory.mktemp("finished")
    (folder / "recipe.yaml").write_text(RECIPE.replace("ROOT", str(digits)))
    api.run(folder / "recipe.yaml", out=folder / "out")
    return folder / "out"


@pytest.fixture
def done(finished, recipe) -> Path:
    """The folder of a run that is done, in the working directory."""
    shutil.copytree(finished, "out")
    return Path("out")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_that_holds_a_run(done, recipe, congener) -> None:
    before = snapshot(done)
    refused(congener("run", recipe, "--out", done),
            r"out already holds a run; add --resume to go on with it, or name another")  # fmt: skip
    assert snapshot(done) == before


def test_a_folder_that_holds_something_else(recipe, congener) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("years of work")
    refused(congener("run", recipe, "--out", "mine"), r"mine already holds a run")
    refused(congener("run", recipe, "--out", "mine", "--resume"),
            r"mine holds no recipe.yaml, so it is no run; name another")  # fmt: skip
    assert names("mine") == ["thesis.tex"]


def test_nothing_to_resume(recipe, congener) -> None:
    for folder in ("none", "empty"):
        Path("empty").mkdir(exist_ok=True)
        refused(congener("run", recipe, "--out", folder, "--resume"),
                rf"There is no run in {folder} to resume; leave --resume out")  # fmt: skip
    assert names() == ["empty", "recipe.yaml"]


def test_a_changed_recipe_is_not_resumed(done, recipe, text, congener) -> None:
    before = snapshot(done)
    for override, sentence in {
        "train.lr=0.5": r"\(there 'lr: 0.001', now 'lr: 0.5'\); resume with the same one",
        "arms.kd.task_weight=0": r"\(there 'task_weight: 0.5', now 'task_weight: 0.0'\)",
        "seeds=[0, 1]": r"now '- 1'\)",
        "name=x": r"\(there 'name: recipe', now 'name: x'\)",
    }.items():
        refused(congener("run", recipe, override, "--out", done, "--resume"), sentence)
    assert snapshot(done) == before


def test_places_where_no_run_can_be(recipe, congener) -> None:
    Path("file").write_text("")
    refused(congener("run", recipe, "--out", "file"), r"file is a file; name a folder for the run")
    for place in ("file/inside", "/proc/run", f"runs/{'x' * 300}"):
        refused(congener("run", recipe, "--out", place),
                rf"Cannot write to {place} \(.+\); choose a folder that is writable")  # fmt: skip
    assert Path("file").read_text() == ""


def test_a_full_disk_leaves_no_half_recipe(recipe, congener, monkeypatch) -> None:
    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    refused(congener("run", recipe), r"Cannot write to runs/recipe \(No space left on device\)")
    assert names("runs/recipe") == []


FIT = Path("arms", "kd", "seed-0")


@pytest.mark.parametrize(
    ("path", "content", "sentence"),
    [
        (
            "recipe.yaml",
            b"\xff\x00",
            r"started by another recipe \(there '.*', now 'name: recipe'\)",
        ),
        ("recipe.yaml", b"", r"started by another recipe \(there 'the end', now 'name: recipe'\)"),
        (FIT / "result.json", b"{", r"result.json is damaged \(.*\); remove out/arms/kd/seed-0 to"),
        (
            FIT / "result.json",
            b"[]",
            r"result.json is damaged \(.*\); remove out/arms/kd/seed-0 to",
        ),
        (FIT / "result.json", b"\xff", r"result.json is damaged"),
        (FIT / "result.json", b'{"steps": 2}', r"result.json is damaged \(.*missing"),
        ("teacher/result.json", b"{}", r"result.json is damaged .*; remove out/teacher to"),
        (FIT / "weights.safetensors", b"{", r"weights.safetensors is damaged"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_damaged_run(path, content, sentence, done, recipe, congener) -> None:
    (done / path).write_bytes(content)
    said = congener("run", recipe, "--out", done, "--resume")
    refused(said, sentence)


@pytest.mark.parametrize(
    "make",
    [cut, lambda p: p.write_bytes(b""), lambda p: p.write_text("?"), lambda p: torch.save({}, p),
     lambda p: torch.save({"random": Bomb()}, p), lambda p: torch.save({"random": []}, p)],
    ids=["cut", "empty", "words", "other", "bomb", "keys"],
)  # fmt: skip
def test_a_damaged_checkpoint(make, done, recipe, congener) -> None:
    (done / FIT / "result.json").unlink()
    make(done / FIT / "checkpoint.pt")
    refused(congener("run", recipe, "--out", done, "--resume"),
            r"checkpoint.pt .*(remove it to start afresh|never executed|made by)")  # fmt: skip
    assert not Path("fired").exists()
    (done / FIT / "checkpoint.pt").unlink()  # the way out that the sentence names
    assert congener("run", recipe, "--out", done, "--resume").code == 0


def test_a_run_mends_itself_where_it_can(done, recipe, congener) -> None:
    before = json.loads((done / "summary.json").read_text())
    (done / FIT / "weights.safetensors").unlink()
    (done / "arms" / "sp" / "seed-0" / "result.json").unlink()
    (done / "arms" / "sp" / "seed-0" / "checkpoint.pt").unlink()
    with (done / "events.jsonl").open("ab") as log:
        log.write(b"\xff torn")
    shutil.rmtree(done / "analysis")
    (done / "metrics.json").write_text("{")
    assert congener("run", recipe, "--out", done, "--resume").code == 0
    assert json.loads((done / "summary.json").read_text()) == before


def test_a_report_of_no_run(tmp_path, congener) -> None:
    refused(congener("report", tmp_path / "none"), r"none is not a run folder")
    refused(congener("report", tmp_path), r"has no metrics.json: not a run folder, or not finished")
    (tmp_path / "metrics.json").write_text("{")
    refused(congener("report", tmp_path), r"metrics.json is not readable JSON")
