"""Networks of torchvision and timm by name, fitted to a task's classes and channels."""

from collections.abc import Mapping
from typing import Any

import torchvision
from torch import nn

from congener.errors import CongenerError, RecipeError, did_you_mean

__all__ = ["from_timm", "from_torchvision"]


def from_timm(
    name: str, arguments: Mapping[str, Any], num_classes: int, channels: int
) -> nn.Module:
    """``timm.create_model``; random weights unless ``pretrained=True`` is given."""
    try:
        import timm  # takes seconds, so only when asked for
    except ImportError as error:
        raise CongenerError(
            f"timm:{name} needs the package {error.name!r}; install it with: "
            'pip install "congener[image]"'
        ) from error
    if not timm.is_model(name):
        known = timm.list_models()
        raise RecipeError(f"timm has no network named {name!r}; {did_you_mean(name, known)}")
    defaults = {"num_classes": num_classes, "in_chans": channels}
    try:
        network: nn.Module = timm.create_model(name, **(defaults | dict(arguments)))
    except TypeError as error:
        raise RecipeError(f"timm:{name} does not take these arguments: {error}.") from error
    return network


def from_torchvision(
    name: str, arguments: Mapping[str, Any], num_classes: int, channels: int
) -> nn.Module:
    """``torchvision.models.get_model``; ``pretrained=True`` takes its best published weights.

    torchvision knows neither another number of input channels nor, with published weights, another
    number of classes: the first convolution or the last linear layer is then made anew.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise RecipeError(
            f"torchvision has no classifier named {name!r}; {did_you_mean(name, known)}"
        )
    given = dict(arguments)
    classes = given.pop("num_classes", num_classes)
    if given.pop("pretrained", False):
        given.setdefault("weights", "DEFAULT")
    if given.get("weights") is None:
        given["num_classes"] = classes
    try:
        network: nn.Module = torchvision.models.get_model(name, **given)
    except TypeError as error:
        raise RecipeError(f"torchvision:{name} does not take these arguments: {error}.") from error
    return _fit(network, name, classes, channels)


def _fit(network: nn.Module, name: str, classes: int, channels: int) -> nn.Module:
    convolutions = [(p, m) for p, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    linears = [(p, m) for p, m in network.named_modules() if isinstance(m, nn.Linear)]
    if convolutions and convolutions[0][1].in_channels != channels:
        path, old = convolutions[0]
        new = nn.Conv2d(
            channels,
            old.out_channels,
            old.kernel_size,  # type: ignore[arg-type]
            old.stride,  # type: ignore[arg-type]
            old.padding,  # type: ignore[arg-type]
            bias=old.bias is not None,
        )
        network.set_submodule(path, new)
    if linears and linears[-1][1].out_features != classes:
        path, head = linears[-1]
        if head.out_features != 1000:
            raise RecipeError(
                f"The last linear layer of torchvision:{name} has {head.out_features} outputs, "
                f"so its classifier cannot be refitted to {classes} classes; leave weights out."
            )
        network.set_submodule(path, nn.Linear(head.in_features, classes))
    return network
