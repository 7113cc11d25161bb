"""Identities that are easy to tell apart: patterns in noise, each in two cameras."""

from typing import Any

import torch

from congener.tasks.retrieval import Retrieval, Splits, data

__all__ = ["arrays", "splits", "task"]


def arrays(
    identities: int = 30, train: int = 20, side: int = 8, noise: float = 0.1
) -> dict[str, Any]:
    """The arguments of :func:`congener.tasks.retrieval.data.tensors`."""
    generator = torch.Generator().manual_seed(4)
    patterns = torch.rand(identities, 3, side, side, generator=generator)
    both = patterns.repeat_interleave(2, 0)
    both = both + noise * torch.randn(both.shape, generator=generator)
    pixels = (both.clamp(0, 1) * 255).to(torch.uint8)
    labels, cameras = torch.arange(2 * identities) // 2, torch.arange(2 * identities) % 2
    return {
        f"{part}_{name}": column[rows]
        for part, rows in (("train", slice(0, 2 * train)), ("test", slice(2 * train, None)))
        for name, column in (("images", pixels), ("labels", labels), ("cameras", cameras))
    }


def splits(**options: Any) -> Splits:
    return data.tensors(**arrays() | options)


def task(data_options: dict[str, Any] | None = None, **options: Any) -> Retrieval:
    return Retrieval(splits(**(data_options or {})), **options)
