"""Students cut from their teacher: an encoder without some of its layers."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from congener.errors import RecipeError

__all__ = ["keep_layers"]


def keep_layers(encoder: nn.Module, layers: int | Sequence[int]) -> None:
    """Leave out all but some layers of an encoder of transformers, in place.

    Args:
        encoder: has its layers in one list, and their number in its configuration.
        layers: which to keep, in this order, or how many of the first.

    Raises:
        RecipeError: layers that there are not, or that cannot be told apart.
    """
    config: Any = getattr(encoder, "config", None)
    count = getattr(config, "num_hidden_layers", None)
    lists = [
        (path, module)
        for path, module in encoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if len(lists) != 1:
        raise RecipeError(
            f"The layers of a {type(encoder).__name__} cannot be told apart; leave layers out."
        )
    kept = list(range(layers)) if isinstance(layers, int) else list(layers)
    if not kept or len({*kept}) < len(kept) or not {*kept} <= {*range(count or 0)}:
        raise RecipeError(
            f"layers={layers!r} of an encoder of {count}: give a number from 1 to {count}, or "
            f"different ones among 0 to {(count or 0) - 1}."
        )
    path, blocks = lists[0]
    encoder.set_submodule(path, nn.ModuleList(blocks[place] for place in kept))
    config.num_hidden_layers = len(kept)
