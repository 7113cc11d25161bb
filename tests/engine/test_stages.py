"""What is kept of a stage: under which key, what damage does, and what a cut-off leaves."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trajectory.whole_runs import events, save_teacher, timeless, weights
from torch import nn

import congener
from congener.assembly import Assembly
from congener.engine import FitConfig, data_fingerprint, stages
from congener.engine.feed import evaluation_batches
from congener.engine.stages import stage_path
from congener.errors import CheckpointError
from congener.recipe import parse_recipe
from congener.runner import execute
from congener.system import FitStage, SurveyStage, System
from congener.tasks.image_classification import ArrayDataset, ImageClassification
from congener.teachers import Preprocessing, bridge
from congener.types import Batch

CONFIG = FitConfig(steps=3, batch_size=8, threads=1, device="cpu")
SSKD = {"name": "sskd", "student_tap": "hidden", "teacher_tap": "flatten", "transform": "signal"}
ND = {"loss": "nd", "student": "hidden", "teacher": "flatten"}
SMALL = {
    "student": {"name": "mlp", "hidden": [16]},
    "alone": False,
    "train": {
        "steps": 6, "batch_size": 32, "checkpoint_every": 4, "log_every": 1, "threads": 1,
        "device": "cpu",
    },
}  # fmt: skip


class Pretend:
    """Data of 3x8x8 images, for stages that are only named."""

    def __init__(self, last: int = 0, **changes: Any) -> None:
        images = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        images[19, 2, 7, 7] += last
        data = torch.utils.data.TensorDataset(images, torch.arange(20) % 2)
        self.task = ImageClassification.from_datasets(data, data, num_classes=2, **changes)

    def key(self, network: nn.Module, *, fitted: bool = False) -> str:
        stage: Any = SurveyStage("means", lambda _: {}, lambda _: None, (network,))
        if fitted:
            stage = FitStage("head", _Head(), (network,))
        return stage_path(Path("stages"), stage, self.task, CONFIG).name


class _Head(System):
    name = "head"

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = nn.Linear(2, 2), None

    def observe(self, batch: Batch) -> Any:
        raise NotImplementedError

    def score(self, student: Any, teacher: Any, batch: Any, progress: Any) -> Any:
        raise NotImplementedError


def test_the_key_knows_how_samples_are_prepared() -> None:
    class Darker(ImageClassification):
        def prepare(self, batch: Batch, **which: Any) -> Batch:
            ready = super().prepare(batch, **which)
            return dict(ready) | {"image": ready["image"] - 0.5}

    net, plain, darker = nn.Linear(2, 2), Pretend(), Pretend()
    darker.task.__class__ = Darker
    assert plain.key(net) == Pretend().key(net) != darker.key(net)
    moved = Pretend(augment={"name": "crop_flip", "pad": 2})
    assert moved.key(net) == plain.key(net)  # a survey sees no augmentation
    assert moved.key(net, fitted=True) != plain.key(net, fitted=True)


def test_large_samples_are_looked_at_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few at a time; small ones together, as ever."""
    task, looked = Pretend().task, list[int]()
    train, prepare = task.splits["train"], task.prepare

    def prepared(batch: Batch, **which: Any) -> Batch:
        looked.append(len(batch["labels"]))
        return prepare(batch, **which)

    monkeypatch.setattr(task, "prepare", prepared)
    raw = next(evaluation_batches(task, train, batch_size=20, share=(0, 1), workers=0))
    ready, digest = prepare(raw, train=False, seed=0, epoch=0), hashlib.sha256(b"20")
    for name in sorted(set(ready) - {"index"}):
        digest.update(ready[name].numpy().tobytes())
    assert data_fingerprint(task, train, train=False) == digest.digest()
    assert looked == [20]
    each = sum(value.nbytes for value in raw.values()) // 20
    monkeypatch.setattr(stages, "ROOM", 3 * each + 1)
    looked.clear()
    found = data_fingerprint(task, train, train=False)
    assert looked == [3] * 6 + [2]
    assert data_fingerprint(Pretend().task, train, train=False) == found
    monkeypatch.setattr(stages, "ROOM", 1)
    looked.clear()
    data_fingerprint(task, train, train=False)
    assert looked == [1] * 20
    other = Pretend(last=1).task
    assert data_fingerprint(other, other.splits["train"], train=False) != found


