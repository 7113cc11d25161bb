"""Which places of a map count: near objects, in the foreground, or visible by chance."""

import math
from typing import Any

import pytest
import torch
from tests.systems.scenes import LEVEL, squares
from tests.systems.tiny import TinyPictureTask, conv_net, conv_teacher, prepared_batch
from torch import Tensor, nn

from congener.errors import RecipeError
from congener.losses import FGDLoss, FGFILoss, MGDLoss, mgd_visible
from congener.systems import Distillation
from congener.task import Task
from congener.tasks.detection import Detection
from congener.tasks.detection import data as scenes
from congener.types import Batch, Progress, Term

COARSE = "backbone.fpn.layer_blocks.1"
SIDE = 32
BOX, REGION = [8.0, 8, 15, 20], [16.0, 0, 32, 32]


def one_box(**options: Any) -> Detection:
    """Three images: one with a box and a region of a crowd, one with no label, one with nothing."""
    labels = torch.tensor([[1, 0], [-100, -100], [-1, -1]])
    parts = {
        "images": torch.zeros(3, 3, SIDE, SIDE, dtype=torch.uint8),
        "boxes": torch.tensor([[BOX, REGION], *[[[0.0] * 4] * 2] * 2]), "labels": labels,
        "crowd": torch.tensor([[False, True], [False, False], [False, False]]),
    }  # fmt: skip
    test = parts | {"labels": labels.clamp(min=-1)}
    given = {f"train_{k}": v for k, v in parts.items()} | {f"test_{k}": v for k, v in test.items()}
    return Detection(scenes.tensors(**given, class_names=("a", "b")), **options)


class Foreground(nn.Module):
    """Keeps what it is told."""

    def forward(self, student_feature: Tensor, foreground: Tensor) -> Tensor:
        self.told = foreground
        return student_feature.sum()


class NearObject(nn.Module):
    def forward(self, student_feature: Tensor, near_object: Tensor) -> Tensor:
        self.told = near_object
        return student_feature.sum()


class Visible(nn.Module):
    mask_ratio = 0.3

    def forward(self, student_feature: Tensor, visible: Tensor) -> Tensor:
        self.told = visible
        return student_feature.sum()


