"""Emoji and their names: pictures and text of the same things."""

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from congener.errors import DataError
from congener.tasks.retrieval.data.emoji import read_emoji

from .splits import Division, Pairs, Splits, as_bytes, divide

__all__ = ["emoji_names"]


def emoji_names(
    root: str | Path = "data/emoji",
    *,
    vendors: Sequence[str] = ("google",),
    size: int = 32,
    queries: int = 506,
    **division: Unpack[Division],
) -> Splits:
    """Emoji and their names in lower case; two are alike if they are of one category.

    1,906 emoji of nine categories, without Component: 1,400 to learn from and to search, and 506
    that ask, at random but always the same.

    Args:
        root: folder of the packages ``emoji-datasource-VENDOR-*.tgz``, as npm packs them.
        vendors: whose pictures; with several, an emoji makes a pair with each, on the same side.
        size: height and width of the pictures.
        queries: how many emoji ask.
        **division: labelled, holdout; see :func:`divide`.

    Raises:
        DataError: packages that are missing or damaged, with the command that fetches them.
    """
    found = read_emoji(root, size=size, vendors=tuple(vendors))
    kept = [place for place, name in enumerate(found.categories) if name != "Component"]
    names = [name for name in found.categories if name != "Component"]
    members = torch.tensor([int(place) in kept for place in found.category]).nonzero().flatten()
    if not 1 <= queries < len(members) - 1:
        raise DataError(
            f"queries={queries} of {len(members)} emoji leaves nothing to learn from or to ask; "
            "take a smaller positive number."
        )
    order = torch.randperm(len(members), generator=torch.Generator().manual_seed(0))
    members = members[order]
    texts = as_bytes([name.lower() for name in found.names])

    def pairs(rows: Tensor) -> Pairs:
        each = rows.repeat_interleave(len(vendors))
        pictures = torch.stack([found.images[vendor][rows] for vendor in vendors], 1)
        labels = torch.tensor([kept.index(int(place)) for place in found.category[each]])
        return Pairs(pictures.flatten(0, 1), texts[each], labels)

    train, asked = pairs(members[queries:]), pairs(members[:queries])
    return divide("the emoji", train, asked, label_names=names, **division)
