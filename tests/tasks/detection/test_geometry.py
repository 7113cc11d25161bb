"""Images and boxes that move alike: against boxes painted into images, and plain arithmetic."""

import pytest
import torch
from torch import Tensor

from congener.errors import DataError, ShapeError
from congener.tasks.detection.geometry import COLUMNS, moved_boxes, moved_images, still

HEIGHT, WIDTH = SIZE = (40, 60)


def pictures(count: int = 4, dtype: torch.dtype = torch.uint8) -> Tensor:
    drawn = torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    return (drawn * 256).to(dtype) if dtype == torch.uint8 else drawn.to(dtype)


def geometries(count: int, smallest: float = 0.5) -> Tensor:
    """Windows anywhere, half of them mirrored."""
    u = torch.rand(count, 5, generator=torch.Generator().manual_seed(1))
    size = (torch.tensor(SIZE) * (smallest + (1 - smallest) * u[:, :2])).round()
    start = (u[:, 2:4] * (torch.tensor(SIZE) - size + 1)).floor()
    return torch.cat(((u[:, 4:] < 0.5).float(), start, size), 1)


def objects(count: int, each: int) -> Tensor:
    """Boxes within the image, at whole pixels."""
    u = torch.rand(count, each, 4, generator=torch.Generator().manual_seed(2))
    size = (3 + u[..., :2] * 25).round()
    start = (u[..., 2:] * (torch.tensor([WIDTH, HEIGHT]) - size)).floor()
    return torch.cat((start, start + size), -1)


