"""Residual networks for 32-pixel images: CIFAR ResNets, ResNet-50 and wide residual networks.

He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016); Zagoruyko and Komodakis,
"Wide Residual Networks" (BMVC 2016); widths of the 8x4 and 32x4 variants as in the benchmark of
Tian et al., "Contrastive Representation Distillation" (ICLR 2020).
"""

from collections.abc import Sequence

from torch import Tensor, nn

from congener.errors import RecipeError

from .blocks import Residual, Sum, conv_bn, initialise, network

__all__ = [
    "resnet8x4",
    "resnet20",
    "resnet32",
    "resnet32x4",
    "resnet50",
    "resnet56",
    "resnet110",
    "wrn",
    "wrn_16_1",
    "wrn_16_2",
    "wrn_40_1",
    "wrn_40_2",
]

_NARROW = (16, 16, 32, 64)
_FOURFOLD = (32, 64, 128, 256)


def _shortcut(before: int, after: int, stride: int) -> nn.Module | None:
    if stride == 1 and before == after:
        return None
    return conv_bn(before, after, 1, stride=stride, activation=False)


def _basic(before: int, after: int, stride: int) -> nn.Module:
    body = nn.Sequential(
        conv_bn(before, after, 3, stride=stride), conv_bn(after, after, 3, activation=False)
    )
    return Residual(body, _shortcut(before, after, stride), nn.ReLU())


def _bottleneck(before: int, after: int, stride: int) -> nn.Module:
    middle = after // 4
    body = nn.Sequential(
        conv_bn(before, middle, 1),
        conv_bn(middle, middle, 3, stride=stride),
        conv_bn(middle, after, 1, activation=False),
    )
    return Residual(body, _shortcut(before, after, stride), nn.ReLU())


def _cifar(depth: int, widths: Sequence[int], num_classes: int, in_channels: int) -> nn.Module:
    blocks = (depth - 2) // 6
    stages: dict[str, nn.Module] = {"stem": conv_bn(in_channels, widths[0], 3)}
    before = widths[0]
    for number, width in enumerate(widths[1:], start=1):
        first = _basic(before, width, 1 if number == 1 else 2)
        more = [_basic(width, width, 1) for _ in range(blocks - 1)]
        stages[f"layer{number}"] = nn.Sequential(first, *more)
        before = width
    return initialise(network(stages, before, num_classes))


def resnet8x4(num_classes: int, in_channels: int = 3) -> nn.Module:
    """ResNet of 8 layers, four times as wide. Taps: see :func:`resnet20`."""
    return _cifar(8, _FOURFOLD, num_classes, in_channels)


def resnet32x4(num_classes: int, in_channels: int = 3) -> nn.Module:
    """ResNet of 32 layers, four times as wide. Taps: see :func:`resnet20`."""
    return _cifar(32, _FOURFOLD, num_classes, in_channels)


def resnet20(num_classes: int, in_channels: int = 3) -> nn.Module:
    """ResNet of 20 layers for CIFAR.

    Taps: ``stem``; ``layer1``, ``layer2``, ``layer3``: the stages' outputs after ReLU, the last of
    them the last map, 8×8 for 32 pixels; ``layer1.2.sum`` and so on (stage, block): the same
    before ReLU; ``pool``: the pooled vector; ``classifier``: the logits.
    """
    return _cifar(20, _NARROW, num_classes, in_channels)


def resnet32(num_classes: int, in_channels: int = 3) -> nn.Module:
    """ResNet of 32 layers for CIFAR. Taps: see :func:`resnet20`."""
    return _cifar(32, _NARROW, num_classes, in_channels)


def resnet56(num_classes: int, in_channels: int = 3) -> nn.Module:
    """ResNet of 56 layers for CIFAR. Taps: see :func:`resnet20`."""
    return _cifar(56, _NARROW, num_classes, in_channels)


