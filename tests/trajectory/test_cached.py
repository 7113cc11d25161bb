"""A student that learns from kept answers is, bit for bit, the one that a live teacher makes."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.trajectory.whole_runs import (
    TORCHRUN,
    events,
    finish,
    losses,
    save_teacher,
    start,
    weights,
)

import congener

# An epoch has six batches, the last of 32 samples; six epochs are three rounds of two views.
TRAIN = {
    "epochs": 6, "batch_size": 96, "lr": 5e-3, "log_every": 1, "threads": 1, "device": "cpu",
    "evaluate_every": 3,
}  # fmt: skip
DRAWN = {"augment": {"name": "jitter", "noise": 0.2}}
TERMS = [
    {"loss": "sp", "weight": 3000, "student": "hidden", "teacher": "layer3"},
    {"loss": {"name": "kd", "temperature": 4}, "weight": 0.9},
    {"loss": "dist"},
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("teacher"))


def recipe(teacher: Path, *, task: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    train = TRAIN | changes.pop("train", {})
    data = {"name": "mnist1d", "pool": 512}
    return {
        "task": {"name": "image_classification", "data": data} | (task or {}),
        "teacher": {"name": "cnn1d", "channels": 8, "checkpoint": str(teacher)},
        "student": "mlp", "alone": False, "terms": TERMS, "train": train,
    } | changes  # fmt: skip


def drift(mine: Path, theirs: Path, fit: str = "distilled/0") -> dict[str, tuple[float, float]]:
    """For each term the largest and the mean signed difference, relative to its values."""
    pairs = list(zip(losses(mine, fit), losses(theirs, fit), strict=True))
    assert pairs
    found = {}
    for term in pairs[0][0]:
        differences = [(a[term] - b[term]) / max(abs(b[term]), 1e-12) for a, b in pairs]
        found[term] = (max(map(abs, differences)), sum(differences) / len(differences))
    return found


def kinds(out: Path) -> list[str]:
    return [event["event"] for event in events(out)]


@pytest.mark.parametrize(
    ("task", "train"),
    [
        ({}, {}),
        (DRAWN, {"views": 2}),
        (DRAWN, {"views": 2, "accumulate": 2}),
        ({}, {"precision": "bf16"}),
    ],
    ids=["still", "views", "accumulated", "bf16"],
)
def test_cached_is_live_bit_for_bit(teacher, tmp_path, task, train) -> None:
    described = recipe(teacher, task=task, train=train, seeds=[0, 1])
    for way in ("off", "auto"):
        congener.run(described | {"cache": way}, out=tmp_path / way)
    live, cached = tmp_path / "off", tmp_path / "auto"
    assert "cache_built" in kinds(cached)
    assert "cache_built" not in kinds(live)
    for seed in (0, 1):
        found = drift(cached, live, f"distilled/{seed}")
        assert set(found) == {"step", "total", "task", "sp", "kd", "dist"}
        assert set(found.values()) == {(0.0, 0.0)}
    assert weights(cached) == weights(live)


def test_the_teacher_never_runs_again(teacher, tmp_path, monkeypatch) -> None:
    from congener.teachers import FrozenTeacher

    calls = []
    real = FrozenTeacher.__call__
    monkeypatch.setattr(
        FrozenTeacher, "__call__", lambda self, batch: (calls.append(len(batch["index"])),
                                                         real(self, batch))[1]
    )  # fmt: skip
    congener.run(recipe(teacher, task=DRAWN, train={"views": 2}), out=tmp_path / "run")
    # Twice 512 samples, and a few to look at; six epochs would be 3072.
    assert 1024 <= sum(calls) < 1700


@pytest.mark.slow
def test_two_processes_read_what_one_built(teacher, tmp_path) -> None:
    described = recipe(
        teacher, task=DRAWN, train={"views": 2}, cache={"folder": str(tmp_path / "c")}
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(described))
    congener.run(path, out=tmp_path / "one")
    finish(start(path, tmp_path / "two", launcher=tuple(TORCHRUN)))
    assert "cache_built" not in kinds(tmp_path / "two")
    for term, (largest, mean) in drift(tmp_path / "two", tmp_path / "one").items():
        assert largest < 1e-4, term
        assert abs(mean) < 2e-5, term


def test_a_resumed_run_reads_the_same_store(teacher, tmp_path) -> None:
    described = recipe(teacher, task=DRAWN, train={"views": 2}, seeds=[0, 1])
    congener.run(described, out=tmp_path / "straight")

    class Stopped(Exception):
        pass

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "tick" and event["fit"] == "distilled/1" and event["step"] == 25:
            raise Stopped

    changed = {**described["train"], "checkpoint_every": 20}
    described["train"] = changed
    with pytest.raises(Stopped):
        congener.run(described, out=tmp_path / "resumed", observers=(stop,))
    congener.run(described, out=tmp_path / "resumed", resume=True)
    assert kinds(tmp_path / "resumed").count("cache_built") == 2  # a store for each seed, once
    assert weights(tmp_path / "resumed") == weights(tmp_path / "straight")


def test_another_teacher_is_refused(teacher, tmp_path) -> None:
    described = recipe(teacher, cache={"folder": str(tmp_path / "c")}, train={"epochs": 1})
    congener.run(described, out=tmp_path / "one")
    (tmp_path / "other").mkdir()
    import torch
    from safetensors.torch import save_model

    from congener.tasks.image_classification.models import cnn1d

    torch.manual_seed(8)
    other = tmp_path / "other" / "teacher.safetensors"
    save_model(cnn1d(10, channels=8), str(other))
    described["teacher"]["checkpoint"] = str(other)
    with pytest.raises(congener.errors.StaleCache, match="teacher weights"):
        congener.run(described, out=tmp_path / "two")
