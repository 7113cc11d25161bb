"""A teacher that sees images as it was trained to, whatever the student sees.

Networks from elsewhere were trained on images of another mean, deviation and size than the data set
at hand is given in. The bridge undoes the one preprocessing and does the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from congener.errors import RecipeError, ShapeError

__all__ = ["Bridge", "Preprocessing", "bridge", "own_preprocessing"]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How a network wants its images.

    Args:
        mean: of each channel, of values in 0 to 1; what is subtracted.
        std: of each channel; what is divided by after that.
        size: height and width, one number where they are equal; ``None``: as they come.

    Raises:
        RecipeError: not one positive deviation for each mean, or no positive size.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # a key that a recipe misspells

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | int | None = None

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.std) > 0 or not all(std > 0 for std in self.std):
            raise RecipeError(
                f"A preprocessing needs one mean and one positive std for each channel, not "
                f"{list(self.mean)} and {list(self.std)}."
            )
        if self.sides is not None and not all(side > 0 for side in self.sides):
            raise RecipeError(f"The size of a preprocessing must be positive, not {self.size}.")

    @property
    def sides(self) -> tuple[int, int] | None:
        """Height and width."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


class Bridge(nn.Module):
    """A network behind the change from one preprocessing to another.

    Taps go by the paths of the network inside.

    Args:
        network: the network inside; it gets images as ``own`` says.
        given: how the images come.
        own: how the network wants them; with three channels where they come with one, each is a
            copy of it.

    Raises:
        RecipeError: channels that do not fit.

    >>> images = torch.rand(2, 1, 8, 8)
    >>> given, own = Preprocessing((0.0,), (1.0,)), Preprocessing((0.5,) * 3, (0.25,) * 3, (4, 4))
    >>> Bridge(nn.Identity(), given, own)(images).shape
    torch.Size([2, 3, 4, 4])
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, given: Preprocessing, own: Preprocessing) -> None:
        super().__init__()
        channels, wanted = len(given.mean), len(own.mean)
        if channels not in (1, wanted):
            raise RecipeError(
                f"The teacher's preprocessing has {wanted} channels but the images have "
                f"{channels}; give one mean and std for each channel, or three for grey images."
            )
        self._bridged = network
        self.given, self.own = given, own
        mean, std, own_mean, own_std = (
            torch.tensor(values, dtype=torch.float64)
            for values in (given.mean, given.std, own.mean, own.std)
        )
        scale, shift = std / own_std, (mean - own_mean) / own_std
        self.register_buffer("scale", scale.float().view(-1, 1, 1))
        self.register_buffer("shift", shift.float().view(-1, 1, 1))
        equal = bool((scale == 1).all() and (shift == 0).all()) and channels == wanted
        self._recolours = not equal

    def forward(self, images: Tensor) -> Any:
        """The network's answer to the images, (batch, channels, height, width)."""
        if images.dim() != 4 or images.shape[1] != len(self.given.mean):
            raise ShapeError(
                f"The images {tuple(images.shape)} must be (batch, {len(self.given.mean)}, height, "
                "width) for the preprocessing that the data set has; name its mean and std."
            )
        size = self.own.sides
        if size is not None and tuple(images.shape[2:]) != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        if self._recolours:
            images = images * self.scale.to(images.dtype) + self.shift.to(images.dtype)
        return self._bridged(images)

    def extra_repr(self) -> str:
        """Name both preprocessings."""
        return f"given={self.given}, own={self.own}"


def bridge(
    network: nn.Module,
    given: tuple[Sequence[float], Sequence[float]] | None,
    wanted: Preprocessing | str,
) -> nn.Module:
    """The network behind the preprocessing that it wants; itself where nothing would change.

    Args:
        network: any network of images.
        given: mean and std that the task normalises by; ``None``: not known.
        wanted: a preprocessing, or ``"own"``, what the network carries.

    Raises:
        RecipeError: a network that carries none, or a task that knows none.
    """
    own = own_preprocessing(network) if isinstance(wanted, str) else wanted
    if own is None:
        raise RecipeError(
            f"{type(network).__name__} carries no preprocessing of its own; write it out, as in "
            "preprocessing: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], size: 224}."
        )
    if given is None:
        raise RecipeError(
            "The data do not say by which mean and std their images are normalised, so the "
            "teacher's preprocessing cannot take their place; name them with `normalisation` "
            "where the task is made."
        )
    mean, std = (tuple(map(float, values)) for values in given)
    have = Preprocessing(mean, std)
    return network if (have.mean, have.std, None) == (own.mean, own.std, own.size) else Bridge(
        network, have, own
    )  # fmt: skip


def own_preprocessing(network: nn.Module) -> Preprocessing | None:
    """What a network of timm (``pretrained_cfg``), or one built by name with weights, carries."""
    carried = getattr(network, "pretrained_cfg", None)
    if not isinstance(carried, dict) or "mean" not in carried or "std" not in carried:
        return None
    shape = carried.get("input_size")
    size = None if shape is None else (int(shape[-2]), int(shape[-1]))
    # A network built for another size takes that one.
    built = getattr(getattr(network, "patch_embed", None), "img_size", None)
    size = (int(built[0]), int(built[1])) if isinstance(built, tuple) and size else size
    mean, std = (tuple(map(float, carried[key])) for key in ("mean", "std"))
    return Preprocessing(mean, std, size)