def test_the_key_knows_what_a_network_does_without_weights() -> None:
    torch.manual_seed(0)
    net, given, plain = nn.Conv2d(3, 2, 1), ((0.0,) * 3, (1.0,) * 3), Pretend()
    sizes = [bridge(net, given, Preprocessing((0.5,) * 3, (0.5,) * 3, size)) for size in (8, 4, 4)]
    keys = [plain.key(network) for network in sizes]
    assert keys[0] != keys[1] == keys[2]
    with_addresses = [nn.Sequential(net, _Addressed()) for _ in range(2)]
    assert repr(with_addresses[0]) != repr(with_addresses[1])
    assert len({plain.key(network) for network in with_addresses}) == 1


class _Addressed(nn.Identity):
    def extra_repr(self) -> str:
        return repr(object.__new__(object).__class__) + f" at {hex(id(self))}"


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every recipe here has: 100 signals, and a teacher with its weights."""
    generator = torch.Generator().manual_seed(0)
    data = ArrayDataset(torch.randn(100, 1, 40, generator=generator), torch.arange(100) % 10)
    path = save_teacher(tmp_path_factory.mktemp("teacher"))
    return SMALL | {
        "task": ImageClassification.from_datasets(data, data, num_classes=10),
        "teacher": {"name": "cnn1d", "channels": 8, "checkpoint": str(path)},
    }


def test_damage_is_told_with_the_way_out(given: Any, tmp_path: Path) -> None:
    described = parse_recipe(given | {"arms": {"nd": {"terms": [ND]}}})
    execute(described, tmp_path / "run")
    (kept,) = (tmp_path / "run" / "stages").iterdir()
    kept.write_bytes(kept.read_bytes()[:-7])
    execute(described, tmp_path / "run", resume=True)  # a finished arm needs it no more
    (tmp_path / "run" / "arms" / "nd" / "seed-0" / "result.json").unlink()
    with pytest.raises(CheckpointError, match=rf"{kept.name} is damaged; remove it, and") as caught:
        execute(described, tmp_path / "run", resume=True)
    assert "\n" not in str(caught.value)
    kept.unlink()
    execute(described, tmp_path / "run", resume=True)


def test_a_run_cut_off_in_a_stage_ends_as_one_left_in_peace(given: Any, tmp_path: Path) -> None:
    """The observer stops the run at once, as a kill does: nothing more is saved or logged."""
    heads = {
        name: {"system": SSKD | {"head": {"steps": steps, "checkpoint_every": 4}}}
        for name, steps in (("a", 9), ("b", 11))
    }
    described = parse_recipe(given | {"arms": heads, "seeds": [0, 1]})
    peace, war = tmp_path / "peace", tmp_path / "war"
    execute(described, peace)
    fits = [event["fit"] for event in events(peace) if event["event"] == "fit_started"]
    stages = [fit for fit in fits if fit.startswith("stages/sskd_head-")]
    assert len(stages) == len(set(stages)) == 2  # each with its own events, once for both seeds
    for fit, step in ((stages[0], 2), (stages[0], 6), (stages[1], 10)):

        def stop(event: Any, fit: str = fit, step: int = step) -> None:
            if event["event"] == "step" and (event["fit"], event["step"]) == (fit, step):
                raise MemoryError

        with pytest.raises(MemoryError):
            execute(described, war, resume=war.exists(), observers=(stop,))
    execute(described, war, resume=True)
    assert weights(war) == weights(peace)
    assert timeless(war) == timeless(peace)
    kept = [{p.name: p.read_bytes() for p in (out / "stages").iterdir()} for out in (peace, war)]
    assert kept[0] == kept[1]


def test_a_stage_made_anew_leaves_the_log_of_what_came_later(given: Any, tmp_path: Path) -> None:
    arms = {"a": {"system": SSKD}}
    described = parse_recipe(given | {"arms": arms, "seeds": [0, 1]})
    out = tmp_path / "run"
    execute(described, out)
    logged = [event for event in timeless(out) if event.get("fit") == "a/0"]
    for path in (out / "stages").iterdir():
        assert path.suffix == ".safetensors"
        path.unlink()
    for name in ("result.json", "checkpoint.pt"):
        (out / "arms" / "a" / "seed-1" / name).unlink()
    execute(described, out, resume=True)
    assert [event for event in timeless(out) if event.get("fit") == "a/0"] == logged


def test_settings_of_a_stage_are_refused_before_anything_is_trained(given: Any) -> None:
    for head, said in {
        ("stepz", 3): "stage 'sskd_head': 'stepz' is unknown; did you mean 'steps'",
        ("steps", "many"): "stage 'sskd_head': steps: expected a whole number",
    }.items():
        arms = {"a": {"system": SSKD | {"head": dict([head])}}}
        with pytest.raises(congener.CongenerError, match=said):
            Assembly(parse_recipe(given | {"arms": arms})).check()
