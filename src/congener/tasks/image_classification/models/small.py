"""Small networks for one processor core: a perceptron, a 1-D and a 2-D convolutional network."""

import itertools
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from .blocks import conv_bn, initialise, network

__all__ = ["cnn1d", "mlp", "small_cnn"]


def mlp(num_classes: int, in_features: int, hidden: Sequence[int] = (64, 64)) -> nn.Module:
    """A perceptron without batch normalisation; its input may have any shape.

    7,434 parameters at 40 features, two hidden layers of 64 and 10 classes.

    Taps: ``hidden.0``, ``hidden.1``, …: each hidden activation; ``hidden``: the last of them,
    (batch, hidden[-1]); ``classifier``: the logits.
    """
    sizes = [in_features, *hidden]
    layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            hidden=nn.Sequential(*layers),
            classifier=nn.Linear(sizes[-1], num_classes),
        )
    )


def cnn1d(num_classes: int, channels: int = 64, input_shape: Sequence[int] = (1, 40)) -> nn.Module:
    """Three strided 1-D convolutions without batch normalisation: MNIST-1D's network.

    28,298 parameters at 64 channels, 10 classes and input (1, 40).

    Taps: ``layer1``, ``layer2``, ``layer3``: each activation; ``layer3`` is the last map,
    (batch, channels, 5) for 40 points; ``flatten``: the same as vectors; ``classifier``: the
    logits.
    """
    before, length = input_shape
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    for number, kernel in enumerate((5, 3, 3), start=1):
        convolution = nn.Conv1d(before, channels, kernel, stride=2, padding=1)
        stages[f"layer{number}"] = nn.Sequential(convolution, nn.ReLU())
        before, length = channels, (length + 2 - kernel) // 2 + 1
    stages["flatten"] = nn.Flatten()
    stages["classifier"] = nn.Linear(channels * length, num_classes)
    return nn.Sequential(stages)


def small_cnn(
    num_classes: int,
    in_channels: int = 1,
    widths: Sequence[int] = (32, 64, 128),
    convolutions: int = 2,
) -> nn.Module:
    """A 5×5 stem, then stages of ``convolutions`` 3×3 convolutions; each stage halves the map.

    With one input channel and 10 classes: 279,402 parameters as it is (Fashion-MNIST's teacher),
    6,402 with ``widths=(8, 16, 32), convolutions=1`` (its student).

    Taps: ``layer1``, ``layer2``, …, one for each width: the stages' outputs after ReLU, the last
    of them the last map; ``pool``: the pooled vector; ``classifier``: the logits.
    """
    stages: dict[str, nn.Module] = {"layer1": conv_bn(in_channels, widths[0], 5, stride=2)}
    for number, (before, after) in enumerate(itertools.pairwise(widths), start=2):
        more = [conv_bn(after, after, 3) for _ in range(convolutions - 1)]
        stages[f"layer{number}"] = nn.Sequential(conv_bn(before, after, 3, stride=2), *more)
    return initialise(network(stages, widths[-1], num_classes))
