"""Networks that embed images, by name. ``__all__`` is the list.

Beside these, each network of :mod:`congener.tasks.image_classification.models` embeds, too: its
last layer then has one output for each dimension instead of each class.
"""

import itertools
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from congener.errors import RecipeError
from congener.naming import bind
from congener.tasks.image_classification import models as images
from congener.tasks.image_classification.models.blocks import conv_bn, initialise

__all__ = ["small_cnn"]

DIMS = 64
"""Of an embedding, where the recipe does not say; ours."""


def build(name: str, arguments: Mapping[str, Any], input_shape: Sequence[int]) -> nn.Module:
    """The network ``name``, whose output is an embedding of ``dims`` numbers.

    Raises:
        RecipeError: an unknown name or argument, or numbers that no network can have.
    """
    dims = arguments.get("dims", DIMS)
    if not isinstance(dims, int) or isinstance(dims, bool) or dims < 1:
        raise RecipeError(f"dims={dims!r} is not a number of dimensions; give {DIMS}, say.")
    defaults = {"in_channels": input_shape[0], "input_shape": tuple(input_shape)}
    if name in __all__:
        function = globals()[name]
        network: nn.Module = function(
            **bind("network", name, function, arguments, defaults=defaults | {"dims": dims})
        )
        return network
    given = {key: value for key, value in arguments.items() if key != "dims"}
    defaults |= {"num_classes": dims, "in_features": math.prod(input_shape)}
    return images.build(name, given, defaults)


def small_cnn(
    dims: int,
    input_shape: Sequence[int],
    widths: Sequence[int] = (32, 64, 128),
    convolutions: int = 2,
    norm: bool = True,
) -> nn.Module:
    """A 5×5 stem, then stages of ``convolutions`` 3×3 convolutions; each stage halves the map.

    The last map is embedded as a whole, so that the embedding knows where something is. At 32×32
    pixels: 410,848 parameters with 64 dimensions; 12,360 with 32 and
    ``widths=(8, 16, 16), convolutions=1``.

    Args:
        dims: of the embedding.
        input_shape: of one image, channels first.
        widths: channels of each stage.
        convolutions: of each stage after the stem.
        norm: whether convolutions are batch-normalised.

    Taps: ``layer1``, ``layer2``, …: the stages' outputs after ReLU; ``flatten``: the last of them
    as a vector; ``classifier``: the embedding, which has any length.
    """
    channels, height, width = input_shape
    if not widths or min(*widths, convolutions) < 1:
        raise RecipeError(
            f"widths={list(widths)} and convolutions={convolutions}: expected a stage or more, "
            "each of a channel and a convolution or more."
        )

    def convolved(before: int, after: int, kernel: int, stride: int = 1) -> nn.Module:
        if norm:
            return conv_bn(before, after, kernel, stride=stride)
        convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2)
        return nn.Sequential(convolution, nn.ReLU())

    stages: OrderedDict[str, nn.Module] = OrderedDict(layer1=convolved(channels, widths[0], 5, 2))
    for number, (before, after) in enumerate(itertools.pairwise(widths), start=2):
        more = [convolved(after, after, 3) for _ in range(convolutions - 1)]
        stages[f"layer{number}"] = nn.Sequential(convolved(before, after, 3, 2), *more)
    for _ in widths:
        height, width = -(-height // 2), -(-width // 2)
    stages["flatten"] = nn.Flatten()
    stages["classifier"] = nn.Linear(widths[-1] * height * width, dims)
    return initialise(nn.Sequential(stages))
