"""Networks: each is torchvision's own detector, on any body, and what was built wrongly says so."""

import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import detection as theirs
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from congener.engine import FitConfig, fit
from congener.errors import RecipeError
from congener.run_folder import save_weights
from congener.systems.distillation import Distillation
from congener.tasks.detection import Detection, Splits, backbones, models
from congener.tasks.detection import data as datasets
from congener.types import Batch

SIZE = (64, 96)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
COLOURS = ("red", "green", "blue")
BODIES: dict[str, dict[str, Any]] = {
    "small_cnn": {"widths": (8, 16, 16, 16)},
    "torchvision:resnet18": {"levels": 1},
    "timm:mobilenetv3_small_050": {"levels": 2},
}


def rectangles(count: int, size: tuple[int, int] = SIZE) -> Splits:
    """Rectangles of three colours on noise; every third image has none."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 80, (count, 3, *size), generator=generator, dtype=torch.uint8)
    boxes, labels = torch.zeros(count, 2, 4), torch.full((count, 2), -1)
    for image in range(count):
        for row in range(image % 3):
            height, width, top, left, colour = (
                int(torch.randint(low, high, (), generator=generator))
                for low, high in ((10, 32), (10, 32), (0, size[0] - 31), (0, size[1] - 31), (0, 3))
            )
            images[image, colour, top : top + height, left : left + width] = 230
            boxes[image, row] = torch.tensor([left, top, left + width, top + height])
            labels[image, row] = colour
    return datasets.tensors(
        train_images=images, train_boxes=boxes, train_labels=labels, test_images=images,
        test_boxes=boxes, test_labels=labels, class_names=COLOURS, mean=MEAN, std=STD,
    )  # fmt: skip


def detection(design: str = "fcos", size: tuple[int, int] = SIZE, **options: Any) -> Detection:
    return Detection(rectangles(6, size), detector=design, **options)  # type: ignore[arg-type]


def build(task: Detection, name: str = "small_cnn", **arguments: Any) -> nn.Module:
    """A network that finds something at once: wide draws, and statistics of what it has seen."""
    torch.manual_seed(3)
    network = task.build_model(name, **arguments)
    last = getattr(network, "roi_heads", None) or network.head.classification_head
    for layer in last.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, std=(2 / layer.weight[0].numel()) ** 0.5)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    return network


def both_kinds(task: Detection) -> tuple[Batch, list[Tensor], list[dict[str, Tensor]]]:
    """A batch as our task prepares it, and as torchvision wants images and targets."""
    raw = task.collate(task.splits["train"].__getitems__(list(range(6))))  # type: ignore[attr-defined]
    shift = int(task.detector == "ssdlite")  # its class 0 is the background
    targets = [
        {"boxes": boxes[labels >= 0], "labels": labels[labels >= 0] + shift}
        for boxes, labels in zip(raw["boxes"], raw["labels"], strict=True)
    ]
    batch = task.prepare(raw, train=True, seed=0, epoch=0)
    return batch, [image.float() / 255 for image in raw["image"]], targets


NAMES = {"classification": "classification", "bbox_regression": "box", "bbox_ctrness": "quality"}


@pytest.mark.parametrize("design", ["fcos", "retinanet", "ssdlite"])
@pytest.mark.parametrize("body", BODIES)
def test_a_network_is_a_detector_of_torchvision(body: str, design: str) -> None:
    task = detection(design)
    further: dict[str, Any] = {} if design == "ssdlite" else {"channels": 256, "convolutions": 1}
    network = build(task, body, **BODIES[body], **further)
    kinds = {"fcos": theirs.FCOS, "retinanet": theirs.RetinaNet, "ssdlite": theirs.ssd.SSD}
    assert type(network) is kinds[design]
    batch, images, targets = both_kinds(task)
    expected = network.train()(images, targets)
    found = task.losses(task.call(network, batch).logits, batch)
    assert found.keys() == {NAMES[name] for name in expected}
    for name, value in expected.items():
        torch.testing.assert_close(found[NAMES[name]], value, rtol=2e-5, atol=1e-6)
    network.eval()
    with torch.no_grad():
        expected, answers = network(images), task.respond(network, batch)
    assert sum(len(each["boxes"]) for each in expected) > 2
    for found, wanted in zip(answers, expected, strict=True):
        torch.testing.assert_close(found["boxes"], wanted["boxes"], rtol=0, atol=1e-3)
        torch.testing.assert_close(found["scores"], wanted["scores"], rtol=0, atol=1e-5)
        assert torch.equal(found["labels"], wanted["labels"] - int(design == "ssdlite"))


def described(network: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(value.shape)) for name, value in network.state_dict().items()]


@pytest.mark.parametrize("design", ["retinanet", "fcos"])
def test_a_resnet50_has_the_names_and_shapes_of_torchvision_s(design: str) -> None:
    with torch.device("meta"):
        mine = models.build(
            "torchvision:resnet50", {"extra": True, "levels": 3}, design=design,  # type: ignore[arg-type]
            num_classes=91, size=(512, 512), mean=MEAN, std=STD,
        )  # fmt: skip
        make = getattr(theirs, f"{design}_resnet50_fpn")
        plain = make(weights=None, weights_backbone=None)
    assert described(mine) == described(plain)
    assert mine.anchor_generator.sizes == plain.anchor_generator.sizes
    assert mine.anchor_generator.aspect_ratios == plain.anchor_generator.aspect_ratios


def test_what_is_trained_here_runs_in_plain_torchvision(tmp_path: Path) -> None:
    side = 128  # so that the coarsest of five levels has one place
    task = detection("retinanet", (side, side), augment="crop_flip")
    student = build(task, "torchvision:resnet18", extra=True)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    config = FitConfig(steps=5, batch_size=1, lr=1e-3, device="cpu", threads=1)
    train, test = task.splits["train"], task.splits["test"]
    fit(Distillation(student, None, [], task=task), task, config, train=train, test=None)
    save_weights(student, tmp_path / "weights.safetensors")

    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5,
        returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256),
    )  # fmt: skip
    plain = theirs.RetinaNet(
        backbone, len(COLOURS), min_size=side, max_size=side, image_mean=MEAN, image_std=STD
    )
    plain.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    moved = [name for name, value in plain.state_dict().items() if not value.equal(before[name])]
    assert len(moved) > 100

    raw = task.collate(test.__getitems__([1, 2]))  # type: ignore[attr-defined]
    with torch.no_grad():
        expected = plain.eval()([image / 255 for image in raw["image"]])
        batch = task.prepare(raw, train=False, seed=0, epoch=0)
        answers = task.respond(student.eval(), batch)
    assert sum(len(each["boxes"]) for each in expected) > 2
    for found, wanted in zip(answers, expected, strict=True):
        torch.testing.assert_close(found["boxes"], wanted["boxes"], rtol=0, atol=1e-3)
        torch.testing.assert_close(found["scores"], wanted["scores"], rtol=0, atol=1e-5)
        assert torch.equal(found["labels"], wanted["labels"])


@pytest.mark.parametrize("design", ["retinanet", "fcos", "faster_rcnn"])
def test_whole_detections_run_in_onnx(design: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    network = build(detection(design), channels=32, convolutions=1).eval()
    image, other = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    path = str(tmp_path / "detector.onnx")
    with warnings.catch_warnings():  # of the exporter that traces, and of what it traces
        warnings.simplefilter("ignore")
        torch.onnx.export(network, ([image],), path, dynamo=False, input_names=["image"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for each in (image, other):
        with torch.no_grad():
            (expected,) = network([each])
        assert len(expected["boxes"]) > 1
        found = session.run(None, {"image": each.numpy()})
        for array, wanted in zip(found, expected.values(), strict=True):
            torch.testing.assert_close(torch.from_numpy(array), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("body", "design"),
    [(body, design) for body in BODIES for design in ("fcos", "retinanet", "faster_rcnn")],
)
def test_levels_are_where_the_pack_says_they_are(body: str, design: str) -> None:
    task = detection(design, (64, 64))
    network = build(task, body, channels=32, convolutions=1, **{**BODIES[body], "levels": 2},
                    extra=True).eval()  # fmt: skip
    names = ("layer_blocks.0", "layer_blocks.1", "extra_blocks.p6", "extra_blocks.p7")
    seen: dict[str, Tensor] = {}
    for name in names:
        module = network.get_submodule(f"backbone.fpn.{name}")
        module.register_forward_hook(lambda _, __, found, name=name: seen.update({name: found}))
    said = task.call(network, {"image": torch.randn(1, 3, 64, 64)})
    assert all(torch.equal(seen[name], x) for name, x in zip(names, said.maps, strict=True))
    assert all(a.shape[2] >= b.shape[2] for a, b in pairwise(said.maps))


def places(design: models.Design, network: nn.Module, size: tuple[int, int]) -> list[Tensor]:
    """The anchors of each level of a network, by torchvision's own generator."""
    task = detection(design, size)
    said = task.call(network, {"image": torch.zeros(1, 3, *size)})
    counts = [each.shape[2] * each.shape[3] for each in said.maps]
    each = len(said.anchors) // sum(counts)
    return list(said.anchors.split([count * each for count in counts]))


