"""Networks: parameter counts, shapes, tap paths, and names from elsewhere."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from congener.errors import RecipeError
from congener.tasks.image_classification import models

DEFAULTS = {"num_classes": 100, "in_channels": 3, "input_shape": (3, 32, 32), "in_features": 3072}
STAGES = {"stem": (16, 32), "layer1": (16, 32), "layer2": (32, 16), "layer3": (64, 8)}
FOURFOLD = {"stem": (32, 32), "layer1": (64, 32), "layer2": (128, 16), "layer3": (256, 8)}
VGG = {
    "block1": (64, 32),
    "block2": (128, 16),
    "block3": (256, 8),
    "block4": (512, 4),
    "block5": (512, 4),
}


def wide(factor: int) -> dict[str, tuple[int, int]]:
    return {
        "stem": (16, 32),
        "block1": (16 * factor, 32),
        "block2": (32 * factor, 16),
        "block3": (64 * factor, 8),
        "relu": (64 * factor, 8),
    }


# name: parameters at 100 classes, then the map (channels, side) at each tap for 32 pixels, the last
# map last. The counts are those of the networks of the CRD benchmark.
ZOO: dict[str, tuple[int, dict[str, tuple[int, int]]]] = {
    "resnet8x4": (1_233_540, {"layer3.0.sum": (256, 8)} | FOURFOLD),
    "resnet20": (278_324, {"layer1.2.sum": (16, 32)} | STAGES),
    "resnet32": (472_756, STAGES),
    "resnet32x4": (7_433_860, FOURFOLD),
    "resnet50": (
        23_705_252,
        {
            "stem": (64, 32),
            "layer1": (256, 32),
            "layer2": (512, 16),
            "layer3": (1024, 8),
            "layer4.2.sum": (2048, 4),
            "layer4": (2048, 4),
        },
    ),
    "resnet56": (861_620, STAGES),
    "resnet110": (1_736_564, STAGES),
    "wrn_16_1": (180_916, wide(1)),
    "wrn_16_2": (703_284, wide(2)),
    "wrn_40_1": (569_780, wide(1)),
    "wrn_40_2": (2_255_156, wide(2)),
    "vgg8": (3_965_028, VGG),
    "vgg13": (9_462_180, VGG),
    "mobilenetv2_half": (
        812_836,
        {
            "stem": (16, 16),
            "layer1": (12, 16),
            "layer2": (16, 8),
            "layer3": (48, 4),
            "layer4": (160, 2),
            "head": (1280, 2),
        },
    ),
    "shufflenetv1": (
        949_258,
        {"stem": (24, 32), "layer1": (240, 16), "layer2": (480, 8), "layer3": (960, 4)},
    ),
    "shufflenetv2": (
        1_355_528,
        {
            "stem": (24, 32),
            "layer1": (116, 16),
            "layer2": (232, 8),
            "layer3": (464, 4),
            "head": (1024, 4),
        },
    ),
    "small_cnn": (292_612, {"layer1": (32, 16), "layer2": (64, 8), "layer3": (128, 4)}),
}
RECTIFIED = ("resnet20", "wrn_16_2", "vgg8", "shufflenetv1", "shufflenetv2", "mobilenetv2_half")


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def watch(network: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """The logits, and for every module what it returned, once for each time it ran."""
    seen: dict[str, list[Tensor]] = {path: [] for path, _ in network.named_modules()}
    for path, module in network.named_modules():
        module.register_forward_hook(lambda m, i, output, path=path: seen[path].append(output))
    return network(images), seen


def build(name: str, **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    return models.build(name, arguments, DEFAULTS)


def test_every_network_is_listed() -> None:
    assert {*ZOO, "mlp", "cnn1d", "wrn"} == set(models.__all__)
    assert all(getattr(models, name).__doc__ for name in models.__all__)


@pytest.mark.parametrize("name", ZOO)
def test_count_and_taps(name: str) -> None:
    parameters, taps = ZOO[name]
    network = build(name)
    assert count(network) == parameters
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits, seen = watch(network, images)
    assert logits.shape == (2, 100)
    assert logits.isfinite().all()
    assert logits.std() > 1e-4
    for path, (channels, side) in taps.items():
        assert [tuple(o.shape) for o in seen[path]] == [(2, channels, side, side)], path
    last = seen[list(taps)[-1]][0]
    assert torch.allclose(seen["pool"][0], last.mean((2, 3)), atol=1e-5)
    assert seen["classifier"] == [logits]
    # Whatever holds parameters or is an activation runs once, so that any of them can be tapped.
    assert {path for path, outputs in seen.items() if len(outputs) != 1} == set()
    if name in RECTIFIED:
        assert last.min() == 0


@pytest.mark.parametrize(
    "name", ["mobilenetv2_half", "resnet20", "shufflenetv2", "vgg8", "wrn_16_1"]
)
def test_trains_with_other_classes_and_channels(name: str) -> None:
    network = build(name, num_classes=7, in_channels=1)
    logits = network(torch.randn(3, 1, 32, 32))
    assert logits.shape == (3, 7)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_residual_tap_is_before_relu() -> None:
    with torch.no_grad():
        _, seen = watch(build("resnet20").eval(), torch.randn(2, 3, 32, 32))
    assert torch.equal(seen["layer3.2.sum"][0].relu(), seen["layer3"][0])
    assert seen["layer3.2.sum"][0].min() < 0


def test_shuffle_interleaves() -> None:
    maps = torch.arange(6.0).view(1, 6, 1, 1)
    assert models.blocks.Shuffle(2)(maps).flatten().tolist() == [0, 3, 1, 4, 2, 5]


def test_mlp() -> None:
    network = models.mlp(10, 40)
    assert count(network) == 7_434
    logits, seen = watch(network, torch.randn(5, 1, 40))
    assert logits.shape == (5, 10)
    assert [o.shape for o in seen["hidden"]] == [(5, 64)]
    assert torch.equal(seen["hidden"][0], seen["hidden.1"][0])
    assert torch.equal(network.get_submodule("classifier")(seen["hidden"][0]), logits)
    assert models.mlp(3, 12, hidden=[7])(torch.randn(2, 3, 4)).shape == (2, 3)
    assert count(models.mlp(3, 12, hidden=())) == 39


def test_cnn1d() -> None:
    network = models.cnn1d(10)
    assert count(network) == 28_298
    logits, seen = watch(network, torch.randn(5, 1, 40))
    assert logits.shape == (5, 10)
    shapes = {path: [tuple(o.shape) for o in seen[path]] for path in ("layer1", "layer2", "layer3")}
    assert shapes == {"layer1": [(5, 64, 19)], "layer2": [(5, 64, 10)], "layer3": [(5, 64, 5)]}
    assert models.cnn1d(4, channels=8, input_shape=(2, 33))(torch.randn(2, 2, 33)).shape == (2, 4)


def test_small_cnn() -> None:
    assert count(models.small_cnn(10)) == 279_402
    student = models.small_cnn(10, widths=(8, 16, 32), convolutions=1)
    assert count(student) == 6_402
    assert student(torch.randn(2, 1, 28, 28)).shape == (2, 10)


def test_wrn_of_any_size() -> None:
    assert count(build("wrn", depth=16, width=2)) == 703_284
    assert count(build("wrn", depth=10, width=1)) < 100_000
    with pytest.raises(
        RecipeError, match=r"^A wide residual network has 6n \+ 4 layers \(10, 16, \.\.\.\), not 17"
    ):
        build("wrn", depth=17, width=1)


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("resnet21", {}, r"no network named 'resnet21'; did you mean .*'resnet20'"),
        ("zzz", {}, r"no network named 'zzz'; known: 'cnn1d', 'mlp'"),
        ("mlp", {"hiden": [3]}, r"takes no argument 'hiden'; did you mean 'hidden'\?"),
        ("resnet20", {"depth": 3}, r"It takes: num_classes, in_channels\."),
        ("wrn", {"depth": 16}, r"The network 'wrn' needs the argument 'width'"),
        ("mlp", {"hidden": 64}, r"'hidden' of the network 'mlp' is 64"),
        ("mlp", {"hidden": [-3]}, r"'mlp' cannot be built with .*hidden=\[-3\]"),
        ("cnn1d", {}, r"'cnn1d' cannot be built with .*input_shape=\(3, 32, 32\)"),
        ("tim:resnet18", {}, r"no library of networks named 'tim'; did you mean 'timm'"),
        ("timm:resnet19", {}, r"timm has no network named 'resnet19'; did you mean"),
        ("torchvision:resnet19", {}, r"torchvision has no classifier named 'resnet19'"),
        ("timm:resnet18", {"deepth": 3}, r"timm:resnet18 does not take these arguments: .*deepth"),
        ("torchvision:resnet18", {"deepth": 3}, r"torchvision:resnet18 does not .*deepth"),
    ],
)
def test_refused(name: str, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        build(name, **arguments)


def test_images_wanted() -> None:
    flat = DEFAULTS | {"input_shape": (1, 40), "in_channels": 1}
    for name in ("resnet20", "small_cnn", "timm:resnet18"):
        with pytest.raises(RecipeError, match=r"sample of this data has the shape \(1, 40\)"):
            models.build(name, {}, flat)


@pytest.mark.parametrize("name", ["timm:resnet10t", "torchvision:shufflenet_v2_x0_5"])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_libraries(name: str, channels: int) -> None:
    shape = (channels, 64, 64)
    defaults = DEFAULTS | {"in_channels": channels, "input_shape": shape, "num_classes": 7}
    network = models.build(name, {}, defaults).eval()
    assert network(torch.randn(2, channels, 64, 64)).shape == (2, 7)
    more = models.build(name, {"num_classes": 5}, defaults).eval()
    assert more(torch.randn(2, channels, 64, 64)).shape == (2, 5)


@pytest.mark.parametrize("name", ["timm:resnet10t", "torchvision:resnet18"])
def test_pretrained_is_passed_through(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights come from a hub, so here only the request and the refitting are looked at."""
    import timm
    import torchvision

    asked: dict[str, Any] = {}

    def fake_timm(name: str, **given: Any) -> nn.Module:
        asked.update(given)
        return nn.Identity()

    def fake_torchvision(name: str, **given: Any) -> nn.Module:
        asked.update(given)
        return torchvision.models.resnet18()

    monkeypatch.setattr(timm, "create_model", fake_timm)
    monkeypatch.setattr(torchvision.models, "get_model", fake_torchvision)
    network = build(name, pretrained=True)
    if name.startswith("timm"):
        assert asked == {"num_classes": 100, "in_chans": 3, "pretrained": True}
    else:
        assert asked == {"weights": "DEFAULT"}
        assert network(torch.randn(2, 3, 64, 64)).shape == (2, 100)
