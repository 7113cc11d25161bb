"""What detectors look through: a body that is read at several depths, and a pyramid upon it.

Whatever the body, the maps of the levels are the outputs of ``backbone.fpn.layer_blocks.0`` (the
finest) and so on, which is where losses of feature maps tap; further levels of an extra block are
``backbone.fpn.extra_blocks.p6`` and ``.p7``.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from congener.errors import CongenerError, RecipeError, did_you_mean
from congener.ops.checks import check_choice

__all__ = ["Maps", "Pyramid", "small_cnn", "timm_body", "torchvision_body"]


class Maps(nn.Module):
    """The maps of a body, from fine to coarse, by their numbers.

    Args:
        body: returns a mapping of maps, or a list of them.
        channels: of each map.
    """

    def __init__(self, body: nn.Module, channels: Sequence[int]) -> None:
        super().__init__()
        self.body = body
        self.out_channels = list(channels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The maps of images (batch, channels, height, width)."""
        return _by_level(self.body(images))


class Pyramid(nn.Module):
    """A feature pyramid (FPN, Lin et al., CVPR 2017) on the maps of a body.

    Args:
        maps: the body.
        channels: of every level.
        extra: two coarser levels, P6 and P7 of RetinaNet.
    """

    def __init__(self, maps: Maps, channels: int, *, extra: bool = False) -> None:
        super().__init__()
        self.body = maps.body
        block = LastLevelP6P7(channels, channels) if extra else None
        self.fpn = FeaturePyramidNetwork(maps.out_channels, channels, extra_blocks=block)
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The levels of images (batch, channels, height, width), by their names."""
        levels: dict[str, Tensor] = self.fpn(_by_level(self.body(images)))
        return levels


def _by_level(found: Mapping[str, Tensor] | Sequence[Tensor]) -> dict[str, Tensor]:
    """The maps of a body by their numbers, from fine to coarse."""
    maps = found.values() if isinstance(found, Mapping) else found
    return OrderedDict((str(level), each) for level, each in enumerate(maps))


def small_cnn(
    *, widths: Sequence[int] = (16, 32, 64, 64), levels: int = 2, norm: str = "group",
    blocks: int = 1,
) -> Maps:  # fmt: skip
    """Stages that halve the image, each with some further 3×3 convolutions; of the last, maps.

    Args:
        widths: channels of each stage; the first halves the image once, the last as often as there
            are stages.
        levels: so many of the last stages are read.
        norm: ``"group"``, of up to 8 channels, ``"batch"``, or ``"none"``.
        blocks: convolutions of a stage, the first of stride 2.
    """
    check_choice("norm", norm, ("group", "batch", "none"))
    if not (1 <= levels <= len(widths) and blocks >= 1 and all(w >= 1 for w in widths)):
        raise RecipeError(
            f"small_cnn has {len(widths)} stages (widths={list(widths)}) of blocks={blocks}, and "
            f"levels={levels} of them are read; expected 1 to {len(widths)} levels, and positive "
            "widths and blocks."
        )
    body = nn.Sequential(
        OrderedDict(
            (f"layer{number}", _stage(before, width, norm, blocks))
            for number, (before, width) in enumerate(
                zip((3, *widths[:-1]), widths, strict=True), start=1
            )
        )
    )
    first = len(widths) - levels + 1
    read = {f"layer{number}": str(number) for number in range(first, len(widths) + 1)}
    return Maps(IntermediateLayerGetter(body, read), widths[-levels:])


def _stage(before: int, width: int, norm: str, blocks: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(blocks):
        inner = before if number == 0 else width
        layers.append(nn.Conv2d(inner, width, 3, stride=1 + (number == 0), padding=1))
        if norm == "group":
            layers.append(nn.GroupNorm(max(1, width // 8), width))
        elif norm == "batch":
            layers.append(nn.BatchNorm2d(width))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def torchvision_body(
    name: str, *, levels: int = 3, norm: str = "batch", weights: str | None = None
) -> Maps:
    """A residual network of torchvision, read after its last stages.

    Args:
        name: such as ``resnet18``.
        levels: so many of the last stages are read.
        norm: ``"batch"``, or ``"frozen"``: statistics stay as they are, for published weights.
        weights: published weights by name, such as ``"DEFAULT"``; default: none.
    """
    known = [
        each for each in torchvision.models.list_models(module=torchvision.models)
        if "resne" in each
    ]  # fmt: skip
    if name not in known:
        raise RecipeError(
            f"torchvision has no residual network named {name!r}; {did_you_mean(name, known)} "
            f"Other bodies are timm:NAME. Known are: {', '.join(known)}."
        )
    check_choice("norm", norm, ("batch", "frozen"))
    if not 1 <= levels <= 4:
        raise RecipeError(f"levels={levels} of torchvision:{name}; expected 1 to 4, its stages.")
    layer = FrozenBatchNorm2d if norm == "frozen" else nn.BatchNorm2d
    try:
        network = torchvision.models.get_model(name, weights=weights, norm_layer=layer)
    except (KeyError, ValueError, OSError) as error:
        raise RecipeError(
            f"The weights {weights!r} of torchvision:{name} cannot be had ({error}); take "
            "'DEFAULT', for which torchvision needs the internet, or none."
        ) from error
    read = {f"layer{stage}": str(stage) for stage in range(5 - levels, 5)}
    last = network.fc.in_features  # of the last stage; each doubles the channels of that before
    widths = [last // 2 ** (4 - int(stage)) for stage in read.values()]
    return Maps(IntermediateLayerGetter(network, read), widths)


def timm_body(name: str, *, levels: int = 3, **arguments: Any) -> Maps:
    """A network of timm, read where its maps halve.

    Args:
        name: such as ``mobilenetv3_small_050``.
        levels: so many of the last maps are read.
        **arguments: of ``timm.create_model``, such as ``pretrained``.
    """
    try:
        import timm  # takes seconds, so only when asked for
    except ImportError as error:
        raise CongenerError(
            f"timm:{name} needs the package {error.name!r}; install it with: "
            'pip install "congener[detection]"'
        ) from error
    if not timm.is_model(name):
        raise RecipeError(
            f"timm has no network named {name!r}; {did_you_mean(name, timm.list_models())}"
        )
    try:
        network: Any = timm.create_model(name, features_only=True, **arguments)
        depth = len(network.feature_info.channels())
        if not 1 <= levels <= depth:
            raise ValueError(f"expected 1 to {depth}, where its maps halve")
        last = tuple(range(depth - levels, depth))
        network = timm.create_model(name, features_only=True, out_indices=last, **arguments)
    except (TypeError, RuntimeError, AttributeError, AssertionError, ValueError) as error:
        raise RecipeError(
            f"timm:{name} gives no maps of {levels} levels: {str(error).rstrip('.')}."
        ) from error
    return Maps(network, network.feature_info.channels())
