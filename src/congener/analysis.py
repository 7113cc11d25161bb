"""What the pictures of a report are made of: predictions, Gram matrices, and a task's exhibits."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from congener.engine import predict
from congener.runlog import RunLog, write_text
from congener.task import Task, answer_kind
from congener.types import Exhibit, Panel

__all__ = ["Analysis"]

Array = np.ndarray[Any, Any]
GRAM_SAMPLES = 200
ALIKE = 2  # samples of a class, at least, that a Gram matrix shows beside each other


class Analysis:
    """Looks at the test set through trained networks, for the pictures of the report.

    Args:
        task: whose test set is looked at.
        student_tap: where the Gram matrices of students are taken; ``None``: the logits.
        teacher_tap: likewise.
        device: where the networks run.

    Attributes:
        classifies: whether each sample has one class, so that there are predictions; known once a
            network was seen.
    """

    def __init__(
        self,
        task: Task,
        student_tap: str | None,
        teacher_tap: str | None,
        device: torch.device,
    ) -> None:
        self.task, self.student_tap, self.teacher_tap = task, student_tap, teacher_tap
        self.device = device
        self.classifies = True
        self.teacher_predictions: Array | None = None
        self.shown: dict[str, tuple[nn.Module, str | None]] = {}

    def see_teacher(self, teacher: nn.Module, path: Path) -> None:
        """Record the teacher, whose predictions the students are then compared with."""
        self.teacher_predictions = self._save([teacher], self.teacher_tap, path)
        self.shown[path.stem] = teacher, self.teacher_tap

    def see(self, students: list[nn.Module], path: Path, tap: str | None = None) -> None:
        """Record one arm: the networks of all seeds, and the Gram matrix of the first.

        ``tap`` is the arm's own, for the exhibits; default: that of the Gram matrices.
        """
        self._save(students, self.student_tap, path)
        self.shown[path.stem] = students[0], tap or self.student_tap

    def exhibit(self, folder: Path, log: RunLog) -> None:
        """Keep what the task shows of the networks of the first seed, in the order of the run.

        What fails in the task's own pictures costs the report these, and the run nothing.
        """
        networks = {name: network.eval() for name, (network, _) in self.shown.items()}
        taps = {name: _place(network, tap) for name, (network, tap) in self.shown.items()}
        for name in ("exhibits.json", "exhibits.npz"):
            (folder / name).unlink(missing_ok=True)  # of an earlier session
        log.forget(event="exhibits_failed")
        try:
            with torch.no_grad():
                found = self.task.exhibits(networks, taps)
            _keep(found, folder)
        except Exception as error:  # noqa: BLE001  (whatever a task's own code raises)
            reason = " ".join(str(error).split()).rstrip(".") or "no reason given"
            line = f"The task's exhibits are left out: {type(error).__name__}: {reason}."
            log.emit("exhibits_failed", line=line)

    def _save(self, models: list[nn.Module], tap: str | None, path: Path) -> Any:
        """Write the file of one arm; returns the first network's predictions, if it has any."""
        test = self.task.splits["test"]
        first = predict(models[0].to(self.device), self.task, test)
        self.classifies = answer_kind(self.task, first.labels, first.logits) == "class"
        labels = _one_label(first.labels)
        rows = _ordered(labels, GRAM_SAMPLES)
        # Maps of the whole test set may not fit in memory; those of the pictured samples do.
        tap = _place(models[0], tap)
        feature = predict(models[0], self.task, Subset(test, rows.tolist()), tap=tap).feature
        arrays = {
            "gram": _gram(first.logits[rows] if feature is None else feature).numpy(),
            "gram_labels": labels[rows].numpy().astype(np.int32),
            "gram_tap": np.array(tap or "logits"),
        }
        if self.classifies:
            seen = [first, *(predict(m.to(self.device), self.task, test) for m in models[1:])]
            answers = np.stack([one.logits.argmax(-1).numpy() for one in seen]).astype(np.int32)
            arrays |= {"labels": labels.numpy().astype(np.int32), "predictions": answers}
        for model in models:
            model.cpu()
        if self.classifies and self.teacher_predictions is not None:
            arrays["teacher_predictions"] = self.teacher_predictions
        draft = path.with_name(f".{path.stem}.draft.npz")
        np.savez_compressed(draft, **arrays)  # type: ignore[arg-type]
        draft.replace(path)
        return arrays["predictions"][0] if self.classifies else None


def _keep(exhibits: Sequence[Exhibit], folder: Path) -> None:
    """Write exhibits: words to ``exhibits.json``, which names the arrays in ``exhibits.npz``."""
    arrays: dict[str, Array] = {}
    told = [_told(exhibit, arrays) for exhibit in exhibits]
    if not told:
        return
    draft = folder / ".exhibits.draft.npz"
    np.savez_compressed(draft, **arrays)  # type: ignore[arg-type]
    draft.replace(folder / "exhibits.npz")
    write_text(folder / "exhibits.json", json.dumps({"exhibits": told}, indent=1))


def _told(exhibit: Exhibit, arrays: dict[str, Array]) -> dict[str, Any]:
    """An exhibit in plain values; its pictures and its sound join the arrays."""
    rows = [
        {"name": name, "panels": [_panel(panel, arrays) for panel in panels]}
        for name, panels in exhibit.rows.items()
    ]
    told: dict[str, Any] = {"title": exhibit.title, "text": exhibit.text, "rows": rows}
    if exhibit.sound is not None:
        waveform, rate = exhibit.sound
        loud = waveform.detach().cpu().double().nan_to_num().clamp(-1, 1) * 32767
        told["sound"] = {"samples": _put(loud.round().short().numpy(), arrays), "rate": rate}
    return told


def _panel(panel: Panel, arrays: dict[str, Array]) -> dict[str, Any]:
    told: dict[str, Any] = {"caption": panel.caption, "kind": panel.kind, "hit": panel.hit}
    if panel.picture is not None:
        picture = panel.picture.detach().cpu()
        is_image = picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == torch.uint8
        fits = is_image if panel.kind in ("image", "scene") else picture.ndim == 2
        if not fits:
            raise ValueError(
                f"a picture of {picture.dtype} {tuple(picture.shape)} is no {panel.kind}"
            )
        told["picture"] = _put(picture.numpy() if is_image else picture.float().numpy(), arrays)
    return told


def _put(array: Array, arrays: dict[str, Array]) -> str:
    """Add an array under a new name, which is returned."""
    name = f"a{len(arrays)}"
    arrays[name] = array
    return name


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


def _one_label(labels: Tensor) -> Tensor:
    """One label for each sample, to order them by: of several tags the first; -1: none is known."""
    if labels.ndim == 1:
        return labels
    has = labels.flatten(1) > 0.5
    return torch.where(has.any(1), has.long().argmax(1), -1)


def _ordered(labels: Tensor, most: int) -> Tensor:
    """Up to ``most`` samples, the same number of each label, ordered by label.

    Where nothing is labelled: the first ones.
    """
    known = torch.unique(labels[labels >= 0])
    if not len(known):
        return torch.arange(min(most, len(labels)))
    each = max(ALIKE, most // len(known))
    return torch.cat([(labels == k).nonzero().flatten()[:each] for k in known[: most // each]])
