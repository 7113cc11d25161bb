"""Start whole runs as a user does, in processes of their own, and read what they left."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn

REPOSITORY = Path(__file__).parents[2]
CONGENER = [sys.executable, "-W", "error", "-m", "congener"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


class DropoutNormStudent(nn.Module):
    """What a resume can lose: buffers that move, and random draws in every forward."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(40, width), nn.BatchNorm1d(width), nn.ReLU())
        self.dropout = nn.Dropout(0.3)
        self.classifier = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.classifier(self.dropout(self.hidden(x.flatten(1))))
        return result


def environment() -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    paths = f"{REPOSITORY / 'src'}{os.pathsep}{REPOSITORY}"
    return inherited | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def start(recipe: Path, out: Path, *arguments: str, launcher: tuple[str, ...] = ()) -> Any:
    """A running ``congener run`` whose output is kept."""
    front = [*launcher, "-m", "congener"] if launcher else CONGENER
    return subprocess.Popen(
        [*front, "run", str(recipe), "--out", str(out), *arguments],
        env=environment(), cwd=REPOSITORY, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: Any, timeout: float = 240) -> tuple[str, str]:
    """Its output and error output, once it ended well."""
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, f"exit code {process.returncode}\n{output}\n{errors}"
    return output, errors


def wait_for(process: Any, out: Path, event: str, *, step: int = 0, timeout: float = 120) -> None:
    """Wait until a run has logged an event (of a step, for events that have one)."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if any(e["event"] == event and e.get("step", step) >= step for e in events(out)):
            return
        if process.poll() is not None:
            raise AssertionError(f"the run ended before {event!r}: {process.communicate()}")
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    raise AssertionError(f"no {event!r} within {timeout} s")


def events(out: Path) -> list[dict[str, Any]]:
    """The events of a run so far; a line that is being written is left out."""
    path = out / "events.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def timeless(out: Path) -> list[dict[str, Any]]:
    """The events without what a clock says."""
    kept = [e for e in events(out) if e["event"] != "teacher_saved"]
    return [{k: v for k, v in e.items() if k not in ("time", "seconds")} for e in kept]


def weights(out: Path) -> dict[str, bytes]:
    """Every weights file of a run, by its place."""
    found = sorted(out.rglob("weights.safetensors"))
    return {str(path.relative_to(out)): path.read_bytes() for path in found}


def losses(out: Path, fit: str) -> list[dict[str, float]]:
    """The total and the terms of each logged step of a fit."""
    steps = [e for e in events(out) if e["event"] == "step" and e["fit"] == fit]
    return [{"step": e["step"], "total": e["total"], **e["terms"]} for e in steps]


def save_teacher(folder: Path) -> Path:
    """A checkpoint of a small cnn1d with 8 channels, as it is initialised."""
    from congener.tasks.image_classification.models import cnn1d

    torch.manual_seed(7)
    path = folder / "teacher.safetensors"
    save_model(cnn1d(10, channels=8), str(path))
    return path
