"""The supervised losses of dense detectors, against torchvision's own ``compute_loss``."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import PartialState
from tests.trajectory.processes import in_two_processes
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

from congener.errors import DataError, RecipeError, ShapeError
from congener.tasks.detection.criteria import Design, dense_losses
from congener.tasks.detection.rows import join_rows, split_rows

DESIGNS: tuple[Design, ...] = ("fcos", "retinanet", "ssd")
CLASSES, SIDE, STRIDES = 3, 64, (8, 16, 32)
Targets = Sequence[Tensor]


class Backbone(nn.Module):
    out_channels = 8


def detector(design: Design) -> Any:
    """A network whose parts ``compute_loss`` needs; its layers are never called."""
    if design == "ssd":
        boxes = DefaultBoxGenerator([[2]] * 3, scales=[0.15, 0.3, 0.5, 0.8], steps=list(STRIDES))
        return SSD(Backbone(), boxes, (SIDE, SIDE), CLASSES + 1, head=nn.Identity())
    if design == "fcos":
        levels = AnchorGenerator(tuple((s,) for s in STRIDES), ((1.0,),) * 3)
        return FCOS(_deep(Backbone()), CLASSES, anchor_generator=levels)
    levels = AnchorGenerator(tuple((2 * s, 3 * s) for s in STRIDES), ((0.5, 1.0, 2.0),) * 3)
    return RetinaNet(Backbone(), CLASSES, anchor_generator=levels)


def _deep(backbone: Any) -> Any:
    backbone.out_channels = 32  # its head normalises 32 groups
    return backbone


def references(net: Any, dtype: torch.dtype) -> tuple[Tensor, list[int]]:
    """The anchors of one image, and how many there are on each level."""
    maps = [torch.zeros(1, 1, SIDE // s, SIDE // s, dtype=dtype) for s in STRIDES]
    image = torch.zeros(1, 3, SIDE, SIDE, dtype=dtype)
    (anchors,) = net.anchor_generator(ImageList(image, [(SIDE, SIDE)]), maps)
    counts = [len(anchors) // 21 * n for n in (16, 4, 1)]
    assert sum(counts) == len(anchors)
    return anchors.to(dtype), counts


def said(design: Design, batch: int, locations: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """What a head says, at random."""
    generator = torch.Generator().manual_seed(batch)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    deltas = randn(batch, locations, 4)
    outputs = {
        "cls_logits": 2 * randn(batch, locations, CLASSES + (design == "ssd")),
        "bbox_regression": 2 * deltas.abs() + 0.1 if design == "fcos" else deltas,
    }
    if design == "fcos":
        outputs["bbox_ctrness"] = randn(batch, locations, 1)
    return {name: output.requires_grad_() for name, output in outputs.items()}


def as_rows(net: Any, outputs: dict[str, Tensor], anchors: Tensor) -> Tensor:
    deltas = outputs["bbox_regression"]
    many = anchors.expand(len(deltas), -1, -1)
    if isinstance(net, FCOS):
        boxes = net.box_coder.decode(deltas, many)
    else:
        flat = deltas.flatten(0, 1), many.flatten(0, 1)
        boxes = net.box_coder.decode_single(*flat).reshape(many.shape)
    quality = outputs.get("bbox_ctrness")
    return join_rows(
        outputs["cls_logits"], None if quality is None else quality[..., 0], boxes, anchors[None]
    )


def objects(counts: Sequence[int], dtype: torch.dtype, *, seed: int = 0) -> Targets:
    """Boxes of all sizes, one huge among many, in each image; -1: one that is not annotated."""
    generator = torch.Generator().manual_seed(seed)
    most = max(1, *counts)
    boxes = torch.zeros(len(counts), most, 4, dtype=dtype)
    labels = torch.full((len(counts), most), -1)
    for image, count in enumerate(counts):
        if count < 0:
            labels[image] = -100
            continue
        corner = 44 * torch.rand(count, 2, generator=generator, dtype=dtype)
        size = 5 + 45 * torch.rand(count, 2, generator=generator, dtype=dtype) ** 2
        boxes[image, :count] = torch.cat((corner, (corner + size).clamp(max=SIDE)), dim=1)
        labels[image, :count] = torch.randint(CLASSES, (count,), generator=generator)
        if count == most > 7:
            boxes[image, 0] = torch.tensor([-300.0, -300, 360, 360])
    return boxes, labels, torch.zeros_like(labels, dtype=torch.bool)


def theirs(net: Any, outputs: dict[str, Tensor], anchors: Tensor, counts: list[int],
           given: Targets) -> dict[str, Tensor]:  # fmt: skip
    """What torchvision makes of it."""
    boxes, labels, _ = given
    offset = isinstance(net, SSD)
    targets = [{"boxes": b[n >= 0], "labels": n[n >= 0] + offset} for b, n in zip(boxes, labels)]  # noqa: B905
    many = [anchors] * len(targets)
    if isinstance(net, FCOS):
        found = net.compute_loss(targets, outputs, many, counts)
    elif isinstance(net, RetinaNet):
        found = net.compute_loss(targets, outputs, many)
    else:
        none = torch.full((len(anchors),), -1)
        matches = [
            net.proposal_matcher(box_iou(t["boxes"], anchors)) if len(t["boxes"]) else none
            for t in targets
        ]
        found = net.compute_loss(targets, outputs, many, matches)
    names = {"bbox_regression": "box", "bbox_ctrness": "quality"}
    return {names.get(name, name): value for name, value in found.items()}


def gradients(values: dict[str, Tensor], outputs: dict[str, Tensor]) -> list[Tensor]:
    """Of each loss by each output, so that none can stand in for another."""
    return [
        torch.zeros_like(output) if gradient is None else gradient
        for value in values.values()
        for output, gradient in zip(
            outputs.values(),
            torch.autograd.grad(
                value, list(outputs.values()), retain_graph=True, allow_unused=True
            ),
            strict=True,
        )
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("counts", [(3, 0, 5), (1,), (0, 0), (8, 2, 4, 1, 6)])
@pytest.mark.parametrize("design", DESIGNS)
def test_torchvision(design: Design, counts: tuple[int, ...], dtype: torch.dtype) -> None:
    net = detector(design)
    anchors, levels = references(net, dtype)
    outputs = said(design, len(counts), len(anchors), dtype)
    given = objects(counts, dtype)
    ours = dense_losses(as_rows(net, outputs, anchors), *given, design=design)
    expected = theirs(net, outputs, anchors, levels, given)
    assert set(ours) == set(expected)
    expected = {name: expected[name] for name in ours}
    tolerance = 1e-11 if dtype == torch.float64 else 1e-5
    for name, value in ours.items():
        torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=0)
    for own, other in zip(gradients(ours, outputs), gradients(expected, outputs), strict=True):
        scale = float(other.abs().max())
        torch.testing.assert_close(own, other, rtol=tolerance, atol=tolerance * scale)
    if sum(counts) > 1:
        assert all(value > 0 for value in ours.values())


def both(design: Design, given: Targets, change: Callable[[Tensor], Tensor] = lambda x: x) -> Any:
    """Losses of rows at random, and the gradient of their sum."""
    net = detector(design)
    anchors, _ = references(net, torch.float64)
    outputs = said(design, len(given[0]), len(anchors), torch.float64)
    rows = change(as_rows(net, outputs, anchors).detach()).requires_grad_()
    values = dense_losses(rows, *given, design=design)
    (gradient,) = torch.autograd.grad(torch.stack(list(values.values())).sum(), rows)
    return {name: value.detach() for name, value in values.items()}, gradient, rows.detach()


@pytest.mark.parametrize("garbage", [0.0, torch.nan, torch.inf])
@pytest.mark.parametrize("design", DESIGNS)
def test_images_that_are_not_annotated_are_as_if_absent(design: Design, garbage: float) -> None:
    given = objects((4, -1, 0, 2, -1), torch.float64)
    kept = torch.tensor([0, 2, 3])

    def spoil(rows: Tensor) -> Tensor:
        rows[[1, 4], :, :-4] = garbage
        return rows

    values, gradient, rows = both(design, given, spoil)
    own = rows[kept].requires_grad_()
    expected = dense_losses(own, *(part[kept] for part in given), design=design)
    torch.testing.assert_close(values, {k: v.detach() for k, v in expected.items()})
    (other,) = torch.autograd.grad(torch.stack(list(expected.values())).sum(), own)
    torch.testing.assert_close(gradient[kept], other)
    assert not gradient[[1, 4]].any()


@pytest.mark.parametrize("counts", [(-1, -1), (-1,), ()])
@pytest.mark.parametrize("design", DESIGNS)
def test_nothing_annotated_is_zero(design: Design, counts: tuple[int, ...]) -> None:
    boxes, labels, crowd = objects(counts or (1,), torch.float64)
    given = [part[: len(counts)] for part in (boxes, labels, crowd)]
    values, gradient, _ = both(design, given)
    assert all(value == 0 for value in values.values())
    assert not gradient.any()


@pytest.mark.parametrize("design", DESIGNS)
def test_an_image_without_objects_is_background(design: Design) -> None:
    values, gradient, _ = both(design, objects((0,), torch.float64))
    assert bool(values["classification"] > 0) is (design != "ssd")
    assert values["box"] == 0
    assert not gradient[..., -9:].any()


@pytest.mark.parametrize("design", DESIGNS)
def test_rows_of_padding_do_not_count(design: Design) -> None:
    given = objects((2, 1), torch.float64)
    wide = objects((2, 1, 9), torch.float64)
    assert wide[0].shape[1] == 9
    values, gradient, _ = both(design, given)
    padded = tuple(part[:2] for part in wide)
    torch.testing.assert_close(both(design, padded)[:2], (values, gradient))


@pytest.mark.parametrize("design", DESIGNS)
def test_crowds_are_neither_objects_nor_background(design: Design) -> None:
    """What is left out is found by a loop over locations: centres within, and no object there."""
    boxes, labels, crowd = objects((3,), torch.float64)
    boxes[0, 2] = torch.tensor([9.0, 17, 40, 50])
    crowd[0, 2] = True
    without = boxes[:, :2], labels[:, :2], crowd[:, :2]
    values, gradient, rows = both(design, (boxes, labels, crowd))
    plain, all_gradient, _ = both(design, without)
    torch.testing.assert_close(values["box"], plain["box"])
    touched = gradient[0].ne(0)
    found = touched[:, -8:-4].any(dim=1)
    assert torch.equal(found, all_gradient[0, :, -8:-4].ne(0).any(dim=1))
    assert found.any()
    left_out = 0
    for place, reference in enumerate(split_rows(rows).references[0].tolist()):
        x, y = (reference[0] + reference[2]) / 2, (reference[1] + reference[3]) / 2
        inside = 9 <= x <= 40 and 17 <= y <= 50
        if inside and not found[place]:
            left_out += 1
            assert not touched[place].any(), place
        elif design != "ssd":
            assert touched[place, :CLASSES].all(), place
            torch.testing.assert_close(gradient[0, place], all_gradient[0, place])
    assert left_out > 5
    if design != "ssd":
        assert values["classification"] < plain["classification"]


def test_ssd_mines_other_background_where_a_crowd_is() -> None:
    """Three backgrounds for each object, none of them in the crowd."""
    boxes, labels, crowd = objects((2,), torch.float64, seed=1)
    boxes[0, 1] = torch.tensor([0.0, 0, 32, 64])
    crowd[0, 1] = True

    def sure_of_background(rows: Tensor) -> Tensor:
        rows[..., 0] += 10
        return rows

    _, gradient, rows = both("ssd", (boxes, labels, crowd), sure_of_background)
    found = gradient[0, :, -8:-4].ne(0).any(dim=1)
    counted = gradient[0, :, : CLASSES + 1].ne(0).any(dim=1)
    centres = split_rows(rows).references[0].reshape(-1, 2, 2).mean(dim=1)
    assert int(counted.sum()) == 4 * int(found.sum()) > 0
    assert (centres[counted & ~found, 0] > 32).all()


def test_ssd_counts_no_more_background_than_there_is() -> None:
    """Every location finds one of the boxes, which are the references themselves."""
    net = detector("ssd")
    anchors, _ = references(net, torch.float64)
    labels = torch.zeros(1, len(anchors), dtype=torch.int64)
    given = anchors[None], labels, torch.zeros_like(labels, dtype=torch.bool)
    values, _, rows = both("ssd", given)
    entropy = torch.nn.functional.cross_entropy(rows[0, :, : CLASSES + 1], labels[0] + 1)
    torch.testing.assert_close(values["classification"], entropy)


def test_fcos_gives_a_location_the_smaller_object_however_alike() -> None:
    """Areas 240.5 and 240: float32 cannot tell 1e8 less the one from 1e8 less the other."""
    boxes = torch.tensor([[[20.0, 20, 36.03333, 35], [20.0, 20, 36, 35]]])
    anchors = torch.tensor([[[24.0, 24, 32, 32], [0, 0, 16, 16], [0, 0, 32, 32]]])
    rows = join_rows(torch.zeros(1, 3, 2), None, boxes[:, [1, 1, 1]] + 1, anchors)
    losses = [
        dense_losses(rows, boxes[:, order], torch.tensor([order]), torch.zeros(1, 2) > 0,
                     design="fcos")
        for order in ([0, 1], [1, 0])
    ]  # fmt: skip
    assert losses[0] == losses[1]
    assert losses[0]["box"] == dense_losses(
        rows, boxes[:, 1:], torch.tensor([[1]]), torch.zeros(1, 1) > 0, design="fcos"
    )["box"]  # fmt: skip


@pytest.mark.parametrize("design", ["retinanet", "ssd"])
def test_boxes_without_a_side_are_finite(design: Design) -> None:
    def flatten(rows: Tensor) -> Tensor:
        rows[..., -6:-4] = rows[..., -8:-6]
        return rows

    values, gradient, _ = both(design, objects((4, 1), torch.float64), flatten)
    assert all(value.isfinite() for value in values.values())
    assert gradient.isfinite().all()


def _share(rank: int, design: Design) -> Any:
    PartialState(cpu=True)
    given, mine = objects((4, 0, -1, 7, 2), torch.float64), (slice(0, 3), slice(3, 5))[rank]
    net = detector(design)
    anchors, _ = references(net, torch.float64)
    rows = as_rows(net, said(design, 5, len(anchors), torch.float64), anchors).detach()
    own = rows[mine].requires_grad_()
    values = dense_losses(own, *(part[mine] for part in given), design=design)
    (gradient,) = torch.autograd.grad(torch.stack(list(values.values())).sum(), own)
    return {name: value.detach() for name, value in values.items()}, gradient


def test_two_processes_equal_one(tmp_path: Path) -> None:
    found = in_two_processes(tmp_path, _shares)
    for place, design in enumerate(DESIGNS):
        values, gradient, _ = both(design, objects((4, 0, -1, 7, 2), torch.float64))
        for rank in range(2):
            torch.testing.assert_close(found[rank][place][0], values)
        # A rank's gradient is that of the sum of both ranks' equal losses.
        parts = torch.cat([found[rank][place][1] for rank in range(2)]) / 2
        torch.testing.assert_close(parts, gradient)


def _shares(rank: int) -> list[Any]:
    return [_share(rank, design) for design in DESIGNS]


def test_half_precision_is_computed_in_float32() -> None:
    given = objects((3, 2), torch.float32)
    net = detector("retinanet")
    anchors, _ = references(net, torch.float32)
    rows = as_rows(net, said("retinanet", 2, len(anchors), torch.float32), anchors).bfloat16()
    found = dense_losses(rows, *given, design="retinanet")
    expected = dense_losses(rows.float(), *given, design="retinanet")
    assert {value.dtype for value in found.values()} == {torch.float32}
    torch.testing.assert_close(found, expected)


def test_rows_come_apart_as_they_were_joined() -> None:
    classes, quality = torch.randn(2, 5, 3), torch.randn(2, 5)
    boxes, anchors = torch.randn(2, 5, 4), torch.randn(1, 5, 4, requires_grad=True)
    rows = join_rows(classes, quality, boxes, anchors)
    assert rows.shape == (2, 5, 12)
    assert not rows.requires_grad
    parts = split_rows(rows)
    for found, expected in zip(parts, (classes, quality, boxes, anchors.expand(2, 5, 4))):  # noqa: B905
        torch.testing.assert_close(found, expected.detach())
        assert found.untyped_storage().data_ptr() == rows.untyped_storage().data_ptr()
    assert not split_rows(join_rows(classes, None, boxes, anchors)).quality.any()


def test_what_does_not_fit_is_told() -> None:
    boxes, labels, crowd = objects((2, 1), torch.float64)
    rows = torch.zeros(2, 7, 12)
    told = pytest.raises
    with told(ShapeError, match=r"\(2, 7, 9\) must be .*join_rows"):
        split_rows(rows[..., :9])
    with told(ShapeError, match=r"\(7, 12\)"):
        split_rows(rows[0])
    with told(ShapeError, match=r"\(2, 6, 4\).* of the same locations"):
        join_rows(rows[..., :3], None, rows[:, :6, :4], rows[..., :4])
    with told(ShapeError, match=r"boxes \(1, 2, 4\).*2 images.*labels of -1"):
        dense_losses(rows, boxes[:1], labels, crowd, design="fcos")
    with told(DataError, match=r"label is 3.*tells 3 classes"):
        dense_losses(rows, boxes, labels.clamp(min=3), crowd, design="fcos")
    with told(DataError, match=r"label is 2.*tells 2 classes"):
        dense_losses(rows, boxes, labels.clamp(min=2, max=2), crowd, design="ssd")
    with told(RecipeError, match="'yolo' is unknown"):
        dense_losses(rows, boxes, labels, crowd, design="yolo")  # type: ignore[arg-type]