@pytest.mark.parametrize(
    ("design", "scale"),
    [("fcos", 4.0), ("retinanet", 4.0), ("retinanet", 1.75), ("faster_rcnn", 3.0)],
)
def test_anchors_of_a_level_are_the_model_s_own(design: models.Design, scale: float) -> None:
    task = detection(design, anchor_scale=scale)
    network = build(task, channels=32)
    maps = task.call(network, {"image": torch.zeros(1, 3, *SIZE)}).maps
    assert [tuple(each.shape[2:]) for each in maps] == [(8, 12), (4, 6)]
    for level, wanted in zip(maps, places(design, network, SIZE), strict=True):
        found = task.anchors(level)
        assert found.shape == (
            *level.shape[2:],
            {"fcos": 1, "retinanet": 9, "faster_rcnn": 3}[design],
            4,
        )
        assert torch.equal(found.flatten(0, 2), wanted)


def test_retinanet_s_anchors_begin_at_so_many_strides() -> None:
    sizes = models.anchors_of("retinanet", [8, 16]).sizes
    assert sizes == ((32, 40, 50), (64, 80, 101))  # torchvision's, of which these are the first two
    assert models.anchors_of("retinanet", [8], 1.75).sizes == ((14, 17, 22),)
    task = detection("retinanet", anchor_scale=2)
    side = build(task).anchor_generator.cell_anchors[0]
    area = (side[:, 2:] - side[:, :2]).prod(1)
    assert area.min().sqrt() == pytest.approx(16, abs=1)


