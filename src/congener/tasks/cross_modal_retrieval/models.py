"""The coupled network: an encoder for each of two modalities, by name."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from congener.errors import CongenerError, RecipeError
from congener.naming import bind, resolve

from . import encoders
from .data.splits import Kind

__all__ = ["Coupled", "build"]

TAKES: dict[str, tuple[Kind, ...]] = {
    "cnn": ("image",),
    "mlp": ("vector", "image"),
    "ngrams": ("text",),
    "sentence": ("text",),
    "sound": ("sound",),
}
"""What kinds of items each encoder is for."""


class Coupled(nn.Module):
    """Two encoders into one space of codes, one for each modality.

    Taps: ``first``, ``second``: the codes of each modality, (batch, bits); and within them those of
    the encoders, such as ``first.pool``.

    Args:
        first: gives codes (batch, bits) in (-1, 1), as by tanh.
        second: gives as many bits of the other modality.
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The codes of both modalities, (batch, 2, bits)."""
        return torch.stack((self.first(first), self.second(second)), 1)


def build(
    name: str, arguments: Mapping[str, Any], modalities: tuple[Mapping[str, Any], Mapping[str, Any]]
) -> nn.Module:
    """The network ``name``, which is ``coupled``, for data of these modalities.

    Args:
        name: of the network.
        arguments: ``bits`` of a code, and of each modality, ``first`` and ``second``, the encoder:
            its name in :mod:`.encoders`, or a mapping with its ``name`` and arguments.
        modalities: what the data says of each: its ``kind``, and arguments that encoders may take.

    Raises:
        RecipeError: an unknown name or argument, of the network or of one of its encoders.
    """

    def coupled(
        bits: int, first: str | Mapping[str, Any], second: str | Mapping[str, Any]
    ) -> nn.Module:
        if bits < 1:
            raise RecipeError(f"bits={bits}: a code has one bit or more.")
        return Coupled(
            _encoder("first", first, modalities[0], bits),
            _encoder("second", second, modalities[1], bits),
        )

    function = resolve("network", name, {"coupled": coupled})
    network: nn.Module = function(**bind("network", name, function, arguments))
    return network


def _encoder(
    side: str, described: str | Mapping[str, Any], modality: Mapping[str, Any], bits: int
) -> nn.Module:
    given = {"name": described} if isinstance(described, str) else dict(described)
    name, kind = given.pop("name", None), modality["kind"]
    if not isinstance(name, str):
        raise RecipeError(f"`{side}` names no encoder; expected {side}: {{name: ..., ...}}.")
    function = resolve("encoder", name, {known: getattr(encoders, known) for known in TAKES})
    if kind not in TAKES[name]:
        fitting = [repr(known) for known, kinds in TAKES.items() if kind in kinds]
        raise RecipeError(
            f"The encoder {name!r} takes items of the kind {TAKES[name][0]!r}, but the {side} "
            f"modality of this data is of the kind {kind!r}; take {' or '.join(fitting)}."
        )
    if "bits" in given:
        raise RecipeError(
            f"The encoder {name!r} has as many bits as the network; write `bits` beside `{side}`."
        )
    bound = bind("encoder", name, function, given, defaults={**modality, "bits": bits})
    try:
        encoder: nn.Module = function(**bound)
    except CongenerError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in bound.items())
        raise RecipeError(f"The encoder {name!r} cannot be built with {shown}: {error}.") from error
    return encoder
