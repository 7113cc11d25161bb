"""Stages of networks written for the test, whose stages are known."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from congener.anatomy import Anatomy, dissect
from congener.errors import RecipeError
from congener.taps import Taps
from congener.teachers import Bridge, Preprocessing

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def conv(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride, 1)


class Block(nn.Module):
    """A residual block whose first convolution still works at the old resolution."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(before, after, 1)
        self.conv = conv(after, after, stride)
        self.skip = nn.Conv2d(before, after, 1, stride)
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(after, after, 1))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.relu(self.narrow(x)))  # the ReLU fires twice
        y = y * torch.sigmoid(self.squeeze(y))
        y += self.skip(x)
        return self.relu(y)


class Aux(nn.Module):
    """Stages with an auxiliary head that runs in training only, and a tuple on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 4, 2), nn.ReLU(inplace=True))
        self.layer1 = nn.Sequential(Block(4, 8, 2), Block(8, 8, 1))
        self.layer2 = nn.Sequential(Block(8, 12, 2), Pairs())
        self.aux = nn.Linear(8, 5)
        self.unused = conv(3, 3)
        self.fc = nn.Sequential(nn.Dropout(0.5, inplace=True), nn.Linear(12, 5))

    def forward(self, x: Tensor) -> Any:
        middle = self.layer1(self.stem(x))
        last, _ = self.layer2(middle)
        logits = self.fc(last.mean(dim=(2, 3)))
        return (logits, self.aux(middle.mean(dim=(2, 3)))) if self.training else logits


class Pairs(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        return x + 1, "more"


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv, self.drop = nn.Linear(width, 3 * width), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        weights = self.drop((q @ k.mT).softmax(-1))  # (batch, heads, tokens, tokens)
        return x + (weights @ v).transpose(1, 2).flatten(2)


class Vit(nn.Module):
    def __init__(self, extra: int = 1, patch: int = 4, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, patch, patch)
        self.extra = nn.Parameter(torch.zeros(1, extra, 8))
        self.blocks = nn.ModuleList(Attention(8) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).mT
        tokens = torch.cat([self.extra.expand(len(x), -1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens).mean(dim=1))


class Last(nn.Module):
    """Channels last, as in Swin; merges four neighbours at the end of a stage."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 2, 2)
        self.first = Merged()
        self.second = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(self.patches(x).movedim(1, -1)))
        return self.head(x.mean(dim=(1, 2)))


class Merged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return F.avg_pool2d(x.movedim(-1, 1), 2).movedim(1, -1)


def look(net: nn.Module, images: Tensor = IMAGES) -> Anatomy:
    return dissect(net, lambda: net(images))


def taps(found: Anatomy) -> list[str]:
    return [place.path for place in found.stages]


def test_stages_end_where_the_resolution_changes() -> None:
    found = look(Aux())
    # Not: inside a block, the ReLU that fires twice, the squeeze, what is changed in place.
    assert taps(found) == ["stem", "layer1", "layer2"]
    assert [place.kind for place in found.stages] == ["map"] * 3
    assert [place.size for place in found.stages] == [(8, 8), (4, 4), (2, 2)]
    assert [place.shape[0] for place in found.stages] == [4, 8, 12]
    assert not found.isotropic
    assert found.head is not None
    # The dropout changes what comes into the classifier in place, when it trains.
    assert (found.head.path, found.head.shape) == ("fc.1:input", (12,))


def test_every_place_can_be_tapped_in_training() -> None:
    for net in (Aux(), Vit(), Last()):
        found = look(net)
        paths = [p for place in found.stages for p in (place.path, place.as_map)]
        assert found.head is not None
        _, seen = Taps(net.train(), [*paths, found.head.path])(lambda net=net: net(IMAGES))
        for place in found.stages:
            assert seen[place.path].shape[1:] == place.shape
            assert seen[place.as_map].shape[2:] == place.size
        assert seen[found.head.path].shape[1:] == found.head.shape


def test_depth_is_the_share_of_the_work() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 5))
    found = look(net, torch.randn(3, 4))
    assert taps(found) == ["1", "3"]
    assert [place.kind for place in found.stages] == ["vector"] * 2
    assert [place.depth for place in found.stages] == pytest.approx([24 / 90, 60 / 90])
    assert found.head is not None
    assert (found.head.path, found.head.depth) == ("4:input", pytest.approx(60 / 90))
    assert (found.macs, found.parameters, found.classes) == (90, 30 + 42 + 35, 5)


