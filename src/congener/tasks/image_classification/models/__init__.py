"""Networks by name; each is a function of keyword arguments. ``__all__`` is the list.

Each function's documentation names its tap paths; where there is a last map before pooling, it is
the output of a module that runs once.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from congener.errors import CongenerError, RecipeError
from congener.naming import bind, resolve

from . import external
from .compact import mobilenetv2_half, shufflenetv1, shufflenetv2, vgg8, vgg13
from .resnet import (
    resnet8x4,
    resnet20,
    resnet32,
    resnet32x4,
    resnet50,
    resnet56,
    resnet110,
    wrn,
    wrn_16_1,
    wrn_16_2,
    wrn_40_1,
    wrn_40_2,
)
from .small import cnn1d, mlp, small_cnn

__all__ = [
    "cnn1d",
    "mlp",
    "mobilenetv2_half",
    "resnet8x4",
    "resnet20",
    "resnet32",
    "resnet32x4",
    "resnet50",
    "resnet56",
    "resnet110",
    "shufflenetv1",
    "shufflenetv2",
    "small_cnn",
    "vgg8",
    "vgg13",
    "wrn",
    "wrn_16_1",
    "wrn_16_2",
    "wrn_40_1",
    "wrn_40_2",
]


def build(name: str, arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> nn.Module:
    """The network ``name`` with ``arguments`` and, where it knows them, ``defaults``.

    Args:
        name: one of ``__all__``, or ``timm:NAME``, ``torchvision:NAME`` or ``transformers:KIND``.
        arguments: what the caller asks for.
        defaults: ``num_classes``, ``in_channels``, ``input_shape`` and ``in_features`` of the data.

    Raises:
        RecipeError: an unknown name or argument.
    """
    shape = defaults["input_shape"]
    library, colon, inner = name.partition(":")
    if colon:
        makers = {
            "timm": external.from_timm,
            "torchvision": external.from_torchvision,
            "transformers": external.from_transformers,
        }
        make = resolve("library of networks", library, makers)
        _check_images(name, shape)
        found: nn.Module = make(inner, arguments, defaults["num_classes"], shape)
        return found
    function = resolve("network", name, {known: globals()[known] for known in __all__})
    bound = bind("network", name, function, arguments, defaults=defaults)
    if "in_channels" in bound:
        _check_images(name, shape)
    try:
        network: nn.Module = function(**bound)
    except CongenerError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in bound.items())
        raise RecipeError(f"The network {name!r} cannot be built with {shown}: {error}.") from error
    return network


def _check_images(name: str, shape: Sequence[int]) -> None:
    if len(shape) != 3:
        raise RecipeError(
            f"The network {name!r} takes images (channels, height, width), but a sample of this "
            f"data has the shape {tuple(shape)}; take another network, such as 'mlp'."
        )
