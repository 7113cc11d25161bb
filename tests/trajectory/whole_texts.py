"""Whole runs of tiny language models, with a teacher whose weights lie on the disk."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

DATA = {"name": "shuffle", "digits": 3, "samples": 160, "test": 20, "labelled": 100}
LLAMA = {"name": "llama", "hidden_size": 8, "layers": 1, "heads": 2}
TRAIN = {
    "epochs": 4, "batch_size": 20, "lr": 5e-3, "log_every": 1, "threads": 1, "device": "cpu",
    "evaluate_every": 100,
}  # fmt: skip
ARMS = {
    "kd": {"terms": [{"loss": {"name": "gkd", "beta": 0.0}}]},
    "supervised": {"system": {"name": "skd", "text": "data"}},
}


def save_language_teacher(folder: Path) -> Path:
    """A checkpoint of a small network that is sure of some tokens."""
    from congener.tasks.language_modelling import LanguageModelling

    torch.manual_seed(1)
    network = LanguageModelling(DATA).build_model(**LLAMA | {"hidden_size": 16})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    path = folder / "teacher.safetensors"
    save_file({name: value.clone() for name, value in network.state_dict().items()}, str(path))
    return path


def recipe(teacher: Path, **changes: Any) -> dict[str, Any]:
    return {
        "task": {"name": "language_modelling", "data": DATA, "generate": False},
        "teacher": LLAMA | {"hidden_size": 16, "checkpoint": str(teacher)},
        "student": LLAMA, "alone": False, "arms": ARMS, "train": TRAIN,
    } | changes  # fmt: skip