@pytest.mark.parametrize(("extra", "patch"), [(0, 4), (1, 4), (2, 4), (5, 4), (5, 8), (7, 4)])
def test_tokens_that_are_no_patch_are_counted(extra, patch) -> None:
    found = look(Vit(extra, patch))
    side = 16 // patch
    # 5 + 4 tokens could be a grid of 3 × 3; the convolution tells that they are not.
    assert taps(found) == [f"blocks.{i}" for i in range(4)]
    assert found.isotropic
    assert {place.size for place in found.stages} == {(side, side)}
    assert {place.extra for place in found.stages} == {extra}
    assert found.stages[0].as_map == f"blocks.0:{side}x{side}"
    assert found.stages[0].row()[1] == (f"tokens, {extra} extra" if extra else "tokens")


def test_patches_of_images_that_are_no_squares() -> None:
    found = look(Vit(1), torch.randn(3, 3, 8, 16))
    assert {place.as_map for place in found.stages} == {f"blocks.{i}:2x4" for i in range(4)}


def test_channels_may_come_last() -> None:
    found = look(Last())
    assert taps(found) == ["first.blocks.1", "second"]
    assert [place.kind for place in found.stages] == ["channels last"] * 2
    assert [place.as_map for place in found.stages] == ["first.blocks.1:8x8", "second:4x4"]


def test_maps_of_one_line() -> None:
    net = nn.Sequential(
        nn.Conv1d(1, 4, 3, 2), nn.ReLU(), nn.Conv1d(4, 8, 3, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip
    found = look(net, torch.randn(3, 1, 20))
    assert taps(found) == ["1", "3"]
    assert [(p.kind, p.shape, p.size) for p in found.stages] == [
        ("sequence", (4, 9), (9,)), ("sequence", (8, 4), (4,)),
    ]  # fmt: skip
    assert found.head is not None
    assert found.head.path == "5:input"


def test_a_convolution_may_give_the_logits() -> None:
    net = nn.Sequential(
        conv(3, 4, 2), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )  # fmt: skip
    found = look(net)
    assert taps(found) == ["1"]  # not the maps of the classes
    assert found.head is None


def test_a_pooled_map_that_is_stretched_is_no_stage() -> None:
    net = nn.Sequential(
        conv(3, 4, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(196, 5)
    )
    assert taps(look(net)) == ["1"]


@pytest.mark.parametrize("wrap", [
    lambda net: nn.parallel.DataParallel(net) if not torch.cuda.is_available() else net,
    lambda net: Bridge(net, Preprocessing((0.0,) * 3, (1.0,) * 3), Preprocessing((0.5,) * 3,
                                                                                 (0.5,) * 3)),
])  # fmt: skip
def test_paths_are_those_of_the_network_inside(wrap: Callable[[nn.Module], nn.Module]) -> None:
    assert taps(look(wrap(Vit()))) == taps(look(Vit()))


def test_the_network_is_as_before() -> None:
    net = Aux()
    net.layer1.eval()
    net.aux.weight.requires_grad_(False)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    learns = [parameter.requires_grad for parameter in net.parameters()]
    random = torch.get_rng_state()
    images = IMAGES.clone()
    look(net, images)
    assert [module.training for module in net.modules()] == modes
    assert [parameter.requires_grad for parameter in net.parameters()] == learns
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(images, IMAGES)


def test_a_network_that_fails_is_as_before() -> None:
    net = Aux()
    with pytest.raises(RuntimeError):
        look(net, torch.randn(3, 7, 16, 16))
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_one_sample_is_too_few() -> None:
    with pytest.raises(RecipeError, match="a batch of at least 2 samples that Vit reads"):
        look(Vit(), IMAGES[:1])


def test_the_table() -> None:
    text = str(look(Vit()))
    assert text.splitlines()[0] == "Vit:"
    assert text.splitlines()[1].split() == ["tap", "kind", "shape", "depth"]
    assert "blocks.3    tokens, 1 extra  17 × 8" in text
