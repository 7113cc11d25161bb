"""What the networks are made of. Each module runs once per forward, so each can be tapped.

Every network is an ``nn.Sequential`` of named stages. Those for images end in ``pool``, the pooled
vector (batch, width), and ``classifier``, the logits.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

__all__ = ["Residual", "Shuffle", "Sum", "conv_bn", "initialise", "network"]


class Sum(nn.Module):
    """Adds two maps; a module, so that a map before its activation can be tapped."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """The sum."""
        return left + right


class Residual(nn.Module):
    """``activation(body(x) + shortcut(x))``; ``sum`` is the map before the activation."""

    def __init__(
        self,
        body: nn.Module,
        shortcut: nn.Module | None = None,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.sum = Sum()
        self.activation = nn.Identity() if activation is None else activation

    def forward(self, maps: Tensor) -> Tensor:
        """The block's output, of the shape that ``body`` makes."""
        output: Tensor = self.activation(self.sum(self.body(maps), self.shortcut(maps)))
        return output


class Shuffle(nn.Module):
    """Interleave the channels of ``groups`` groups."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, maps: Tensor) -> Tensor:
        """The same channels, those at one position of each group side by side."""
        count, channels, height, width = maps.shape
        grouped = maps.reshape(count, self.groups, channels // self.groups, height, width)
        return grouped.transpose(1, 2).reshape(maps.shape)

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"groups={self.groups}"


def conv_bn(
    before: int,
    after: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: bool = True,
) -> nn.Sequential:
    """Convolution without bias, batch normalisation and, unless told not to, ReLU."""
    layers: list[nn.Module] = [
        nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(after),
    ]
    return nn.Sequential(*layers, *([nn.ReLU()] if activation else []))


def network(stages: dict[str, nn.Module], width: int, num_classes: int) -> nn.Sequential:
    """The stages in order, global average pooling over ``width`` channels, and a classifier."""
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier = nn.Linear(width, num_classes)
    return nn.Sequential(OrderedDict(stages, pool=pool, classifier=classifier))


def initialise(net: nn.Sequential, *, classifier_std: float | None = None) -> nn.Sequential:
    """He initialisation over the fan-out for convolutions; batch norms start as identities.

    Args:
        net: what :func:`network` made.
        classifier_std: spread of the classifier's weights; its bias is then zero.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    classifier = net.get_submodule("classifier")
    if classifier_std is not None and isinstance(classifier, nn.Linear):
        with torch.no_grad():
            classifier.weight.normal_(0, classifier_std)
            classifier.bias.zero_()
    return net