def test_images_of_one_even_size_work() -> None:
    for size in ((96, 96), (64, 32), (100, 140)):
        levels = 1 if size == (100, 140) else 2
        task = detection(size=size)
        network = build(task, widths=(8, 8, 8, 8)[: levels + 1], levels=levels)
        maps = task.call(network, {"image": torch.zeros(1, 3, *size)}).maps
        assert [size[0] // each.shape[2] for each in maps] == [4, 8][:levels]


def test_a_body_of_its_own_width_and_depth() -> None:
    maps = backbones.small_cnn(widths=(4, 8, 12), levels=2, norm="batch", blocks=3)
    assert maps.out_channels == [8, 12]
    found = maps(torch.zeros(1, 3, 32, 32))
    assert [tuple(each.shape[1:]) for each in found.values()] == [(8, 8, 8), (12, 4, 4)]
    kinds = [type(layer).__name__ for layer in maps.body["layer2"]]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU"] * 3
    strides = [layer.stride[0] for layer in maps.body["layer2"] if isinstance(layer, nn.Conv2d)]
    assert strides == [2, 1, 1]
    for norm, name in (("group", "GroupNorm"), ("none", "ReLU")):
        layers = backbones.small_cnn(norm=norm).body["layer1"]
        assert type(layers[1]).__name__ == name
    group = backbones.small_cnn(widths=(4, 32)).body["layer2"][1]
    assert (group.num_groups, group.num_channels) == (4, 32)


def test_statistics_of_published_weights_can_stay() -> None:
    body = backbones.torchvision_body("resnet18", levels=2, norm="frozen")
    assert body.out_channels == [256, 512]
    kinds = {type(module).__name__ for module in body.modules()}
    assert "FrozenBatchNorm2d" in kinds
    assert "BatchNorm2d" not in kinds


def test_the_head_of_fcos_normalises_groups_of_eight_channels() -> None:
    for channels, groups in ((32, 4), (64, 8), (256, 32), (288, 32)):
        network = build(detection(), channels=channels, convolutions=2)
        found = [m for m in network.head.modules() if isinstance(m, nn.GroupNorm)]
        assert [each.num_groups for each in found] == [groups] * 4
    assert torch.equal(network.head.regression_head.bbox_reg.bias, torch.ones(4))


def test_a_look_at_the_levels_leaves_statistics_alone() -> None:
    network = build(detection(), "torchvision:resnet18", levels=1)
    assert network.training
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(int(each.num_batches_tracked) == 0 for each in norms)


WRONG = {
    "smal_cnn": ({}, "fcos", "no network named 'smal_cnn'; did you mean 'small_cnn'"),
    "tim:resnet18": ({}, "fcos", "no library of networks named 'tim'; did you mean 'timm'"),
    "torchvision:resnet19": ({}, "fcos", "'resnet19'; did you mean 'resnet18'.*timm:NAME"),
    "torchvision:vgg16": ({}, "fcos", "no residual network named 'vgg16'"),
    "timm:mobilenetv3_smal_050": ({}, "fcos", "no network named .*did you mean"),
}
WRONG_ARGUMENTS: list[tuple[str, dict[str, Any], str, str]] = [
    ("small_cnn", {"chanels": 32}, "fcos", "no argument 'chanels'; did you mean 'channels'"),
    ("small_cnn", {"width": (8,)}, "fcos", "no argument 'width'; did you mean 'widths'"),
    ("torchvision:resnet18", {"level": 2}, "fcos", "no argument 'level'; did you mean 'levels'"),
    ("timm:lcnet_050", {"levl": 2}, "fcos", "timm:lcnet_050 gives no maps.*'levl'"),
    ("small_cnn", {"levels": 5}, "fcos", r"4 stages .* levels=5 .* 1 to 4 levels"),
    ("small_cnn", {"levels": 0}, "fcos", r"levels=0 .* 1 to 4 levels"),
    ("small_cnn", {"blocks": 0}, "fcos", r"blocks=0.* positive"),
    ("small_cnn", {"norm": "layer"}, "fcos", "norm must be one of 'group', 'batch', 'none'"),
    ("torchvision:resnet18", {"levels": 5}, "fcos", "levels=5 of torchvision:resnet18; .*1 to 4"),
    ("torchvision:resnet18", {"norm": "group"}, "fcos", "norm must be one of 'batch', 'frozen'"),
    ("torchvision:resnet18", {"weights": "X"}, "fcos", "weights 'X' of torchvision:resnet18"),
    ("timm:lcnet_050", {"levels": 9}, "fcos", "no maps of 9 levels: expected 1 to 5"),
    ("timm:lcnet_050", {"levels": "two"}, "fcos", "'levels' .* is 'two': expected a whole number"),
    ("small_cnn", {"channels": 48}, "fcos", "channels=48 of 'fcos' must be a multiple of 32"),
    ("small_cnn", {"channels": 0}, "retinanet", "channels=0, .* must be 1 or more"),
    ("small_cnn", {"channels": "x"}, "fcos", "'channels' of the detector .* a whole number"),
    ("small_cnn", {"convolutions": 0}, "fcos", "convolutions=0 .* must be 1 or more"),
    ("small_cnn", {"convolutions": 5}, "retinanet", "convolutions=5 .* expected 1 to 4"),
    ("small_cnn", {"channels": 32}, "ssdlite", "'ssdlite' .* takes no 'channels'; remove it"),
    ("small_cnn", {"extra": True}, "ssdlite", "'ssdlite' .* takes no 'extra'; remove it"),
]


@pytest.mark.parametrize(
    ("name", "arguments", "design", "says"),
    [(name, *rest) for name, rest in WRONG.items()] + WRONG_ARGUMENTS,
)
def test_a_network_that_cannot_be_says_why(
    name: str, arguments: dict[str, Any], design: str, says: str
) -> None:
    with pytest.raises(RecipeError, match=f"(?s){says}") as caught:
        detection(design).build_model(name, **arguments)
    assert str(caught.value).endswith((".", "?"))
    assert ".." not in str(caught.value)


@pytest.mark.parametrize("size", [(100, 140), (96, 100), (96, 44)])
def test_images_that_do_not_divide_say_so(size: tuple[int, int]) -> None:
    with pytest.raises(RecipeError, match=f"places on images of {size[0]} x {size[1]} pixels.*mul"):
        detection(size=size).build_model("small_cnn")


def test_a_body_of_another_size_says_so() -> None:
    with pytest.raises(RecipeError, match=r", levels=1, depth=3 cannot be built for .* 64 x 96: "):
        detection().build_model("timm:vit_tiny_patch16_224", levels=1, depth=3)


def test_channels_that_are_no_multiple_of_32_do_for_retinanet() -> None:
    task = detection("retinanet")
    network = build(task, channels=20, convolutions=3)
    said = task.call(network, {"image": torch.zeros(1, 3, *SIZE)})
    assert said.maps[0].shape[1] == 20
    assert isinstance(network.anchor_generator, AnchorGenerator)
    branches = (network.head.classification_head, network.head.regression_head)
    assert [len(branch.conv) for branch in branches] == [3, 3]
