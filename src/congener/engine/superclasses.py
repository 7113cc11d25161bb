"""Superclasses: clusters of what a teacher sees, for batches of similar samples without labels.

CCKD's superclass-uniform sampler (Peng et al., ICCV 2019) draws from K-means clusters of the
teacher's features. Ours, where the paper's choices are not known: features of the images without
augmentation, maps averaged over space, Euclidean distance, k-means++ and 20 rounds, one seed.
"""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn
from torch.utils.data import Dataset

from congener.engine.config import FitConfig
from congener.engine.stages import prepare
from congener.errors import DataError
from congener.ops.collectives import gather_rows
from congener.system import SurveyStage
from congener.task import Task
from congener.teachers import FrozenTeacher
from congener.types import Batch

__all__ = ["superclasses"]

ROUNDS = 20


def superclasses(
    teacher: nn.Module,
    task: Task,
    config: FitConfig,
    *,
    train: Dataset[Any],
    tap: str | None = None,
    seed: int = 0,
    folder: Path | None = None,
) -> Tensor:
    """The cluster of each training sample among ``config.superclasses``, for :func:`fit`.

    Args:
        teacher: the trained network; it is frozen.
        task: how it is called.
        config: the settings of the fits that draw from the clusters.
        train: the training set.
        tap: whose tensor is clustered; default: the logits.
        seed: of k-means.
        folder: where the result is kept, and found again for the same teacher and data.

    Returns:
        (samples,), int64. A cluster may be empty.

    Raises:
        TapError: a tap that does not exist.
        DataError: features that are not finite.
    """
    clusters = _Clusters(teacher, task, tap, config.superclasses, seed)
    prepare(clusters, task, config, train=train, folder=folder)
    return clusters.found


class _Clusters:
    """A survey of the training set through the teacher."""

    def __init__(
        self, teacher: nn.Module, task: Task, tap: str | None, count: int, seed: int
    ) -> None:
        self.teacher = FrozenTeacher(teacher, task, [tap] if tap else [])
        self.tap, self.count, self.seed = tap, count, seed
        self.found: Tensor

    def stages(self) -> tuple[SurveyStage]:
        """One pass over what the student learns from."""
        key = (self.tap or "", self.count, self.seed, ROUNDS)
        network = self.teacher.model
        stage = SurveyStage(
            "superclasses", self._measure, self._receive, (network,), data="train", key=key
        )
        return (stage,)

    def _measure(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        mine = torch.cat([self._feature(batch) for batch in batches])
        features = gather_rows(mine)[0]
        if not features.isfinite().all():
            raise DataError(
                f"The teacher's {self.tap or 'logits'} are not finite on some training samples, "
                "so they have no clusters; use another tap, or sampler 'class_uniform'."
            )
        with warnings.catch_warnings():  # fewer distinct samples than clusters leave some empty
            warnings.simplefilter("ignore")
            data = features.cpu().numpy()
            _, found = kmeans2(data, self.count, iter=ROUNDS, minit="++", seed=self.seed)
        # Machines may round differently: all take the clusters of the first process.
        return {"superclasses": broadcast(torch.from_numpy(found).long().to(mine.device))}

    def _feature(self, batch: Batch) -> Tensor:
        said = self.teacher(batch)
        feature = (said.features[self.tap] if self.tap else said.logits).float()
        return feature.flatten(2).mean(2) if feature.ndim > 2 else feature

    def _receive(self, figures: Mapping[str, Tensor]) -> None:
        self.found = figures["superclasses"]
