"""FCOS's head with distributions: its sides are their means, and all else is torchvision's."""

import math
from typing import Any

import pytest
import torch
from tests.tasks.detection.test_models import NAMES, both_kinds, build, detection
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.fcos import FCOSRegressionHead

from congener.errors import RecipeError
from congener.tasks.detection.heads import BinnedRegressionHead

BINS = 5


def wild(bins: int = BINS) -> BinnedRegressionHead:
    """With distributions that differ from edge to edge and from place to place."""
    torch.manual_seed(0)
    head = BinnedRegressionHead(32, 1, bins)
    nn.init.normal_(head.bbox_reg.weight, std=0.1)
    return head


def levels() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 32, *size, generator=generator) for size in ((3, 4), (1, 2))]


def test_a_side_is_the_mean_of_its_distribution() -> None:
    head, maps = wild(), levels()
    told: list[Tensor] = []
    head.distribution.register_forward_hook(lambda *said: told.append(said[2]))
    sides, _ = head(maps)
    place = 0
    for level in maps:
        logits = head.bbox_reg(head.conv(level))
        for row in range(level.shape[2]):
            for column in range(level.shape[3]):
                for edge in range(4):
                    mine = logits[1, edge * BINS : (edge + 1) * BINS, row, column].tolist()
                    odds = [math.exp(each) for each in mine]
                    mean = sum(k * each for k, each in enumerate(odds)) / sum(odds)
                    assert sides[1, place, edge].item() == pytest.approx(mean, rel=1e-5)
                    assert told[0][1, place, edge].tolist() == mine
                place += 1
    assert (told[0].shape, sides.shape) == ((2, place, 4, BINS), (2, place, 4))


def test_the_centre_ness_is_torchvision_s() -> None:
    head, maps = wild(), levels()
    plain = FCOSRegressionHead(32, 1, 1)
    shared = {k: v for k, v in head.state_dict().items() if not k.startswith("bbox_reg.")}
    assert set(plain.load_state_dict(shared, strict=False).missing_keys) == {
        "bbox_reg.weight", "bbox_reg.bias",
    }  # fmt: skip
    assert torch.equal(head(maps)[1], plain(maps)[1])


def test_sides_begin_with_a_stride_and_move_from_there() -> None:
    head = BinnedRegressionHead(32, 1, 17)
    sides, _ = head(levels())
    torch.testing.assert_close(sides, torch.ones_like(sides), rtol=0, atol=0.3)
    torch.testing.assert_close(sides.mean(), torch.tensor(1.0), rtol=0, atol=0.05)
    sides.sum().backward()
    assert head.bbox_reg.bias.grad is not None
    assert head.bbox_reg.bias.grad.abs().min() > 0


def test_sides_are_float32_in_any_precision() -> None:
    """A mean of 17 distances in bf16 would be off by a tenth of a stride."""
    head, maps = wild(17), levels()
    expected, _ = head(maps)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = head(maps)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    coarse = head.bfloat16()([each.bfloat16() for each in maps])[0]
    assert coarse.dtype == torch.float32
    assert not torch.equal(coarse, coarse.bfloat16().float())
    assert head.double()([each.double() for each in maps])[0].dtype == torch.float64


def test_a_detector_with_distributions_is_torchvision_s_all_the_same() -> None:
    task = detection()
    network = build(task, channels=256, convolutions=1, bins=9)
    assert type(network) is FCOS
    nn.init.normal_(network.head.regression_head.bbox_reg.weight, std=0.05)
    batch, images, targets = both_kinds(task)
    expected = network.train()(images, targets)
    found = task.losses(task.call(network, batch).logits, batch)
    for name, value in expected.items():
        torch.testing.assert_close(found[NAMES[name]], value, rtol=2e-5, atol=1e-6)
    network.eval()
    with torch.no_grad():
        expected, answers = network(images), task.respond(network, batch)
    assert sum(len(each["boxes"]) for each in expected) > 2
    for found, wanted in zip(answers, expected, strict=True):
        torch.testing.assert_close(found["boxes"], wanted["boxes"], rtol=0, atol=1e-3)


def test_without_bins_nothing_changes() -> None:
    task = detection()
    plain, given, binned = (
        build(task, channels=32, convolutions=2, **more) for more in ({}, {"bins": 0}, {"bins": 3})
    )
    assert type(plain.head.regression_head) is FCOSRegressionHead
    given.load_state_dict(plain.state_dict(), strict=True)
    weights = [list(each.parameters()) for each in (plain, given, binned)]
    assert all(torch.equal(a, b) for a, b in zip(*weights[:2], strict=True))
    pairs = zip(weights[0], weights[2], strict=True)
    others = [(tuple(a.shape), tuple(b.shape)) for a, b in pairs if a.shape != b.shape]
    assert others == [((4, 32, 3, 3), (12, 32, 3, 3)), ((4,), (12,))]
    groups = [m.num_groups for m in binned.modules() if isinstance(m, nn.GroupNorm)]
    assert groups == [m.num_groups for m in plain.modules() if isinstance(m, nn.GroupNorm)]


@pytest.mark.parametrize(
    ("design", "bins", "says"),
    [
        ("fcos", 1, "bins=1 of a detector must be 0, for none, or 2 or more"),
        ("fcos", -1, "bins=-1 of a detector"),
        ("fcos", "x", "'bins' of the detector .* a whole number"),
        ("retinanet", 17, "Only 'fcos' takes `bins`, not 'retinanet'"),
        ("ssdlite", 17, "'ssdlite' .* takes no 'bins'"),
    ],
)
def test_what_has_no_distributions_says_so(design: str, bins: Any, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        detection(design).build_model("small_cnn", bins=bins)
