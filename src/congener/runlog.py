"""The files of a run: events as they happen, and documents that are whole or absent."""

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from congener.errors import RunError

__all__ = ["Event", "RunLog", "environment", "read_json", "versions", "write_text"]

Event = dict[str, Any]


class RunLog:
    """Appends events to ``events.jsonl`` of a run folder and shows them to observers.

    Observers look, they do not touch. A log without a folder (``RunLog(None)``) only tells its
    observers; that is what every process but the first has.

    Args:
        folder: the run folder, which exists, or ``None``.
        observers: called with every event.
    """

    def __init__(
        self, folder: Path | None, observers: tuple[Callable[[Event], None], ...] = ()
    ) -> None:
        self.folder = folder
        self.observers = observers
        self._path = None if folder is None else folder / "events.jsonl"

    def emit(self, event: str, **fields: Any) -> None:
        """Record one event with its time (seconds since 1970)."""
        record = {"event": event, "time": round(time.time(), 3), **fields}
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        for observer in self.observers:
            observer(record)

    def show(self, event: str, **fields: Any) -> None:
        """Tell the observers something that is too frequent to be kept."""
        for observer in self.observers:
            observer({"event": event, **fields})

    @property
    def length(self) -> int:
        """Size of the log so far, in bytes; a checkpoint remembers it."""
        return self._path.stat().st_size if self._path is not None and self._path.exists() else 0

    def rewind(self, length: int) -> None:
        """Forget the events after ``length`` bytes: those that a resumed run will live again."""
        if self._path is not None and self._path.exists():
            os.truncate(self._path, min(length, self.length))

    def forget(self, **fields: str) -> None:
        """Remove the events that have these fields: those of what starts again from zero."""
        if self._path is None or not self._path.exists():
            return
        text = self._path.read_text(encoding="utf-8", errors="replace")
        lines = text.splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and not _has(line, fields)]
        if len(kept) < len(lines):
            write_text(self._path, "".join(kept))


def _has(line: str, fields: dict[str, str]) -> bool:
    try:
        event = json.loads(line)
    except ValueError:
        return False
    return isinstance(event, dict) and fields.items() <= event.items()


def write_text(path: Path, text: str) -> None:
    """Write a file that is, at every moment, either the old one or the new one, whole."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Read a JSON document of a run folder."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"Cannot read {path}: {error}.") from error


def environment() -> dict[str, str]:
    """Versions and machine, as strings, for a run's ``environment.json``."""
    facts = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpus": str(os.cpu_count()),
    }
    return facts | versions()


def versions() -> dict[str, str]:
    """The versions of the packages that decide what a run computes."""
    found = {}
    for package in ("congener", "torch", "accelerate", "numpy", "torchvision", "timm"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
