"""Tagging without a network: what a trained one has to beat."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from congener.tasks.controls import best_of, scikit_learn
from congener.types import Batch

from .front_end import LogMel
from .metrics import TagMetrics

if TYPE_CHECKING:
    from .task import AudioTagging

__all__ = ["batches_of", "best_control", "summaries"]

BANDS = 64
BATCH = 256
CPU = torch.device("cpu")


def best_control(task: "AudioTagging", held: "AudioTagging") -> dict[str, Any]:
    """The best of some classifiers of how loud each band is on average, and how much it varies.

    Each tag has a classifier of its own, which learns from the training clips of which the tag is
    known. What is tried is ours.

    Args:
        task: trained on its ``train``, measured on its ``test``.
        held: the same task whose ``test`` is a slice of ``train``, to choose by.

    Returns:
        As :meth:`congener.task.Task.control` says.
    """
    candidates = _classifiers()
    chosen_on = _figures(held, candidates)
    return best_of(
        chosen_on, task.metric, lambda name: _figures(task, {name: candidates[name]})[name]
    )


def batches_of(task: "AudioTagging", split: str) -> Iterator[Batch]:
    """A split, in order, as prepared batches."""
    for raw in DataLoader(task.splits[split], BATCH, collate_fn=task.collate):
        yield task.prepare(raw, train=False, seed=0, epoch=0)


def summaries(task: "AudioTagging", split: str) -> tuple[Tensor, Tensor]:
    """Of each clip of a split, the mean and deviation of its log-mels over time, and its labels.

    Returns:
        (clips, 2 · bands) and (clips, tags).
    """
    front_end = LogMel(task.sample_rate, BANDS, hop=0.02)
    found, labels = [], []
    for batch in batches_of(task, split):
        mel = front_end(batch["waveform"], batch["length"]).squeeze(1)
        past = front_end.past(batch["length"], mel.shape[1])[..., None]
        count = (~past).sum(1)
        mean = mel.sum(1) / count  # past the end they are 0
        spread = (mel - mean[:, None]).masked_fill(past, 0).square().sum(1) / count
        found.append(torch.cat([mean, spread.sqrt()], dim=1))
        labels.append(batch["labels"])
    return torch.cat(found), torch.cat(labels)


def _figures(task: "AudioTagging", candidates: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Of each classifier, the task's figure on its test set."""
    x, y = summaries(task, "train")
    mean, spread = x.mean(0), x.std(0, correction=0).clamp(min=1e-6)
    test_x, test_y = summaries(task, "test")
    x, test_x = (x - mean) / spread, (test_x - mean) / spread
    figures = {}
    for name, make in candidates.items():
        measured = TagMetrics(test_y.shape[1], CPU)
        columns = [_probability(make, x, y[:, tag], test_x) for tag in range(y.shape[1])]
        measured.update(torch.stack(columns, dim=1).logit(), {"labels": test_y})
        figures[name] = measured.compute()[task.metric]
    return figures


def _probability(make: Callable[[], Any], x: Tensor, y: Tensor, test_x: Tensor) -> Tensor:
    """What a classifier of one tag says of each test clip."""
    known = y >= 0
    kinds = torch.unique(y[known])
    if len(kinds) < 2:  # it is always there, or never, or not known at all
        always = float(kinds[0]) if len(kinds) else 0.0
        return torch.full((len(test_x),), always, dtype=torch.float64)
    model = make().fit(x[known].numpy(), y[known].numpy())
    return torch.from_numpy(model.predict_proba(test_x.numpy())[:, 1]).double()


def _classifiers() -> dict[str, Callable[[], Any]]:
    with scikit_learn():
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.linear_model import LogisticRegression
    return {
        "logistic regression, C=0.01": partial(LogisticRegression, C=0.01, max_iter=2000),
        "logistic regression, C=0.1": partial(LogisticRegression, C=0.1, max_iter=2000),
        "logistic regression, C=1": partial(LogisticRegression, C=1.0, max_iter=2000),
        "random forest": partial(RandomForestClassifier, 100, min_samples_leaf=2, random_state=0),
    }
