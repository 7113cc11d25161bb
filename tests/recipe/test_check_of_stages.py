"""A recipe whose arms await stages is tried as a whole before anything is trained."""

from typing import Any

import pytest

from congener.assembly import Assembly
from congener.errors import CongenerError
from congener.recipe import parse_recipe
from congener.system import System

TAPS = {"student": "hidden", "teacher": "flatten"}
CRD = {"name": "crd", "student_channels": 64, "teacher_channels": 320, "samples": 4000}
SSKD = {"name": "sskd", "student_tap": "hidden", "teacher_tap": "flatten", "transform": "signal"}
ARMS: dict[str, dict[str, Any]] = {
    "nd": {"terms": [{"loss": "nd", **TAPS}]},
    "crd": {"terms": [{"loss": CRD | {"negatives": 8}, **TAPS}]},
    "sskd": {"system": SSKD},
    "mhkd": {"system": {"name": "mhkd", "student_taps": ["hidden"], "teacher_taps": ["flatten"]}},
}


def check(arm: dict[str, Any]) -> None:
    described = {
        "task": {"name": "image_classification", "data": "mnist1d"},
        "teacher": {"name": "cnn1d", "train": {"steps": 1000}},
        "student": "mlp",
        "arms": {"mine": arm},
        "train": {"steps": 3, "batch_size": 32, "device": "cpu"},
    }
    Assembly(parse_recipe(described)).check()


@pytest.mark.parametrize("name", ARMS)
def test_the_whole_system_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    totals: list[tuple[str, bool]] = []
    forward = System.forward

    def spied(system: System, *inputs: Any, **named: Any) -> Any:
        result = forward(system, *inputs, **named)
        totals.append((system.name, bool(result[0].isfinite())))
        return result

    monkeypatch.setattr(System, "forward", spied)
    check(ARMS[name])
    assert totals[-1] == (name if "system" in ARMS[name] else "distillation", True)


@pytest.mark.parametrize(
    ("arm", "sentence"),
    [
        (
            {"terms": [{"loss": CRD | {"student_channels": 63}, **TAPS}]},
            "a feature of shape (2, 64) must have 63 channels for a layer with weight (128, 63); "
            "pool maps, or say the channels.",
        ),
        (
            {"terms": [{"loss": CRD | {"samples": 3999}, **TAPS}]},
            "The term 'crd' remembers 3999 samples, but the training set has 4000, of index "
            "0…3999; set `samples` to the size of the training set, whose samples are counted from "
            "0.",
        ),
        (
            {"system": SSKD | {"head": {"epoch": 3}}},
            "The settings of the stage 'sskd_head': 'epoch' is unknown; did you mean 'epochs'?",
        ),
        (
            {"system": SSKD | {"head": {"batch_size": 5000, "drop_last": True}}},
            "An epoch of 4000 samples has no batch of 5000; lower batch_size or set drop_last to "
            "false.",
        ),
    ],
)
def test_what_does_not_fit_is_told(arm: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CongenerError) as error:
        check(arm)
    assert str(error.value) == sentence
