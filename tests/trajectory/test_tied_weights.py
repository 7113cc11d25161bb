"""A student whose last layer has the weights of the first becomes a teacher."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trajectory.whole_texts import ARMS, DATA, LLAMA, TRAIN, recipe, save_language_teacher

import congener
from congener.engine.checkpoint import read_tensors
from congener.errors import CheckpointError
from congener.tasks.language_modelling import LanguageModelling

pytest.importorskip("transformers")

TIED = {
    "name": "transformers:llama", "hidden_size": 8, "intermediate_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip
HEAD, WORDS = "lm_head.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize("student", [TIED, LLAMA], ids=["transformers", "ours"])
def test_a_tied_student_is_loaded_as_a_teacher(tmp_path: Path, student: dict[str, Any]) -> None:
    once: dict[str, Any] = {"train": TRAIN | {"epochs": 1}, "arms": {"kd": ARMS["kd"]}}
    teacher = save_language_teacher(tmp_path)
    congener.run(recipe(teacher, student=student, **once), out=tmp_path / "first")
    (kept,) = (tmp_path / "first").glob("arms/kd/*/weights.safetensors")
    held = read_tensors(kept)
    assert torch.equal(held[HEAD], held[WORDS])
    options = {key: value for key, value in student.items() if key != "name"}
    network = LanguageModelling(DATA).build_model(str(student["name"]), **options)
    assert not torch.equal(network.state_dict()[HEAD], held[HEAD])

    changes = once | {"teacher": student | {"checkpoint": str(kept)}}
    congener.run(recipe(teacher) | changes, out=tmp_path / "second")

    network.load_state_dict(held)
    network.save_pretrained(tmp_path / "theirs")  # transformers keeps tied weights under one name
    single = tmp_path / "theirs" / "model.safetensors"
    assert HEAD not in read_tensors(single)
    changes = once | {"teacher": student | {"checkpoint": str(single)}}
    congener.run(recipe(teacher) | changes, out=tmp_path / "third")
    both = [
        read_tensors(next((tmp_path / run).glob("arms/kd/*/weights.safetensors")))
        for run in ("second", "third")
    ]
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])


def test_weights_that_are_not_tied_are_refused(tmp_path: Path) -> None:
    untied = TIED | {"tie_word_embeddings": False}
    torch.manual_seed(1)
    options = {key: value for key, value in untied.items() if key != "name"}
    network = LanguageModelling(DATA).build_model(str(untied["name"]), **options)
    path = tmp_path / "untied.pt"
    torch.save(network.state_dict(), path)
    changes: dict[str, Any] = {"teacher": TIED | {"checkpoint": str(path)}}
    with pytest.raises(CheckpointError, match=r"'lm_head.weight' apart, which are one tensor"):
        congener.run(recipe(path) | changes, out=tmp_path / "run")
