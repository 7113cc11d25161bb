"""A few labels beside a pool: how batches are mixed, and what a student alone trains on."""

from typing import Any

import pytest
import torch

from congener.engine import FitConfig, steps_per_epoch
from congener.engine.feed import epoch_batches, size
from congener.errors import DataError
from congener.recipe import parse_recipe
from congener.runner import execute
from congener.tasks.image_classification import ImageClassification


def few() -> ImageClassification:
    return ImageClassification({"name": "mnist1d", "pool": 200, "labelled": 30})


def batches(task: ImageClassification, **changes: Any) -> list[torch.Tensor]:
    settings: dict[str, Any] = {
        "batch_size": 20, "seed": 0, "epoch": 0, "first": 0, "last": 12, "share": (0, 1),
        "workers": 0, "labelled": task.labelled, "labelled_per_batch": 5,
    }  # fmt: skip
    found = epoch_batches(task, task.splits["train"], **(settings | changes))
    return [batch["index"] for batch in found]


def test_every_batch_has_its_share_of_labels_and_the_pool_is_seen_once() -> None:
    task = few()
    config = FitConfig(epochs=1, batch_size=20, labelled_per_batch=5)
    assert steps_per_epoch(task.splits["train"], config, task.labelled) == 12  # 170 / 15, ragged
    seen = batches(task)
    assert [int((batch < 30).sum()) for batch in seen] == [5] * 12
    pool = torch.cat([batch[batch >= 30] for batch in seen])
    assert sorted(pool.tolist()) == list(range(30, 200))
    drawn = torch.cat([batch[batch < 30] for batch in seen])
    assert torch.bincount(drawn, minlength=30).tolist() == [2] * 30  # 60 draws of 30, in turn


def test_the_mix_is_a_function_of_seed_and_epoch_and_ranks_share_it() -> None:
    task = few()
    whole = batches(task)
    assert all(torch.equal(a, b) for a, b in zip(whole, batches(task), strict=True))
    assert not torch.equal(whole[0], batches(task, epoch=1)[0])
    assert all(torch.equal(a, b) for a, b in zip(whole[7:], batches(task, first=7), strict=True))
    halves = [batches(task, share=(rank, 2)) for rank in (0, 1)]
    for batch, first, second in zip(whole, *halves, strict=True):
        assert torch.equal(batch, torch.cat([first, second]))


def test_labelled_per_batch_needs_samples_without_label() -> None:
    task = ImageClassification("mnist1d")
    config = FitConfig(epochs=1, batch_size=20, labelled_per_batch=5)
    with pytest.raises(DataError, match=r"labelled_per_batch=5 needs a training set in which some"):
        steps_per_epoch(task.splits["train"], config, task.labelled)
    for labelled in (torch.arange(0), torch.arange(size(task.splits["train"]))):
        with pytest.raises(DataError, match="some samples have a label and some have none; leave"):
            steps_per_epoch(task.splits["train"], config, labelled)


def test_the_student_alone_trains_on_the_labelled_samples_for_as_many_steps(tmp_path: Any) -> None:
    recipe = parse_recipe(
        {
            "task": {"name": "image_classification", "data": {"name": "mnist1d", "labelled": 40}},
            "teacher": {"name": "cnn1d", "train": {"steps": 2}},
            "student": "mlp",
            "terms": [{"loss": "hard_label"}],
            "train": {"epochs": 1, "batch_size": 500, "labelled_per_batch": 20, "threads": 1},
        }
    )
    metrics = execute(recipe, tmp_path / "run").metrics
    assert metrics["steps"] == 9  # 3960 / 480, ragged, for both arms
    events = (tmp_path / "run" / "events.jsonl").read_text()
    assert events.count('"fit": "alone/0", "step"') == events.count('"fit": "distilled/0", "step"')
