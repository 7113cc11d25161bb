"""Networks of torchvision, timm and transformers by name, fitted to a task's images."""

from collections.abc import Mapping, Sequence
from typing import Any

import torchvision
from torch import nn

from congener.errors import CongenerError, RecipeError, did_you_mean
from congener.tasks.transformers_kinds import build_kind

__all__ = ["from_timm", "from_torchvision", "from_transformers"]


def from_timm(
    name: str, arguments: Mapping[str, Any], num_classes: int, shape: Sequence[int]
) -> nn.Module:
    """``timm.create_model``; random weights unless ``pretrained=True`` is given.

    A network that is built for one size of images is built for the task's.
    """
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
    channels, *size = shape
    defaults: dict[str, Any] = {"num_classes": num_classes, "in_chans": channels}
    built_for = timm.get_pretrained_cfg(name)
    if built_for is not None and built_for.fixed_input_size:
        defaults["img_size"] = tuple(size)
    try:
        network: nn.Module = timm.create_model(name, **(defaults | dict(arguments)))
    except TypeError as error:
        raise RecipeError(f"timm:{name} does not take these arguments: {error}.") from error
    return network


def from_torchvision(
    name: str, arguments: Mapping[str, Any], num_classes: int, shape: Sequence[int]
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
        if name.startswith("vit_"):
            given.setdefault("image_size", shape[1])
    try:
        network: nn.Module = torchvision.models.get_model(name, **given)
    except TypeError as error:
        raise RecipeError(f"torchvision:{name} does not take these arguments: {error}.") from error
    if given.get("weights") is not None:
        # What timm's networks carry: see congener.teachers.bridge.
        seen = torchvision.models.get_model_weights(name)[_weights(given["weights"])].transforms()
        side = seen.crop_size[0]
        carried = {"mean": seen.mean, "std": seen.std, "input_size": (3, side, side)}
        network.pretrained_cfg = carried  # type: ignore[assignment]
    return _fit(network, name, classes, shape[0])


def from_transformers(
    name: str, arguments: Mapping[str, Any], num_classes: int, shape: Sequence[int]
) -> nn.Module:
    """An image classifier of transformers by its kind (``vit``), with random weights.

    The arguments are those of its configuration, such as ``hidden_size``.
    """
    try:
        import transformers  # noqa: F401  (a part of it may be there without it)
        from transformers.models.auto import modeling_auto  # takes seconds, so only when asked for
    except ImportError as error:
        raise CongenerError(
            f"transformers:{name} needs the package {error.name!r}; install it with: "
            'pip install "congener[transformers]"'
        ) from error
    channels, *size = shape
    fitting = {"num_channels": channels, "image_size": size[0] if len({*size}) == 1 else size}

    def known_of(options: Mapping[str, Any]) -> Mapping[str, Any]:
        known = {key: value for key, value in fitting.items() if key in options}
        return {"num_labels": num_classes} | known

    names = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    return build_kind("image classifier", name, names, arguments, known_of)


def _weights(given: Any) -> str:
    """The name of published weights: a name, ``Family.NAME``, or a member of the family."""
    return str(getattr(given, "name", given)).rpartition(".")[2]


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
