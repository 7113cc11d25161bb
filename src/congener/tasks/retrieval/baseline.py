"""What finds identities without a network: the nearest neighbour by pixels."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from congener.tasks.controls import best_of, scikit_learn

from .data.splits import IdentityDataset
from .metrics import retrieval_figures

__all__ = ["nearest_neighbour"]

COMPONENTS = (16, 32, 64, 128)
"""How many principal components are tried; ours."""

Parts = tuple[IdentityDataset, IdentityDataset]


def nearest_neighbour(whole: Parts, slices: Parts, metric: str) -> Mapping[str, Any]:
    """The control of :class:`.Retrieval`: cosines of pixels, or of their principal components.

    Args:
        whole: the training and the test set.
        slices: the same where the test set is a slice of the training set, to choose by.
        metric: the figure to choose by.
    """

    def figure(embedding: Tensor, test: IdentityDataset) -> float:
        return retrieval_figures(embedding, test.labels, test.cameras)[metric]

    chosen_on = {name: figure(each, slices[1]) for name, each in _embeddings(*slices).items()}
    return best_of(chosen_on, metric, lambda best: figure(_embeddings(*whole)[best], whole[1]))


def _embeddings(train: IdentityDataset, test: IdentityDataset) -> dict[str, Tensor]:
    """The test set by its pixels, less the training set's mean, and by their components."""
    with scikit_learn():
        from sklearn.decomposition import PCA
    pixels, others = ((part.images.flatten(1).float() / 255).numpy() for part in (train, test))
    most = min(COMPONENTS[-1], *pixels.shape)
    model = PCA(most, svd_solver="randomized", random_state=0).fit(pixels)
    components = torch.as_tensor(model.transform(others))
    spread = torch.as_tensor(model.explained_variance_).sqrt().clamp(min=1e-12)
    found = {"nearest neighbour, pixels": torch.as_tensor(others - model.mean_)}
    for count in COMPONENTS:
        name = f"nearest neighbour, {count} principal components"
        found[name] = components[:, :count]
        found[f"{name}, whitened"] = (components / spread)[:, :count]
    return found
