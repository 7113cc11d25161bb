"""Codes as packed bits: distances, and search in a binary index of faiss."""

from typing import Any

import faiss
import torch
import torch.nn.functional as F
from torch import Tensor

from congener.errors import DataError, ShapeError

__all__ = ["build_index", "hamming", "pack_codes", "search", "unpack_codes"]


def pack_codes(codes: Tensor) -> Tensor:
    """The bits of codes, eight to a byte: a bit is 1 where the code is above zero.

    Bit i of byte j is that of place 8 j + i, so bit 0 comes first; pad bits are 0.

    Args:
        codes: (..., bits), of any type.

    Returns:
        (..., ⌈bits / 8⌉), uint8.

    >>> pack_codes(torch.tensor([0.3, -0.9, 0.1, -1, -1, -1, -1, -1, 1.0]))
    tensor([5, 1], dtype=torch.uint8)
    """
    width = codes.shape[-1] + -codes.shape[-1] % 8
    bits = F.pad((codes > 0).to(torch.uint8), (0, width - codes.shape[-1]))
    shifts = torch.arange(8, dtype=torch.uint8, device=codes.device)
    return (bits.view(*codes.shape[:-1], width // 8, 8) << shifts).sum(-1, dtype=torch.uint8)


def unpack_codes(packed: Tensor, bits: int) -> Tensor:
    """The codes that :func:`pack_codes` packed, (..., bits): 1 and -1, float32.

    >>> unpack_codes(torch.tensor([5, 1], dtype=torch.uint8), 9)
    tensor([ 1., -1.,  1., -1., -1., -1., -1., -1.,  1.])
    """
    if not 0 <= packed.shape[-1] * 8 - bits < 8:
        raise ShapeError(f"{packed.shape[-1]} bytes hold no codes of {bits} bits; give theirs.")
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    ones = ((packed.unsqueeze(-1) >> places) & 1).flatten(-2)[..., :bits]
    return 2 * ones.float() - 1


def hamming(first: Tensor, second: Tensor) -> Tensor:
    """In how many bits each of some packed codes differs from each of others.

    It is (bits - ⟨a, b⟩) / 2 for codes a, b of 1 and -1.

    Args:
        first: (n, bytes), uint8.
        second: (m, bytes), of the same code length.

    Returns:
        (n, m), int64.

    Raises:
        ShapeError: codes of unlike lengths.
    """
    if first.shape[-1] != second.shape[-1]:
        raise ShapeError(
            f"Codes of {first.shape[-1]} and of {second.shape[-1]} bytes have no distance; they "
            "must be of one length."
        )
    numbers = torch.arange(256, device=first.device)
    ones = sum((numbers >> place) & 1 for place in range(8))
    distance = torch.zeros(len(first), len(second), dtype=torch.int64, device=first.device)
    for mine, theirs in zip(first.unbind(1), second.unbind(1), strict=True):
        distance += ones[(mine.unsqueeze(1) ^ theirs).long()]  # type: ignore[index]
    return distance


def build_index(packed: Tensor) -> Any:
    """A binary index of faiss over packed codes (items, bytes); a search looks at all of them."""
    index = faiss.IndexBinaryFlat(8 * packed.shape[1])
    index.add(packed.cpu().contiguous().numpy())
    return index


def search(index: Any, queries: Tensor, count: int = 10) -> tuple[Tensor, Tensor]:
    """The nearest codes of an index.

    Args:
        index: what :func:`build_index` gave.
        queries: packed codes, (queries, bytes).
        count: how many for each query; all, where there are fewer.

    Returns:
        Distances in bits and places, (queries, count) each, int64, the nearest first. Which of
        equally near codes come last into the list is faiss' choice.

    Raises:
        DataError: a code length that is not the index's, or a count below 1.
    """
    if 8 * queries.shape[-1] != index.d or count < 1:
        raise DataError(
            f"The index has codes of {index.d // 8} bytes; {count} neighbours of codes of "
            f"{queries.shape[-1]} bytes cannot be found in it."
        )
    asked = queries.cpu().contiguous().numpy()
    distances, places = index.search(asked, min(count, index.ntotal))
    return torch.from_numpy(distances).long(), torch.from_numpy(places)
