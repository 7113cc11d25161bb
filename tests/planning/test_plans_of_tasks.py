"""Plans for networks that name no classes: tags, embeddings, and codes of two modalities."""

from typing import Any

import pytest
import torch
from tests.report.tagging import SAMPLES, Frames, Tones
from torch import Tensor, nn

import congener
from congener.errors import RecipeError
from congener.planning import Plan, plan


def batch(**changes: Any) -> dict[str, Any]:
    return {name: column[:4] for name, column in Tones().splits["test"].columns.items()} | changes


def chosen(found: Plan) -> list[str]:
    return [proposal.loss for proposal in found.chosen]


def test_tags_are_learned_tag_by_tag() -> None:
    found = plan(Frames(4), Frames(8), batch(), task=Tones(), losses=())
    assert chosen(found) == ["multilabel_kd", "sp"]
    assert "tags" in found.reasons[0]
    assert [term.loss.name for term in found.terms] == ["multilabel_kd", "sp"]
    assert "loss: multilabel_kd, weight: 1" in found.yaml


def test_one_class_a_sample_is_learned_as_before() -> None:
    labels = torch.tensor([0, 1, 2, -100])
    found = plan(Frames(4), Frames(8), batch(labels=labels), task=Tones(), losses=())
    assert chosen(found) == ["kd", "sp"]


def test_embeddings_have_no_probabilities() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    networks = Frames(4, 16), Frames(8, 16)
    found = plan(*networks, batch(labels=labels), task=Tones(), losses=())
    assert chosen(found) == ["sp"]
    assert len(found.reasons) == 1


class Codes(Tones):
    def logits(self, result: Any) -> Tensor:
        codes: Tensor = torch.stack([result, result], 1)
        return codes


def test_codes_of_two_modalities_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"networks of one input .* gives \(4, 2, 3\); write the"):
        plan(Frames(4), Frames(8), batch(), task=Codes())


class Banded(nn.Module):
    """Reads a waveform, and convolves frames of it over frequencies."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, width, 3, stride=2, padding=1), nn.ReLU())
        self.head = nn.Linear(width, 3)

    def forward(self, waveform: Tensor, length: Tensor) -> Tensor:
        maps = self.layers(waveform.view(-1, 1, 8, SAMPLES // 8))
        result: Tensor = self.head(maps.mean((2, 3)))
        return result


def test_maps_of_a_sound_are_maps() -> None:
    found = plan(Banded(4), Banded(6), batch(), task=Tones(), losses=())
    assert [(place.path, place.kind, place.shape) for place in found.student.stages] == [
        ("layers", "map", (4, 4, 4))
    ]
    assert found.chosen[-1].student == ("layers",)


def test_auto_terms_of_a_task_of_tags() -> None:
    settings = {"steps": 2, "batch_size": 8, "device": "cpu", "threads": 1}
    recipe = congener.describe(Frames(4), Frames(8), Tones(), terms="auto", **settings)
    assert [term.loss.name for term in recipe.terms] == ["multilabel_kd", "sp"]
