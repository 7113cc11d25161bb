"""Codes without a network: what trained ones have to beat."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from congener.tasks.controls import best_of, scikit_learn

from .data.splits import PairDataset, known_rows
from .encoders import NGrams, Spectrogram

if TYPE_CHECKING:
    from .task import CrossModalRetrieval

__all__ = ["best_control"]

BUCKETS, COMPONENTS, BANDS = 2048, 64, 40
"""Of n-grams of texts, of principal components before CCA, and of spectrograms: ours."""

Sides = tuple[Any, Any]
Coder = Callable[[Sides], Sides]
"""Features of both modalities to their codes, each (items, bits)."""


def best_control(task: "CrossModalRetrieval", held: "CrossModalRetrieval") -> dict[str, Any]:
    """The best of some methods, chosen on the slice that is the test set of ``held``.

    *CCA, k bits*: the signs of the first k canonical variates, from all training pairs without
    their labels. *Logistic regression*: a classifier of each modality learns from the labelled
    pairs, and a code has a bit for each class that it says.

    Returns:
        As :meth:`congener.task.Task.control` says.
    """
    methods = _methods(aligned=task.pairs == "aligned")
    chosen_on = {name: _figure(held, fit) for name, fit in methods.items()}
    return best_of(chosen_on, task.metric, lambda name: _figure(task, methods[name]))


def _methods(*, aligned: bool) -> dict[str, Callable[[Sides, Tensor], Coder]]:
    with scikit_learn():
        import sklearn  # noqa: F401
    variates = {f"CCA, {bits} bits": partial(_cca, bits=bits) for bits in (8, 16, 32, 64)}
    if aligned:
        return dict(variates)
    strengths = {f"logistic regression, C={c:g}": partial(_logistic, c=c) for c in (0.1, 1.0, 10.0)}
    return {**variates, **strengths}


def _cca(sides: Sides, _labels: Tensor, *, bits: int) -> Coder:
    from sklearn.decomposition import PCA

    most = min(COMPONENTS, len(sides[0]) - 1, *(side.shape[1] for side in sides))
    white = [PCA(most, whiten=True, random_state=0).fit(side) for side in sides]
    one, other = (pca.transform(side) for pca, side in zip(white, sides, strict=True))
    # Of white variables, canonical correlations are the singular values of their covariance.
    left, _, right = np.linalg.svd(one.T @ other)
    turns = left[:, :bits], right.T[:, :bits]

    def codes(asked: Sides) -> Sides:
        found = (p.transform(x) @ turn for p, x, turn in zip(white, asked, turns, strict=True))
        first, second = found
        return first, second

    return codes


def _logistic(sides: Sides, labels: Tensor, *, c: float) -> Coder:
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    rows = known_rows(labels).numpy()
    classes = labels[rows].numpy()
    some = classes.any(0) & ~classes.all(0) if classes.ndim == 2 else slice(None)

    def fitted(side: Any) -> Any:
        plain = LogisticRegression(C=c, max_iter=2000)
        if classes.ndim == 2:
            return OneVsRestClassifier(plain).fit(side[rows], classes[:, some])
        return plain.fit(side[rows], classes)

    models = [fitted(side) for side in sides]

    def codes(asked: Sides) -> Sides:
        said = [model.predict(side) for model, side in zip(models, asked, strict=True)]
        if classes.ndim == 1:
            said = [each[:, None] == models[0].classes_ for each in said]
        said = [each.reshape(len(each), -1) for each in said]  # of one class, a row of answers
        return said[0] - 0.5, said[1] - 0.5

    return codes


def _figure(task: "CrossModalRetrieval", fit: Callable[[Sides, Tensor], Coder]) -> float:
    train, test = task.divided.train, task.divided.test
    codes = fit(_features(task, train), train.pairs.labels)(_features(task, test))
    metrics = task.metrics(torch.device("cpu"))
    both = torch.stack([torch.as_tensor(np.asarray(side)) for side in codes], 1)
    metrics.update(both, test.columns | {"index": torch.arange(len(test))})
    return metrics.compute()[task.metric]


def _features(task: "CrossModalRetrieval", dataset: PairDataset) -> Sides:
    """Both modalities as vectors: pixels, counts of n-grams, or means over time and deviations."""
    batch = task.prepare(dict(dataset.columns), train=False, seed=0, epoch=0)
    first, second = (
        _vectors(batch[side], kind, task.divided.sample_rate)
        for side, kind in zip(("first", "second"), task.kinds, strict=True)
    )
    return first, second


def _vectors(items: Tensor, kind: str, sample_rate: int | None) -> Any:
    if kind == "text":
        items = NGrams(BUCKETS, (2, 3))(items)
    elif kind == "sound":
        frames = Spectrogram(sample_rate or 0, BANDS)(items).squeeze(1)
        items = torch.cat([frames.mean(1), frames.std(1, correction=0)], 1)
    return items.flatten(1).numpy()
