"""What the pictures of a report are made of: predictions, and Gram matrices of one tap."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from congener.engine import predict
from congener.task import Task

__all__ = ["Analysis"]

GRAM_SAMPLES = 200


class Analysis:
    """Looks at the test set through trained networks, for the pictures of the report."""

    def __init__(
        self,
        task: Task,
        student_tap: str | None,
        teacher_tap: str | None,
        device: torch.device,
    ) -> None:
        self.task, self.student_tap, self.teacher_tap = task, student_tap, teacher_tap
        self.device = device
        self.teacher_predictions: np.ndarray[Any, Any] | None = None

    def see_teacher(self, teacher: nn.Module, path: Path) -> None:
        """Record the teacher, whose predictions the students are then compared with."""
        self.teacher_predictions = self._save([teacher], self.teacher_tap, path)[0]

    def see(self, students: list[nn.Module], path: Path) -> None:
        """Record one arm: the networks of all seeds, and the Gram matrix of the first."""
        self._save(students, self.student_tap, path)

    def _save(self, models: list[nn.Module], tap: str | None, path: Path) -> Any:
        test = self.task.splits["test"]
        seen = [predict(model.to(self.device), self.task, test) for model in models]
        labels = seen[0].labels
        predictions = np.stack([one.logits.argmax(-1).numpy() for one in seen]).astype(np.int32)
        rows = _ordered_by_class(labels, GRAM_SAMPLES)
        # Maps of the whole test set may not fit in memory; those of the pictured samples do.
        tap = _place(models[0], tap)
        feature = predict(models[0], self.task, Subset(test, rows.tolist()), tap=tap).feature
        for model in models:
            model.cpu()
        arrays = {
            "labels": labels.numpy().astype(np.int32),
            "predictions": predictions,
            "gram": _gram(seen[0].logits[rows] if feature is None else feature).numpy(),
            "gram_labels": labels[rows].numpy().astype(np.int32),
            "gram_tap": np.array(tap or "logits"),
        }
        if self.teacher_predictions is not None:
            arrays["teacher_predictions"] = self.teacher_predictions
        draft = path.with_name(f".{path.stem}.draft.npz")
        np.savez_compressed(draft, **arrays)  # type: ignore[arg-type]
        draft.replace(path)
        return predictions


def _place(model: nn.Module, tap: str | None) -> str | None:
    """Where a tap of the student is in what an arm exports, which may hold it inside."""
    names = [name for name, _ in model.named_modules()]
    module, colon, side = (tap or "").partition(":")
    inside = [name for name in names if name == module or name.endswith(f".{module}")]
    return f"{inside[0]}{colon}{side}" if module and inside else None


def _gram(feature: Tensor) -> Tensor:
    """The similarity matrix of SP: the Gram matrix, each row of unit length."""
    flat = feature.flatten(1).double()
    return torch.nn.functional.normalize(flat @ flat.T, dim=1).float()


def _ordered_by_class(labels: Tensor, most: int) -> Tensor:
    """Up to ``most`` samples, the same number of each class, ordered by class."""
    classes = torch.unique(labels[labels >= 0])[:most]
    each = max(1, most // len(classes))
    return torch.cat([(labels == label).nonzero().flatten()[:each] for label in classes])
