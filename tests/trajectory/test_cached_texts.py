"""A language model that learns from kept answers is the one that a live teacher makes."""

from pathlib import Path
from typing import Any

import pytest
from tests.trajectory.whole_runs import events, losses, weights
from tests.trajectory.whole_texts import ARMS, TRAIN, recipe, save_language_teacher

import congener

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_language_teacher(tmp_path_factory.mktemp("teacher"))


def test_cached_is_live_bit_for_bit_where_texts_are_alike_in_length(teacher, tmp_path) -> None:
    for way in ("off", "auto"):
        congener.run(recipe(teacher, cache=way), out=tmp_path / way)
    live, cached = tmp_path / "off", tmp_path / "auto"
    kinds = [event["event"] for event in events(cached)]
    assert "cache_built" in kinds
    assert "teacher_live" not in kinds
    for arm in ARMS:
        mine, theirs = (losses(out, f"{arm}/0") for out in (cached, live))
        assert mine == theirs
        assert len(mine) == 4 * 160 // 20 or len(mine) == 4 * 100 // 20
    assert weights(cached) == weights(live)


@pytest.mark.parametrize("options", [{"dtype": "fp16", "top_k": 8}, {"top_k": 4, "sampled": 16}])
def test_some_of_the_logits_teach_nearly_the_same(teacher, tmp_path, options) -> None:
    changes: dict[str, Any] = {"train": TRAIN | {"epochs": 1}, "arms": {"kd": ARMS["kd"]}}
    congener.run(recipe(teacher, cache="off", **changes), out=tmp_path / "live")
    congener.run(recipe(teacher, cache=options, **changes), out=tmp_path / "cached")
    (line,) = [e["line"] for e in events(tmp_path / "cached") if e["event"] == "cache_fidelity"]
    assert ("has no bias" in line) == ("sampled" in options)
    for mine, theirs in zip(
        *(losses(tmp_path / x, "kd/0") for x in ("cached", "live")), strict=True
    ):
        assert mine["task"] == pytest.approx(theirs["task"], rel=0.02)
    assert weights(tmp_path / "cached") != weights(tmp_path / "live")
