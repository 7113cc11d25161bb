"""A folder that holds what a teacher said about every view of every sample.

    manifest.json                                    what is kept, and of what it is the answer
    view-<v>/<first row>-<last row>.safetensors      the rows of some samples (:mod:`.shards`)

A manifest says nothing that its maker could not say again, and every file tells which store it is
of, so either can be lost, or swapped, and is found out. Any number of processes may build a store
together: who writes a file holds a lock on its draft, which dies with the process.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from congener.errors import DataError, RunError, StaleCache, did_you_mean
from congener.runlog import write_text
from congener.teachers.formats import Field
from congener.teachers.shards import Bytes, Layout, Places, ShardFile
from congener.teachers.witness import TEXT

__all__ = ["WITNESS", "Draft", "Shard", "TeacherStore"]

WITNESS = ":witness"
"""The tensor that tells what the teacher was shown (:mod:`.witness`); no tap has such a path."""

FORMAT = "1"
SHARD_BYTES = 64 << 20
OPEN = 256  # files that a process has open at most; ours
SPARE = 1 << 20  # bytes of a disk that a store leaves free


class Shard(NamedTuple):
    """Some rows of a view: the samples ``first`` to ``last``, inclusive."""

    view: int
    first: int
    last: int

    @property
    def rows(self) -> int:
        """Number of samples."""
        return self.last - self.first + 1


class Draft(NamedTuple):
    """A file of a store that is being written."""

    shard: Shard
    file: BinaryIO
    path: Path


class TeacherStore:
    """What a teacher said, by sample and view; see :meth:`create` and :meth:`open`.

    Attributes:
        folder: where it lies.
        identity: what its answers depend on, by name.
        fields: the tensors of each sample, by name; the last is :data:`WITNESS`.
        samples: how many samples there are; their ids are 0 to ``samples - 1``.
        views: how many views of each.
        versions: of the software that began it, for information.
        key: a hash of all of these but the folder and the versions.
    """

    def __init__(self, folder: Path, content: Mapping[str, Any], versions: Mapping[str, str]):
        self.folder, self._content, self.versions = folder, dict(content), dict(versions)
        self.identity: dict[str, str] = content["identity"]
        fields = [Field(**line | {"shape": tuple(line["shape"])}) for line in content["fields"]]
        self.fields = {field.name: field for field in (*fields, _witness_field(fields))}
        self.samples: int = content["samples"]
        self.views: int = content["views"]
        self.key = _hash(content)
        self._rows: int = content["rows"]
        self._parts = [part for field in self.fields.values() for part in field.parts]
        self._files: dict[tuple[int, int], ShardFile] = {}

    @classmethod
    def create(
        cls,
        folder: Path,
        identity: Mapping[str, str],
        fields: Sequence[Field],
        *,
        samples: int,
        views: int,
        versions: Mapping[str, str],
        shard_bytes: int = SHARD_BYTES,
        shard_rows: int | None = None,
    ) -> "TeacherStore":
        """Begin a store, or open the one that is there.

        Args:
            folder: where it lies or shall lie.
            identity: what the answers depend on, by name: weights, data, transform, seed, …
            fields: the tensors of each sample.
            samples: how many samples there are.
            views: how many views of each.
            versions: of the software that builds it.
            shard_bytes: about how large a file gets; default: 64 MiB.
            shard_rows: how many samples a file holds at most; default: as many as fit.

        Raises:
            StaleCache: a store of something else.
            DataError: a damaged manifest.
            RunError: a folder that cannot be written, or a disk that is too small.
        """
        kept = (*fields, _witness_field(fields))
        row = sum(field.nbytes for field in kept)
        most = min(samples, shard_rows or samples)
        content = {
            "format": FORMAT,
            "identity": dict(identity),
            "samples": samples,
            "views": views,
            "fields": [asdict(field) | {"shape": list(field.shape)} for field in fields],
            "rows": max(1, min(most, shard_bytes // max(1, row))),
        }
        store = cls(folder, content, versions)
        if not store._manifest.exists():
            store.check_room()
            text = {"store": store.key, "content": content, "versions": dict(versions)}
            with _writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                write_text(store._manifest, json.dumps(text, indent=1))
        there = cls.open(folder)  # of another process, perhaps
        there._check_content(content)
        return there

    @classmethod
    def open(cls, folder: Path) -> "TeacherStore":
        """Open a store that is there.

        Raises:
            DataError: no manifest, or a damaged one.
            StaleCache: one of another format.
        """
        path = folder / "manifest.json"
        way_out = "remove that file and run `congener cache build` again: what is sound stays."
        try:
            found = json.loads(path.read_bytes())
            sound = found["store"] == _hash(found["content"])
        except FileNotFoundError as error:
            raise DataError(
                f"{folder} holds no teacher store; run `congener cache build` first."
            ) from error
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{path} is of no teacher store, or damaged; name another folder, or {way_out}"
            ) from error
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is damaged, or cannot be read ({error}); {way_out}") from error
        if not sound:
            raise DataError(f"{path} is damaged: it is not what was written; {way_out}")
        kind = found["content"].get("format")
        if kind != FORMAT:
            raise StaleCache(
                f"{folder} is a store of the format {kind}, and this congener has {FORMAT}; "
                "remove it and run `congener cache build` again, or name another folder."
            )
        return cls(folder, found["content"], found.get("versions", {}))

    @cached_property
    def nbytes(self) -> int:
        """What all files take on disk, in bytes."""
        return sum(self._layout(shard).size for shard in self.shards)

    @cached_property
    def shards(self) -> list[Shard]:
        """The rows of each file."""
        firsts = range(0, self.samples, self._rows)
        lasts = [min(first + self._rows, self.samples) - 1 for first in firsts]
        pairs = list(zip(firsts, lasts, strict=True))
        return [Shard(view, first, last) for view in range(self.views) for first, last in pairs]

    def path(self, shard: Shard) -> Path:
        """The file of a shard."""
        name = f"{shard.first}-{shard.last}.safetensors"
        return self.folder / f"view-{shard.view}" / name

    def missing(self) -> list[Shard]:
        """The shards that are not there yet."""
        views = [self.folder / f"view-{view}" for view in range(self.views)]
        there = {path for view in views if view.is_dir() for path in view.iterdir()}
        return [shard for shard in self.shards if self.path(shard) not in there]

    def check_room(self) -> None:
        """Refuse a disk on which the missing files do not fit.

        Raises:
            RunError: with both sizes.
        """
        needed = sum(self._layout(shard).size for shard in self.missing())
        place = next(
            path for path in (self.folder, *self.folder.absolute().parents) if path.exists()
        )
        free = shutil.disk_usage(place).free
        if needed and needed + SPARE > free:
            raise RunError(
                f"The teacher store {self.folder} needs {(needed + SPARE) / 1e6:,.1f} MB, but its "
                f"disk has {free / 1e6:,.1f} MB free; name a folder on a larger one, or keep less "
                "(fewer views, dtype fp16, top_k)."
            )

    @contextmanager
    def claim(self, shard: Shard) -> Iterator[Draft | None]:
        """A draft to write a shard to, for this process alone.

        Gives ``None`` where another process is at it, or was.

        Raises:
            RunError: a folder that cannot be written.
        """
        final = self.path(shard)
        draft = final.with_name(f".{final.name}.draft")
        if final.exists():
            yield None
            return
        with _writing(self.folder):
            final.parent.mkdir(parents=True, exist_ok=True)
            file = draft.open("ab")
        with file:
            locked = _lock(file)
            if locked is None:  # no locks here: a draft of our own, at worst for double work
                with _writing(self.folder):
                    draft.unlink(missing_ok=True)
                    draft = draft.with_name(f"{draft.name}-{os.getpid()}")
                    file = draft.open("ab")
            mine = locked is not False and _same(file, draft)
            if mine and final.exists():  # given its name meanwhile, so that this draft is empty
                draft.unlink(missing_ok=True)
                mine = False
            with file:
                yield Draft(shard, file, draft) if mine else None

    def write(self, draft: Draft, tensors: Mapping[str, Tensor]) -> None:
        """Write the parts of all fields, then give the file its name.

        Args:
            draft: what was claimed.
            tensors: what :meth:`.Field.encode` made of the fields' rows, by name.

        Raises:
            RunError: a folder that cannot be written, or a disk that is full.
        """
        with _writing(self.folder):
            draft.file.truncate(0)
            self._layout(draft.shard).write(draft.file, tensors)
            draft.file.flush()
            os.fsync(draft.file.fileno())
            draft.path.replace(self.path(draft.shard))

    def read(
        self, names: Sequence[str], ids: Tensor, view: int, counts: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What was said about some samples, by the names of fields, as the teacher gave it.

        Args:
            names: of fields.
            ids: sample ids, (batch,), in any order, any number of times.
            view: any number; the store has it modulo its views.
            counts: of samples with a row for each of some tokens, how many each has, (batch,).

        Raises:
            DataError: an id that the store does not have; a missing or damaged file.
        """
        wanted = ids.cpu().numpy().astype(np.int64, copy=False)
        highest = int(wanted.view(np.uint64).max(initial=0))  # what is negative is very high
        if highest >= self.samples:
            wrong = wanted[(wanted < 0) | (wanted >= self.samples)][0]
            raise DataError(
                f"The store {self.folder} has the samples 0 to {self.samples - 1}, not {wrong}; "
                "ids are positions in the training set that it was built from."
            )
        fields = [self.field(name) for name in names]
        parts = [part.name for field in fields for part in field.parts]
        view %= self.views
        if self._rows >= self.samples:
            file = self._file(view, 0)
            found = {name: file.rows(name, wanted).take(wanted, axis=0) for name in parts}
        else:
            found = self._gather(parts, wanted, view)
        counts = None if counts is None else counts.cpu()
        return {field.name: _decoded(field, found, len(wanted), counts) for field in fields}

    def _gather(self, parts: Sequence[str], wanted: Places, view: int) -> dict[str, Bytes]:
        """Rows of several files, each file asked once."""
        order = wanted.argsort()
        numbers, places = np.divmod(wanted[order], self._rows)
        starts = np.flatnonzero(np.diff(numbers, prepend=-1)).tolist()
        found = {
            part.name: np.empty((len(wanted), part.nbytes), np.uint8)
            for part in self._parts
            if part.name in parts
        }
        for start, end in pairwise([*starts, len(wanted)]):
            file = self._file(view, int(numbers[start]))
            for name, out in found.items():
                rows = file.rows(name, places[start:end])
                # Row by row: half the copies of indexing, which costs most where rows are large.
                for mine, its in zip(
                    order[start:end].tolist(), places[start:end].tolist(), strict=True
                ):
                    out[mine] = rows[its]
        return found

    def field(self, name: str) -> Field:
        """The field of a name.

        Raises:
            StaleCache: one that the store does not have.
        """
        if name not in self.fields:
            raise StaleCache(
                f"The store {self.folder} does not hold {name!r}; "
                f"{did_you_mean(name, self.fields)} Build one that has it in another folder."
            )
        return self.fields[name]

    def verify(self) -> list[str]:
        """Check every bit of every file.

        Returns:
            A sentence for each file that is missing or damaged, with the way out.
        """
        problems = []
        for shard in self.shards:
            try:
                ShardFile(self.path(shard), self._layout(shard)).verify()
            except DataError as error:
                problems.append(str(error))
        return problems

    def info(self) -> dict[str, Any]:
        """What the store is, in plain values."""
        return {
            "folder": str(self.folder),
            "bytes": self.nbytes,
            "samples": self.samples,
            "views": self.views,
            "fields": {name: str(field) for name, field in self.fields.items()},
            "exact": all(field.exact for field in self.fields.values()),
            "identity": self.identity,
            "versions": self.versions,
            "shards": len(self.shards),
            "missing": len(self.missing()),
        }

    def __getstate__(self) -> dict[str, Any]:
        """A copy opens the files anew."""
        return self.__dict__ | {"_files": {}}

    @property
    def _manifest(self) -> Path:
        return self.folder / "manifest.json"

    def _file(self, view: int, number: int) -> ShardFile:
        """The file with a number within its view."""
        found = self._files.get((view, number))
        if found is None:
            if len(self._files) >= OPEN:
                self._files.pop(next(iter(self._files)))
            shard = self.shards[view * (len(self.shards) // self.views) + number]
            layout = self._layout(shard)
            found = ShardFile(self.path(shard), layout, forgotten=self._forgotten)
            self._files[view, number] = found
        return found

    @cached_property
    def _forgotten(self) -> bool:
        """Whether memory has no room for all of it."""
        row = sum(field.nbytes for field in self.fields.values())
        return self.samples * self.views * row > _memory() / 2

    def _layout(self, shard: Shard) -> Layout:
        facts = {"store": self.key, "view": str(shard.view)}
        facts |= {"first row": str(shard.first), "last row": str(shard.last)}
        return Layout(self._parts, shard.rows, facts)

    def _check_content(self, content: Mapping[str, Any]) -> None:
        """Refuse another content than this store's, by the first line that differs."""
        there, here = _lines(self._content), _lines(content)
        for name in dict.fromkeys([*here, *there]):
            old, new = there.get(name, "none"), here.get(name, "none")
            if old != new:
                raise StaleCache(
                    f"The store {self.folder} was built for something else: its {name} is "
                    f"{_short(old, new)}, and now it is {_short(new, old)}; remove that folder and "
                    "run `congener cache build` again, or name another folder."
                )


def _decoded(field: Field, found: Mapping[str, Bytes], rows: int, counts: Tensor | None) -> Tensor:
    """What a field's bytes mean."""
    parts = {
        part.name: torch.from_numpy(found[part.name].reshape(-1))
        .view(part.dtype)
        .view(rows, *part.shape)
        for part in field.parts
    }
    if field.places is not None:
        assert counts is not None
        parts = field.gathered(parts, counts)
    return field.decode(parts)


def _witness_field(fields: Sequence[Field]) -> Field:
    """How the sketch of a sample's input is kept."""
    texts = any(field.places is not None for field in fields)
    return Field(WITNESS, TEXT if texts else (), "float32")


def _lines(content: Mapping[str, Any]) -> dict[str, str]:
    """What a store is, line by line."""
    lines = dict(content["identity"])
    lines |= {name: str(content[name]) for name in ("samples", "views")}
    for line in content["fields"]:
        field = Field(**line | {"shape": tuple(line["shape"])})
        lines[f"tensor {field.name!r}"] = str(field)
    return lines


def _short(text: str, other: str, *, width: int = 40) -> str:
    """A text, or if it is long the part where another one begins to differ."""
    if len(text) <= width:
        return text
    same = next((k for k, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), 0)
    start = max(0, same - width // 4)
    return f"{'…' if start else ''}{text[start : start + width]}…"


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _memory() -> float:
    """Bytes of this machine's memory."""
    if "SC_PHYS_PAGES" in os.sysconf_names:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return math.inf


def _lock(file: BinaryIO) -> bool | None:
    """Lock a file for this process, until it is closed; ``None`` where there are no locks."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def _same(file: BinaryIO, path: Path) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say in a sentence why a folder cannot be written."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"The teacher store {folder} cannot be written ({error.strerror or error}); free some "
            "space, or name a folder that can be."
        ) from error