def by_hand(box: list[float], row: list[float]) -> tuple[list[float], float]:
    """One box, and the share of its area that is left."""
    mirrored, top, left, height, width = row
    x0, y0, x1, y1 = box
    x = [min(max(value - left, 0), width) for value in (x0, x1)]
    y = [min(max(value - top, 0), height) for value in (y0, y1)]
    share = (x[1] - x[0]) * (y[1] - y[0]) / ((x1 - x0) * (y1 - y0))
    x, y = [value * WIDTH / width for value in x], [value * HEIGHT / height for value in y]
    if mirrored:
        x = [WIDTH - x[1], WIDTH - x[0]]
    return [x[0], y[0], x[1], y[1]], round(share, 3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_still(dtype: torch.dtype) -> None:
    images, boxes = pictures(dtype=dtype), objects(4, 3) + 0.123
    boxes[0, 0] = torch.tensor([5.0, 5, 5.5, 6.2])  # small, but whole
    labels = torch.tensor([[0, 1, 2], [3, 0, -1], [-1, -1, -1], [-100, -100, -100]])
    boxes[labels < 0] = 0
    geometry = still(4, SIZE)
    assert geometry.shape == (4, len(COLUMNS))
    assert torch.equal(moved_images(images, geometry), images)
    found, kept = moved_boxes(boxes, labels, geometry, SIZE)
    assert torch.equal(found, boxes)
    assert torch.equal(kept, labels)


def test_mirroring_is_exact_and_its_own_inverse() -> None:
    images, boxes, labels = pictures(), objects(4, 3), torch.ones(4, 3, dtype=torch.int64)
    geometry = still(4, SIZE)
    geometry[1:3, 0] = 1
    moved = moved_images(images, geometry)
    found, kept = moved_boxes(boxes, labels, geometry, SIZE)
    for row in range(4):
        flipped = row in (1, 2)
        assert torch.equal(moved[row], images[row].flip(-1) if flipped else images[row])
        left, top, right, bottom = boxes[row].T
        expected = torch.stack((WIDTH - right, top, WIDTH - left, bottom), 1)
        assert torch.equal(found[row], expected if flipped else boxes[row])
    assert torch.equal(moved_images(moved, geometry), images)
    assert torch.equal(moved_boxes(found, kept, geometry, SIZE)[0], boxes)


def test_boxes_by_hand() -> None:
    geometry, boxes = geometries(300), objects(300, 4)
    labels = torch.arange(4).repeat(300, 1)
    found, kept = moved_boxes(boxes, labels, geometry, SIZE)
    fates = set()
    for row in range(300):
        for place in range(4):
            expected, share = by_hand(boxes[row, place].tolist(), geometry[row].tolist())
            sides = expected[2] - expected[0], expected[3] - expected[1]
            gone = share < 0.25 or (share < 1 and min(sides) < 2)
            fates.add((gone, share == 1, 0 < share < 0.25))
            assert kept[row, place] == (-1 if gone else place)
            wanted = torch.zeros(4) if gone else torch.tensor(expected)
            torch.testing.assert_close(found[row, place], wanted, rtol=0, atol=1e-4)
    assert fates == {(False, True, False), (False, False, False), (True, False, False)} | {
        (True, False, True)
    }


def test_boxes_lie_on_what_they_were_drawn_around() -> None:
    """A white box on black moves with its image."""
    geometry, boxes = geometries(60), objects(60, 1)
    images = torch.zeros(60, 1, *SIZE)
    for image, box in zip(images, boxes[:, 0].long().tolist(), strict=True):
        image[:, box[1] : box[3], box[0] : box[2]] = 1
    moved = moved_images(images, geometry)
    found, kept = moved_boxes(boxes, torch.zeros(60, 1).long(), geometry, SIZE)
    here = 0
    for image, box, label in zip(moved, found[:, 0].tolist(), kept[:, 0], strict=True):
        if label == -1:
            continue
        here += 1
        rows, columns = (image[0] > 0.5).nonzero().T
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        for value, expected in zip(seen, box, strict=True):
            assert abs(float(value) - expected) <= 1.01
    assert here > 40


def test_images_are_windows_resized() -> None:
    """A window of half the size is the image twice as large: pixels in pairs, but for borders."""
    ramp = torch.arange(WIDTH, dtype=torch.float64).expand(1, 1, HEIGHT, WIDTH)
    row = torch.tensor([[0.0, 10, 6, 20, 30]])
    moved = moved_images(ramp, row)[0, 0]
    expected = 6 + (torch.arange(WIDTH) + 0.5) / 2 - 0.5
    torch.testing.assert_close(moved[:, 1:-1], expected.double().expand(HEIGHT, WIDTH)[:, 1:-1])
    row[0, 0] = 1
    assert torch.equal(moved_images(ramp, row)[0, 0], moved.flip(-1))


def test_what_belongs_to_a_scene_moves_alike() -> None:
    images, geometry = pictures(12), geometries(12)
    other = images.clone()
    assert torch.equal(moved_images(images, geometry), moved_images(other, geometry))
    floats = moved_images(images.float(), geometry)
    assert (floats - moved_images(images, geometry).float()).abs().max() <= 1.01
    alone = [moved_images(images[i : i + 1], geometry[i : i + 1]) for i in range(12)]
    assert torch.equal(torch.cat(alone), moved_images(images, geometry))


@pytest.mark.parametrize(
    ("box", "label"),
    [
        ([10.0, 0, 20, 10], 3),  # a quarter: the window begins in the middle of both sides
        ([10.0, 0, 19.9, 10], -1),
        ([15.0, 5, 15.5, 5.5], 3),  # small, but whole
        ([14.6, 10, 15.9, 20], -1),  # most of it is left, 0.9 · 2 pixels wide
        ([14.6, 10, 16.1, 20], 3),
        ([0.0, 0, 15, 40], -1),  # beside the window
        ([0.0, 0, 60, 40], 3),
    ],
)
def test_what_becomes_of_an_object_that_is_cut(box: list[float], label: int) -> None:
    geometry = torch.tensor([[0.0, 5, 15, 20, 30]])
    found, kept = moved_boxes(torch.tensor([[box]]), torch.tensor([[3]]), geometry, SIZE)
    assert kept.tolist() == [[label]]
    assert (found.abs().sum() == 0) == (label == -1)
    assert found.min() >= 0
    assert (found <= torch.tensor([60.0, 40, 60, 40])).all()


def test_rows_without_an_object_stay() -> None:
    labels = torch.tensor([[0, -1, -1], [-100, -100, -100], [-1, -1, -1]])
    boxes = objects(3, 3).masked_fill((labels < 0)[..., None], 0)
    geometry = torch.tensor([[1.0, 0, 0, 30, 40], [1, 9, 9, 20, 20], [1, 5, 5, 30, 30]])
    before = boxes.clone(), labels.clone()
    found, kept = moved_boxes(boxes, labels, geometry, SIZE)
    assert torch.equal(kept[1:], labels[1:])
    assert kept[0, 1:].tolist() == [-1, -1]
    assert (found[labels < 0] == 0).all()
    assert torch.equal(boxes, before[0])
    assert torch.equal(labels, before[1])


def test_bad_input() -> None:
    geometry, labels = still(2, SIZE), torch.zeros(2, 1, dtype=torch.int64)
    with pytest.raises(ShapeError, match=r"must be \(4, 5\): mirrored, top, left, height, width"):
        moved_images(pictures(), geometry)
    with pytest.raises(ShapeError, match="must be \\(batch, channels, height, width\\)"):
        moved_images(pictures()[0], geometry)
    with pytest.raises(ShapeError, match=r"boxes .* must be \(batch, objects, 4\)"):
        moved_boxes(objects(2, 2), labels, geometry, SIZE)
    with pytest.raises(ShapeError, match=r"must be \(2, 5\)"):
        moved_boxes(objects(2, 1), labels, geometry[:1], SIZE)
    with pytest.raises(DataError, match=r"40 x 60 pixels .* an image of 20 x 60"):
        moved_images(pictures(2)[:, :, :20], geometry)
    for row in ([0, -1, 0, 9, 9], [0, 0, -1, 9, 9], [0, 0, 55, 9, 9], [0, 0, 0, 0, 9]):
        with pytest.raises(DataError, match="give images of the size for which"):
            moved_boxes(objects(1, 1), labels[:1], torch.tensor([row]).float(), SIZE)
