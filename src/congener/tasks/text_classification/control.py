"""Texts told apart without a network: by how often which words are in them."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from congener.tasks.controls import best_of, scikit_learn

from .data.splits import known_labels
from .metrics import ClassMetrics, NumberMetrics

if TYPE_CHECKING:
    from .task import TextClassification

__all__ = ["best_control"]

CPU = torch.device("cpu")
SURE = 1e-12
"""The least probability that a logarithm is taken of."""

Words = Callable[["TextClassification", str], list[str]]
"""The words of every text of a split."""


def best_control(task: "TextClassification", held: "TextClassification") -> dict[str, Any]:
    """The best of some linear models of TF-IDF, chosen on the test set of ``held``, a slice.

    They read what networks read: the words of the first ``max_tokens`` tokens. Where texts go on
    after these, what the best reaches on whole texts is told beside it, for no network sees those.

    Returns:
        As :meth:`congener.task.Task.control` says, and ``beside``: a figure on ``test`` by name.
    """
    makes = _models(regression=task.regression)
    near = {f"{name}, of the first {task.max_tokens} tokens": (make, tokens_as_words)
            for name, make in makes.items()}  # fmt: skip
    found = best_of(
        {name: _figure(held, *each) for name, each in near.items()},
        task.metric,
        lambda name: _figure(task, *near[name]),
    )
    if task.part("test").documents is None:
        return found
    far = {f"{name}, of whole texts": (make, whole_texts) for name, make in makes.items()}
    beyond = best_of(
        {name: _figure(held, *each) for name, each in far.items()},
        task.metric,
        lambda name: _figure(task, *far[name]),
    )
    return found | {"beside": {beyond["classifier"]: beyond["value"]}}


def tokens_as_words(task: "TextClassification", split: str) -> list[str]:
    """What a tokenizer makes of the tokens again; without one, their numbers."""
    part = task.part(split)
    rows = [
        row[:length] for row, length in zip(part.tokens.tolist(), part.length.tolist(), strict=True)
    ]
    if task.tokenizer is None:
        return [" ".join(f"token{token}" for token in row) for row in rows]
    found: list[str] = task.tokenizer.batch_decode(rows, skip_special_tokens=True)
    return found


def whole_texts(task: "TextClassification", split: str) -> list[str]:
    """The texts as they were, of pairs both."""
    documents = task.part(split).documents
    assert documents is not None
    return documents.words()


def _figure(task: "TextClassification", make: Callable[[], Any], words: Words) -> float:
    """What a model that learns from the labelled training texts reaches on the test set."""
    with scikit_learn():
        from sklearn.feature_extraction.text import TfidfVectorizer
    labels, asked = (task.part(split).labels for split in ("train", "test"))
    known = known_labels(labels)
    places = known.nonzero().flatten().tolist()
    texts = words(task, "train")
    # Every character counts that is no space: also texts of signs alone have words then.
    counts = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\S+")
    x = counts.fit_transform([texts[place] for place in places])
    model = make().fit(x, labels[known].numpy())
    said = _logits(task, model, counts.transform(words(task, "test")))
    if task.regression:
        numbers = NumberMetrics(lambda logits: logits, CPU)
        numbers.update(said, {"labels": asked})
        return numbers.compute()[task.metric]
    classes = ClassMetrics(lambda logits: logits, len(task.class_names), CPU)
    classes.update(said, {"labels": asked})
    return classes.compute()[task.metric]


def _logits(task: "TextClassification", model: Any, x: Any) -> Tensor:
    if task.regression:
        return torch.from_numpy(model.predict(x)).float().unsqueeze(1)
    logits = torch.full((x.shape[0], len(task.class_names)), SURE).double()
    logits[:, torch.from_numpy(model.classes_)] = torch.from_numpy(model.predict_proba(x))
    return logits.clamp(min=SURE).log()


def _models(*, regression: bool) -> dict[str, Callable[[], Any]]:
    """What is tried; ours."""
    with scikit_learn():
        from sklearn.linear_model import LogisticRegression, Ridge
    if regression:
        return {f"TF-IDF and ridge, alpha={a:g}": partial(Ridge, a) for a in (0.1, 1.0, 10.0)}
    return {
        f"TF-IDF and logistic regression, C={c:g}": partial(LogisticRegression, C=c, max_iter=2000)
        for c in (1.0, 10.0, 100.0)
    }
