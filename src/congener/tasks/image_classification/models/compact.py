"""VGG, MobileNetV2 and ShuffleNets for 32-pixel images, as the CRD benchmark has them.

Simonyan and Zisserman, "Very Deep Convolutional Networks" (ICLR 2015); Sandler et al.,
"MobileNetV2" (CVPR 2018); Zhang et al., "ShuffleNet" (CVPR 2018); Ma et al., "ShuffleNet V2" (ECCV
2018); Tian et al., "Contrastive Representation Distillation" (ICLR 2020).
"""

import torch
from torch import Tensor, nn

from .blocks import Residual, Shuffle, conv_bn, initialise, network

__all__ = ["mobilenetv2_half", "shufflenetv1", "shufflenetv2", "vgg8", "vgg13"]


def _vgg(convolutions: int, num_classes: int, in_channels: int) -> nn.Module:
    stages: dict[str, nn.Module] = {}
    before = in_channels
    for number, width in enumerate((64, 128, 256, 512, 512), start=1):
        layers: list[nn.Module] = []
        for _ in range(convolutions):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        stages[f"block{number}"] = nn.Sequential(*layers)
        if number < 4:
            stages[f"pool{number}"] = nn.MaxPool2d(2)
    return initialise(network(stages, before, num_classes), classifier_std=0.01)


def vgg8(num_classes: int, in_channels: int = 3) -> nn.Module:
    """VGG of 5 stages with one convolution each, batch-normalised, without hidden layers.

    Taps: ``block1`` … ``block5``: the stages' outputs after ReLU and before max pooling, the last
    of them the last map, 4×4 for 32 pixels; ``pool``: the pooled vector; ``classifier``.
    """
    return _vgg(1, num_classes, in_channels)


def vgg13(num_classes: int, in_channels: int = 3) -> nn.Module:
    """VGG of 5 stages with two convolutions each. Taps: see :func:`vgg8`."""
    return _vgg(2, num_classes, in_channels)


def _inverted(before: int, after: int, stride: int, expansion: int) -> nn.Module:
    middle = before * expansion
    body = nn.Sequential(
        conv_bn(before, middle, 1),
        conv_bn(middle, middle, 3, stride=stride, groups=middle),
        conv_bn(middle, after, 1, activation=False),
    )
    return Residual(body) if stride == 1 and before == after else body


def mobilenetv2_half(num_classes: int, in_channels: int = 3) -> nn.Module:
    """MobileNetV2 at half width, with strides for 32 pixels and ReLU in place of ReLU6.

    Taps: ``stem``; ``layer1`` … ``layer4``: the outputs at 16, 8, 4 and 2 pixels, linear (no ReLU);
    ``head``: the last map, after ReLU, (batch, 1280, 2, 2); ``pool``; ``classifier``.
    """
    # For each tap: (expansion, width, blocks, stride) of the groups of blocks before it.
    plan = (
        ((1, 8, 1, 1), (6, 12, 2, 1)),
        ((6, 16, 3, 2),),
        ((6, 32, 4, 2), (6, 48, 3, 1)),
        ((6, 80, 3, 2), (6, 160, 1, 1)),
    )
    stages: dict[str, nn.Module] = {"stem": conv_bn(in_channels, 16, 3, stride=2)}
    before = 16
    for number, groups in enumerate(plan, start=1):
        blocks = []
        for expansion, width, count, stride in groups:
            for position in range(count):
                blocks.append(_inverted(before, width, 1 if position else stride, expansion))
                before = width
        stages[f"layer{number}"] = nn.Sequential(*blocks)
    stages["head"] = conv_bn(before, 1280, 1)
    return initialise(network(stages, 1280, num_classes), classifier_std=0.01)


class _Beside(nn.Module):
    """Two branches over the same map, their channels side by side, then ``after``."""

    def __init__(self, left: nn.Module, right: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.left, self.right, self.after = left, right, after

    def forward(self, maps: Tensor) -> Tensor:
        """The joined map."""
        output: Tensor = self.after(torch.cat([self.left(maps), self.right(maps)], 1))
        return output


class _HalfBeside(nn.Module):
    """One half of the channels as it is, the other through ``body``, then mixed."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shuffle = Shuffle(2)

    def forward(self, maps: Tensor) -> Tensor:
        """A map of the same shape."""
        kept, changed = maps.chunk(2, 1)
        output: Tensor = self.shuffle(torch.cat([kept, self.body(changed)], 1))
        return output


def _grouped(before: int, after: int, stride: int, groups: int) -> nn.Module:
    joins = stride == 2
    added = after - before if joins else after
    middle = added // 4
    first_groups = 1 if before == 24 else groups
    body = nn.Sequential(
        conv_bn(before, middle, 1, groups=first_groups),
        Shuffle(first_groups),
        conv_bn(middle, middle, 3, stride=stride, groups=middle),
        conv_bn(middle, added, 1, groups=groups, activation=False),
    )
    if not joins:
        return Residual(body, activation=nn.ReLU())
    return _Beside(body, nn.AvgPool2d(3, stride=2, padding=1), nn.ReLU())


def shufflenetv1(num_classes: int, in_channels: int = 3) -> nn.Module:
    """ShuffleNet with 3 groups and a 1×1 stem, for 32 pixels.

    Taps: ``stem``; ``layer1``, ``layer2``, ``layer3``: the stages' outputs after ReLU, the last of
    them the last map, (batch, 960, 4, 4); ``pool``; ``classifier``.
    """
    stages: dict[str, nn.Module] = {"stem": conv_bn(in_channels, 24, 1)}
    before = 24
    for number, (width, blocks) in enumerate(((240, 4), (480, 8), (960, 4)), start=1):
        first = _grouped(before, width, 2, 3)
        more = [_grouped(width, width, 1, 3) for _ in range(blocks - 1)]
        stages[f"layer{number}"] = nn.Sequential(first, *more)
        before = width
    return network(stages, before, num_classes)


def _down(before: int, after: int) -> nn.Module:
    half = after // 2
    left = nn.Sequential(
        conv_bn(before, before, 3, stride=2, groups=before, activation=False),
        conv_bn(before, half, 1),
    )
    right = nn.Sequential(
        conv_bn(before, half, 1),
        conv_bn(half, half, 3, stride=2, groups=half, activation=False),
        conv_bn(half, half, 1),
    )
    return _Beside(left, right, Shuffle(2))


def _split(width: int) -> nn.Module:
    half = width // 2
    return _HalfBeside(
        nn.Sequential(
            conv_bn(half, half, 1),
            conv_bn(half, half, 3, groups=half, activation=False),
            conv_bn(half, half, 1),
        )
    )


def shufflenetv2(num_classes: int, in_channels: int = 3) -> nn.Module:
    """ShuffleNet V2 at width 1 with a 1×1 stem, for 32 pixels.

    Taps: ``stem``; ``layer1``, ``layer2``, ``layer3``: the stages' outputs after ReLU; ``head``:
    the last map, after ReLU, (batch, 1024, 4, 4); ``pool``; ``classifier``.
    """
    stages: dict[str, nn.Module] = {"stem": conv_bn(in_channels, 24, 1)}
    before = 24
    for number, (width, blocks) in enumerate(((116, 3), (232, 7), (464, 3)), start=1):
        stages[f"layer{number}"] = nn.Sequential(
            _down(before, width), *(_split(width) for _ in range(blocks))
        )
        before = width
    stages["head"] = conv_bn(before, 1024, 1)
    return network(stages, 1024, num_classes)