def network(task: Detection, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return task.build_model("small_cnn", widths=(8, 8, 8), norm="none", channels=32, convolutions=1)


def told(
    loss: nn.Module, task: Detection, *, tap: str = COARSE, name: str = "told", step: int = 0,
    batch: Batch | None = None,
) -> Any:  # fmt: skip
    term = Term(loss, 1.0, tap, tap, name=name)
    system = Distillation(network(task), network(task, 1), [term], task=task)
    system(prepared_batch(task, 3) if batch is None else batch, Progress(step, 9, 0))
    return loss.told


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_foreground_is_in_the_moved_boxes_alone(mirrored: bool) -> None:
    task = one_box(augment={"name": "flip", "flip": float(mirrored)})
    wanted = torch.zeros(3, 4, 4)
    wanted[0, 1:4, 2:4] = 1 / 6  # from 17 / 8 to 24 / 8
    if not mirrored:
        wanted[0] = 0
        wanted[0, 1:4, 1:3] = 1 / 6  # from 8 / 8 to 15 / 8, and from 8 / 8 to 20 / 8
    assert torch.equal(told(Foreground(), task), wanted)
    fine = told(Foreground(), task, tap=LEVEL)
    assert fine.shape == (3, 8, 8)
    assert (fine[0] > 0).sum() == 3 * 4  # 2…4 and 2…5, with both ends
    assert fine[0].max() == pytest.approx(1 / 12)
    assert not fine[1:].any()


def by_hand(anchors: list[list[list[float]]], stride: int) -> Tensor:
    """For each place, whether one of its boxes meets BOX more than half as well as the best."""

    def overlap(a: list[float], b: list[float]) -> float:
        across, down = (
            max(0.0, min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1)
        )  # fmt: skip
        areas = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
        return across * down / (areas - across * down)

    count = SIDE // stride
    found = [[[
        overlap([x * stride + a[0], y * stride + a[1], x * stride + a[2], y * stride + a[3]], BOX)
        for a in anchors] for x in range(count)] for y in range(count)]  # fmt: skip
    best = max(each for row in found for place in row for each in place)
    return torch.tensor([[max(place) > best / 2 for place in row] for row in found])


@pytest.mark.parametrize(("tap", "stride"), [(LEVEL, 4), (COARSE, 8)])
@pytest.mark.parametrize(("detector", "options"), [
    ("fcos", {}), ("retinanet", {}), ("retinanet", {"anchor_scale": 1.5}),
], ids=str)  # fmt: skip
def test_near_objects(tap: str, stride: int, detector: Any, options: Any) -> None:
    task = one_box(detector=detector, **options)
    if detector == "fcos":
        shapes = [(stride, stride)]
    else:
        scale = options.get("anchor_scale", 4.0)
        sides = [int(scale * stride * 2 ** (third / 3)) for third in range(3)]
        shapes = [
            (side / math.sqrt(ratio), side * math.sqrt(ratio))
            for ratio in (0.5, 1.0, 2.0) for side in sides
        ]  # fmt: skip
    anchors = [[*(round(-x / 2) for x in s), *(round(x / 2) for x in s)] for s in shapes]
    found = told(NearObject(), task, tap=tap)
    assert torch.equal(found[0], by_hand(anchors, stride))
    assert found[0].any()
    assert tap == COARSE or not found[0].all()
    assert not found[1:].any()


@pytest.mark.parametrize("detector", ["fcos", "retinanet"])
def test_reference_boxes_are_the_detectors_own(detector: Any) -> None:
    task = one_box(detector=detector)
    said = task.call(network(task), prepared_batch(task, 3))
    mine = torch.cat([task.anchors(each).flatten(0, 2) for each in said.maps])
    assert torch.equal(mine, said.anchors)


def test_visible_places_are_of_the_loss_the_term_the_level_and_the_step() -> None:
    task = Detection(squares(40, 8))
    batch = prepared_batch(task, 40)

    def visible(**options: Any) -> Tensor:
        return told(Visible(), task, batch=batch, **options)

    first = visible()
    assert first.shape == (40, 4, 4)
    assert first.dtype == torch.bool
    assert first.float().mean().item() == pytest.approx(0.7, abs=0.05)
    assert torch.equal(first, visible())
    others = [visible(step=1), visible(name="dlot"), visible(tap=LEVEL)[:, :2].reshape(40, 4, 4)]
    for other in others:  # independent of it
        assert (first == other).float().mean().item() == pytest.approx(0.58, abs=0.06)


def test_what_a_process_sees_is_its_share_of_the_whole() -> None:
    task = Detection(squares(40, 8))
    batch = prepared_batch(task, 12)
    share = {k: v[[7, 2, 9]] for k, v in batch.items()}
    for loss in (Foreground(), NearObject(), Visible()):
        whole = told(loss, task, batch=batch).clone()
        assert torch.equal(told(loss, task, batch=share), whole[[7, 2, 9]])


def test_the_losses_of_the_papers_ask_for_them() -> None:
    task = Detection(squares(40, 8))
    terms = [
        Term(FGDLoss(32, 32), 1.0, COARSE, COARSE), Term(FGFILoss(32, 32), 1.0, COARSE, COARSE),
        Term(MGDLoss(32, 32), 1.0, [LEVEL, COARSE], [LEVEL, COARSE]),
    ]  # fmt: skip
    system = Distillation(network(task), network(task, 1), terms, task=task)
    total, found, _ = system(prepared_batch(task, 6), Progress(0, 9, 0))
    assert all(value.item() > 0 for value in found.values())
    assert total.isfinite()
    kinds = [type(each).__name__ for each in system._sources()]
    assert kinds == ["Foreground", "NearObject", "Visible", "Visible"]
    assert not list(system.answers.parameters())


def test_the_ratio_may_change() -> None:
    loss, task = Visible(), Detection(squares(40, 8))
    batch = prepared_batch(task, 40)
    for loss.mask_ratio in (0.0, 1.0):
        found = told(loss, task, batch=batch)
        assert bool(found.all() if loss.mask_ratio == 0 else ~found.any())
    assert mgd_visible(batch["index"], (4, 4), mask_ratio=0.0).all()


# Bad input


def refused(loss: nn.Module, task: Task, nets: Any, tap: str) -> str:
    with pytest.raises(RecipeError) as caught:
        Distillation(*nets, [Term(loss, 1.0, tap, tap, name="it")], task=task)
    return str(caught.value)


def test_what_has_no_places_is_told() -> None:
    task = one_box()
    nets = network(task), network(task, 1)
    assert refused(Foreground(), task, nets, f"{COARSE}:pooled") == (
        "The term 'it' reads maps (batch, channels, height, width), but its student tap gives "
        "(1, 32); tap a pyramid's level."
    )
    pictures = conv_net(), conv_teacher()
    for loss in (Foreground(), NearObject()):
        assert refused(loss, TinyPictureTask(), pictures, "layer2") == (
            "The term 'it' asks where the objects are, and the task TinyPictureTask has none; take "
            "the task 'detection'."
        )
    ssd = one_box(detector="ssdlite")
    torch.manual_seed(0)
    nets = tuple(ssd.build_model("small_cnn", widths=(8, 8, 16), norm="none") for _ in range(2))
    tap = next(n for n, m in nets[0].named_modules() if isinstance(m, nn.Conv2d))
    assert "of 'ssdlite' depend on all its levels" in refused(NearObject(), ssd, nets, tap)
    Distillation(*nets, [Term(Foreground(), 1.0, tap, tap)], task=ssd)


def test_visible_places_are_of_a_map() -> None:
    task = one_box()
    nets = network(task), network(task, 1)
    assert "reads maps" in refused(Visible(), task, nets, f"{COARSE}:pooled")
