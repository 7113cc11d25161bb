"""FGFI: imitation near objects, and where that is."""

import pytest
import torch
from tests.losses import golden
from tests.losses.test_cwd import maps
from torch import Tensor

from congener.errors import ShapeError
from congener.losses import FGFILoss, fgfi_loss, fgfi_near_object
from congener.ops.boxes import box_overlaps


def oracle(student: Tensor, teacher: Tensor, near: Tensor, weight: float) -> float:
    images, channels, height, width = student.shape
    total, places = 0.0, 0
    for n in range(images):
        for i in range(height):
            for j in range(width):
                if near[n, i, j]:
                    places += 1
                    for c in range(channels):
                        total += float(student[n, c, i, j] - teacher[n, c, i, j]) ** 2
    return weight * total / (2 * places)


def random_places(seed: int, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, 5, generator=generator) > 0.6


@pytest.mark.parametrize("batch", [1, 3])
def test_oracle(batch: int) -> None:
    student, teacher = maps(0, batch)
    near = random_places(0, batch)
    assert golden.close(fgfi_loss(student, teacher, near), oracle(student, teacher, near, 0.01))
    loss = fgfi_loss(student, teacher, near, weight=0.3)
    assert golden.close(loss, oracle(student, teacher, near, 0.3))


def test_images_count_by_their_places() -> None:
    student, teacher = maps(1)
    near = torch.zeros(3, 3, 5, dtype=torch.bool)
    near[0, 0, 0], near[1, :2] = True, True
    own = [fgfi_loss(student[[n]], teacher[[n]], near[[n]]) for n in (0, 1)]
    torch.testing.assert_close(fgfi_loss(student, teacher, near), (own[0] + 10 * own[1]) / 11)
    shares = fgfi_loss(student, teacher, near, reduction="none")
    torch.testing.assert_close(shares, torch.stack((own[0], 10 * own[1], 0 * own[0])) * 3 / 11)


def test_only_places_near_objects_pull() -> None:
    student, teacher = maps(2)
    near = random_places(2)
    student.requires_grad_()
    fgfi_loss(student, teacher, near).backward()
    assert student.grad is not None
    moved = student.grad.abs().sum(dim=1) > 0
    assert torch.equal(moved, near)
    expected = 0.01 * (student - teacher).detach() / near.sum() * near.unsqueeze(1)
    torch.testing.assert_close(student.grad, expected)