def resnet110(num_classes: int, in_channels: int = 3) -> nn.Module:
    """ResNet of 110 layers for CIFAR. Taps: see :func:`resnet20`."""
    return _cifar(110, _NARROW, num_classes, in_channels)


def resnet50(num_classes: int, in_channels: int = 3) -> nn.Module:
    """ResNet-50 with a 3×3 stem of stride 1 and no first pooling, for 32 pixels.

    Taps: ``stem``; ``layer1`` … ``layer4``: the stages' outputs after ReLU, the last of them the
    last map, 4×4; ``layer4.2.sum`` and so on (stage, block): the same before ReLU; ``pool``;
    ``classifier``.
    """
    stages: dict[str, nn.Module] = {"stem": conv_bn(in_channels, 64, 3)}
    before = 64
    for number, (width, blocks) in enumerate(
        zip((256, 512, 1024, 2048), (3, 4, 6, 3), strict=True), start=1
    ):
        first = _bottleneck(before, width, 1 if number == 1 else 2)
        more = [_bottleneck(width, width, 1) for _ in range(blocks - 1)]
        stages[f"layer{number}"] = nn.Sequential(first, *more)
        before = width
    return initialise(network(stages, before, num_classes))


class _WideFirst(nn.Module):
    """The first block of a wide stage: its shortcut starts after the first activation."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.activation = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
        )
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False)
        self.sum = Sum()

    def forward(self, maps: Tensor) -> Tensor:
        """The block's output, not yet normalised."""
        active = self.activation(maps)
        output: Tensor = self.sum(self.body(active), self.shortcut(active))
        return output


def _wide(width: int) -> nn.Module:
    body = nn.Sequential(
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, 1, 1, bias=False),
    )
    return Residual(body)


def wrn(num_classes: int, depth: int, width: int, in_channels: int = 3) -> nn.Module:
    """Wide residual network of ``depth`` layers (6n + 4), ``width`` times as wide as ResNet.

    Taps: ``stem``; ``block1``, ``block2``, ``block3``: the stages' outputs, before normalisation
    and ReLU (what the CRD benchmark calls features 1 to 3); ``relu``: the last map, normalised and
    rectified, 8×8 for 32 pixels; ``pool``: the pooled vector; ``classifier``: the logits.
    """
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        raise RecipeError(f"A wide residual network has 6n + 4 layers (10, 16, ...), not {depth}.")
    stages: dict[str, nn.Module] = {"stem": nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)}
    before = 16
    for number in (1, 2, 3):
        after = 8 * 2**number * width
        stride = 1 if number == 1 else 2
        # Width 1 leaves the first stage's channel count as it is: an ordinary block.
        first = _wide(after) if before == after else _WideFirst(before, after, stride)
        stages[f"block{number}"] = nn.Sequential(first, *(_wide(after) for _ in range(blocks - 1)))
        before = after
    stages |= {"norm": nn.BatchNorm2d(before), "relu": nn.ReLU()}
    net = initialise(network(stages, before, num_classes))
    nn.init.zeros_(net.get_submodule("classifier").bias)  # type: ignore[arg-type]
    return net


def wrn_16_1(num_classes: int, in_channels: int = 3) -> nn.Module:
    """WRN-16-1. Taps: see :func:`wrn`."""
    return wrn(num_classes, 16, 1, in_channels)


def wrn_16_2(num_classes: int, in_channels: int = 3) -> nn.Module:
    """WRN-16-2. Taps: see :func:`wrn`."""
    return wrn(num_classes, 16, 2, in_channels)


def wrn_40_1(num_classes: int, in_channels: int = 3) -> nn.Module:
    """WRN-40-1. Taps: see :func:`wrn`."""
    return wrn(num_classes, 40, 1, in_channels)


def wrn_40_2(num_classes: int, in_channels: int = 3) -> nn.Module:
    """WRN-40-2. Taps: see :func:`wrn`."""
    return wrn(num_classes, 40, 2, in_channels)
