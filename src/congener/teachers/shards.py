"""One file of a teacher store: rows of some samples, each checked when it is first read.

A file is in the safetensors format, so anyone can read it. All of its header is known beforehand,
so a header that differs by a bit is refused. The rows have a CRC-32 for every 16 KiB or so, which
starts from the file's and the tensor's name, so that the right bytes in the wrong place are refused
too.
"""

import json
import mmap
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from congener.errors import DataError
from congener.teachers.formats import Part

__all__ = ["Layout", "ShardFile"]

BLOCK = 16 << 10
ADVISED = hasattr(mmap, "MADV_RANDOM")

Bytes = NDArray[np.uint8]
Places = NDArray[np.int64]


class Layout:
    """Where things stand in a file of so many rows.

    Args:
        parts: what each row has.
        rows: how many rows there are.
        facts: which file of which store it is.
    """

    def __init__(self, parts: Sequence[Part], rows: int, facts: Mapping[str, str]) -> None:
        self.parts, self.rows, self.facts = {part.name: part for part in parts}, rows, dict(facts)
        self.block_rows = {part.name: max(1, BLOCK // max(1, part.nbytes)) for part in parts}
        entries: dict[str, Any] = {"__metadata__": self.facts}
        self.places: dict[str, tuple[int, int]] = {}
        end = 0
        for name, kind, shape, size in self._tensors():
            start, end = end, end + size
            entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
            self.places[name] = (start, end)
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.header = len(text).to_bytes(8, "little") + text
        self.size = len(self.header) + end

    def _tensors(self) -> Iterator[tuple[str, str, list[int], int]]:
        """Widest numbers first, so that all are aligned."""
        for name in self.parts:
            blocks = self.blocks(name)
            yield checksums_of(name), "I64", [blocks], 8 * blocks
        for part in sorted(self.parts.values(), key=lambda part: -part.dtype.itemsize):
            yield part.name, part.kind, [self.rows, *part.shape], self.rows * part.nbytes

    def blocks(self, name: str) -> int:
        """Number of blocks that have a checksum."""
        return -(-self.rows // self.block_rows[name])

    def checksum(self, name: str, rows: Bytes, block: int) -> int:
        """Of one block of the rows of a part."""
        count = self.block_rows[name]
        start = zlib.crc32(f"{self._label} {name} {block}".encode())
        return zlib.crc32(rows[block * count : (block + 1) * count].data, start)

    @cached_property
    def _label(self) -> str:
        return json.dumps(self.facts)

    def write(self, file: BinaryIO, tensors: Mapping[str, Tensor]) -> None:
        """Write the parts, each (rows, …), as a whole file."""
        rows = {name: _bytes(tensors[name], part) for name, part in self.parts.items()}
        found = {
            checksums_of(name): np.array(
                [self.checksum(name, rows[name], block) for block in range(self.blocks(name))],
                dtype=np.int64,
            )
            for name in rows
        }
        file.write(self.header)
        for name, (start, _) in self.places.items():
            whole = (rows | found)[name].reshape(-1).view(np.uint8)
            _append(file, whole, len(self.header) + start)


class ShardFile:
    """A file that is open for reading.

    Args:
        path: the file.
        layout: what it must hold.
        forgotten: whether the memory may not hold all that was read, for want of room.

    Raises:
        DataError: a file that is missing, of another size, damaged in its header, or another one.
    """

    def __init__(self, path: Path, layout: Layout, *, forgotten: bool = False) -> None:
        self.path, self.layout, self.forgotten = path, layout, forgotten
        try:
            with path.open("rb") as file:
                self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError as error:
            raise DataError(
                f"{path} is missing; run `congener cache build` again: it builds what is missing."
            ) from error
        except (OSError, ValueError) as error:  # of an empty file
            raise DataError(f"{path} cannot be read ({error}); {self._way_out}") from error
        self._check()
        start = len(layout.header)
        self._starts = {name: start + place for name, (place, _) in layout.places.items()}
        self._checksums = {
            name: np.frombuffer(
                self._mapped, np.int64, layout.blocks(name), self._starts[checksums_of(name)]
            ).copy()
            for name in layout.parts
        }
        if ADVISED:
            self._mapped.madvise(mmap.MADV_RANDOM)  # no reading of what lies behind a row
        self._rows: dict[str, Bytes] = {
            name: np.ndarray((layout.rows, part.nbytes), np.uint8, self._mapped, self._starts[name])
            for name, part in layout.parts.items()
        }
        self._unseen = {name: np.ones(layout.blocks(name), dtype=bool) for name in layout.parts}
        self._whole = dict.fromkeys(layout.parts, False)

    def rows(self, name: str, places: Places) -> Bytes:
        """All rows of a part, (rows, bytes), of which those at some places are now sound.

        Raises:
            DataError: a damaged block.
        """
        if self.forgotten:
            self._fetch(name, places.tolist(), 1)
        if not self._whole[name]:
            blocks = places // self.layout.block_rows[name]
            unseen = blocks[self._unseen[name][blocks]]
            if len(unseen):
                self._see(name, np.unique(unseen))
        return self._rows[name]

    def verify(self) -> None:
        """Check every block.

        Raises:
            DataError: a damaged one.
        """
        for name in self._rows:
            for block in range(self.layout.blocks(name)):
                self._see(name, np.array([block]))

    def _see(self, name: str, blocks: Places) -> None:
        """Check blocks that were not read before."""
        layout, rows, wanted = self.layout, self._rows[name], self._checksums[name]
        self._fetch(name, blocks.tolist(), layout.block_rows[name])
        for block in blocks.tolist():
            if layout.checksum(name, rows, block) != wanted[block]:
                first = block * layout.block_rows[name]
                last = min(layout.rows, first + layout.block_rows[name]) - 1
                raise DataError(
                    f"{self.path} is damaged: {name!r} of its rows {first} to {last} is not what "
                    f"was written; {self._way_out}"
                )
        self._unseen[name][blocks] = False
        self._whole[name] = not self._unseen[name].any()

    def _fetch(self, name: str, places: list[int], rows: int) -> None:
        """Have the system read pieces of so many rows side by side, not one after the other."""
        size = rows * self.layout.parts[name].nbytes
        for place in places if ADVISED else ():
            start = self._starts[name] + place * size
            page = start // mmap.PAGESIZE * mmap.PAGESIZE
            length = min(start + size, len(self._mapped)) - page
            self._mapped.madvise(mmap.MADV_WILLNEED, page, length)

    def _check(self) -> None:
        """Refuse what is not the whole of this very file."""
        expected, came = self.layout.size, len(self._mapped)
        header = self._mapped[: len(self.layout.header)]
        if header == self.layout.header and came == expected:
            return
        if header == self.layout.header or came < len(self.layout.header):
            kind = "truncated" if came < expected else "too long"
            raise DataError(
                f"{self.path} is {kind}: expected {expected} bytes, came {came}; {self._way_out}"
            )
        facts = _facts(self._mapped)
        for name, fact in self.layout.facts.items():
            if facts is not None and facts.get(name) != fact:
                raise DataError(
                    f"{self.path} is not the file that belongs there: its {name} is "
                    f"{facts.get(name)} instead of {fact}; {self._way_out}"
                )
        raise DataError(f"{self.path} is damaged in its header; {self._way_out}")

    @property
    def _way_out(self) -> str:
        return "remove that file and run `congener cache build` again: only it is rebuilt."


def checksums_of(name: str) -> str:
    """What the checksums of a part are called."""
    return f"{name} checksums"


def _bytes(value: Tensor, part: Part) -> Bytes:
    assert value.shape[1:] == part.shape
    assert value.dtype == part.dtype
    flat = value.detach().cpu().contiguous().reshape(len(value), -1)
    found: Bytes = flat.view(torch.uint8).numpy()
    return found


def _append(file: BinaryIO, whole: Bytes, end: int) -> None:
    """Append to a file of a size, with holes for long runs of 0: of a text without an answer."""
    for start in range(0, len(whole), BLOCK):
        piece = whole[start : start + BLOCK]
        end += len(piece)
        if piece.any():
            file.write(piece.data)
        else:
            file.truncate(end)


def _facts(mapped: mmap.mmap) -> dict[str, Any] | None:
    """Which file of which store a header says that it is, or nothing."""
    length = int.from_bytes(mapped[:8], "little")
    try:
        facts = json.loads(mapped[8 : 8 + length])["__metadata__"]
    except (ValueError, KeyError, TypeError):
        return None
    return facts if isinstance(facts, dict) else None