@pytest.mark.parametrize("batch", [0, 3])
def test_without_objects_it_is_zero(batch: int) -> None:
    student, teacher = (x[:batch] for x in maps(3))
    student.requires_grad_()
    loss = fgfi_loss(student, teacher, torch.zeros(batch, 3, 5, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert student.grad is not None
    assert (student.grad == 0).all()


def test_an_image_without_objects_changes_nothing() -> None:
    student, teacher = maps(4)
    near = random_places(4)
    near[1] = False
    rest = torch.tensor([0, 2])
    torch.testing.assert_close(
        fgfi_loss(student, teacher, near), fgfi_loss(student[rest], teacher[rest], near[rest])
    )


def test_the_projector_is_a_convolution_and_a_relu() -> None:
    module = FGFILoss(2, 4).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(5))
    student, teacher = maps(5)
    near = random_places(5)
    projected = module.projector(student[:, :2])
    assert projected.min() == 0
    assert [tuple(p.shape) for p in module.parameters()] == [(4, 2, 3, 3), (4,)]
    expected = fgfi_loss(projected, teacher, near)
    torch.testing.assert_close(module(student[:, :2], teacher, near), expected)
    assert golden.close(expected, oracle(projected.detach(), teacher, near, 0.01))


def test_masked_images_count_nothing() -> None:
    module = FGFILoss(2, 4).double()
    student, teacher = maps(6)
    near, mask = random_places(6), torch.tensor([True, False, True])
    near[1] = True
    module(student[mask][:, :2], teacher[mask], near[mask]).backward()
    expected = [parameter.grad.clone() for parameter in module.parameters()]  # type: ignore[union-attr]
    module.zero_grad()
    student[1], teacher[1] = torch.nan, torch.inf
    module(student[:, :2], teacher, near, mask).backward()
    for parameter, gradient in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def overlap(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def grid() -> Tensor:
    """Anchors 8 and 16 pixels wide around the places of a map (3, 5) of stride 8."""
    anchors = torch.zeros(3, 5, 3, 4, dtype=torch.float64)
    for i in range(3):
        for j in range(5):
            x, y = 8 * j + 4, 8 * i + 4
            for k, (w, h) in enumerate(((8, 8), (16, 16), (16, 8))):
                anchors[i, j, k] = torch.tensor([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return anchors


OBJECTS = [
    torch.tensor([[3.0, 2, 14, 12], [20, 5, 39, 23]], dtype=torch.float64),
    torch.zeros(0, 4, dtype=torch.float64),
    torch.tensor([[100.0, 100, 120, 130]], dtype=torch.float64),
    torch.tensor([[9.0, 9, 9, 20], [16, 8, 24, 16]], dtype=torch.float64),
]


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_near_is_by_the_best_overlap_with_each_object(threshold: float) -> None:
    anchors = grid()
    near = fgfi_near_object(anchors, OBJECTS, threshold=threshold)
    expected = torch.zeros(4, 3, 5, dtype=torch.bool)
    for n, boxes in enumerate(OBJECTS):
        for box in boxes.tolist():
            every = {
                (i, j, k): overlap(anchors[i, j, k].tolist(), box)
                for i in range(3)
                for j in range(5)
                for k in range(3)
            }
            for (i, j, _), value in every.items():
                if value > threshold * max(every.values()):
                    expected[n, i, j] = True
    assert torch.equal(near, expected)
    assert near[0].any()
    assert not near[0].all()
    assert not near[1:3].any()  # no object, and one that no anchor touches
    # the object's own anchor is among them; a box without area marks nothing
    assert near[3, 1, 2]
    assert torch.equal(near[3], fgfi_near_object(anchors, [OBJECTS[3][1:]], threshold=threshold)[0])


def test_half_is_the_default_and_a_lower_threshold_keeps_more() -> None:
    anchors = grid()
    half = fgfi_near_object(anchors, OBJECTS)
    assert torch.equal(half, fgfi_near_object(anchors, OBJECTS, threshold=0.5))
    assert not torch.equal(half, fgfi_near_object(anchors, OBJECTS, threshold=0.9))
    wide = fgfi_near_object(anchors, OBJECTS, threshold=0.2)
    assert (wide | half).equal(wide)
    assert fgfi_near_object(anchors, []).shape == (0, 3, 5)


def test_overlaps() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [2, 1, 6, 5], [8, 8, 9, 9], [1, 1, 1, 3]])
    for row, a in zip(box_overlaps(boxes, boxes), boxes.tolist(), strict=True):
        for value, b in zip(row, boxes.tolist(), strict=True):
            assert golden.close(value, overlap(a, b), 1e-6)
    assert box_overlaps(boxes, boxes).diagonal().tolist() == [1, 1, 1, 0]


def test_refusals() -> None:
    student, teacher = maps(7)
    near = random_places(7)
    with pytest.raises(ShapeError, match=r"near_object \(3, 5\) must be .* \(3, 3, 5\)"):
        fgfi_loss(student, teacher, near[0])
    with pytest.raises(ValueError, match="near_object must be boolean"):
        fgfi_loss(student, teacher, near.double())
    with pytest.raises(ShapeError, match=r"boxes\[1\] \(4,\) must be"):
        fgfi_near_object(grid(), [OBJECTS[0], torch.zeros(4)])
    with pytest.raises(ShapeError, match="keep the axes of the map"):
        fgfi_near_object(grid().flatten(0, 2), OBJECTS)
