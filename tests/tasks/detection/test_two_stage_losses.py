"""The losses of Faster R-CNN on rows made up: over ranks, and what does not count."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import PartialState
from tests.trajectory.processes import in_two_processes
from torch import Tensor

from congener.errors import DataError, ShapeError
from congener.tasks.detection.criteria import two_stage_losses
from congener.tasks.detection.rows import join_rows
from congener.types import Batch


def made_up(counts: tuple[int, ...]) -> tuple[Tensor, Batch]:
    """Rows at random, of 60 anchors and 20 proposals, and objects near some of them."""
    generator = torch.Generator().manual_seed(len(counts))
    corner = 40 * torch.rand(len(counts), 80, 2, generator=generator)
    places = torch.cat((corner, corner + 6 + 14 * torch.rand(corner.shape, generator=generator)), 2)
    places[0, 75:] = 0
    noise = torch.rand(places.shape, generator=generator)
    rows = join_rows(torch.randn(*corner.shape[:2], 4, generator=generator), None,
                     (places + noise) * places.any(2, keepdim=True), places)  # fmt: skip
    labels = torch.full((len(counts), 5), -1)
    boxes = places[:, [1, 5, 61, 65, 70]] + 1
    for image, count in enumerate(counts):
        labels[image, : max(0, count)] = torch.arange(max(0, count)) % 3
        if count < 0:
            labels[image] = -100
    boxes[labels < 0] = 0
    draw = torch.arange(len(counts)) + 7
    return rows, {"boxes": boxes, "labels": labels, "crowd": labels == 9, "draw": draw}


def losses(rows: Tensor, batch: Batch, **options: Any) -> dict[str, Tensor]:
    given = (batch[key] for key in ("boxes", "labels", "crowd", "draw"))
    return two_stage_losses(rows, *given, proposals=20, **options)


def part(batch: Batch, rows: Any) -> Batch:
    return {key: value[rows] for key, value in batch.items()}


COUNTS = (3, 0, -1, 5, 1)


def of_this_process(rank: int) -> tuple[list[Tensor], Tensor]:
    PartialState(cpu=True)
    rows, batch = made_up(COUNTS)
    mine = slice(0, 2) if rank == 0 else slice(2, 5)
    own = rows[mine].clone().requires_grad_()
    found = losses(own, part(batch, mine))
    (slope,) = torch.autograd.grad(torch.stack([*found.values()]).sum(), own)
    return [value.detach() for value in found.values()], slope


def test_two_processes_are_one(tmp_path: Path) -> None:
    rows, batch = made_up(COUNTS)
    rows.requires_grad_()
    found = losses(rows, batch)
    assert all(value > 0 for value in found.values())
    (slope,) = torch.autograd.grad(torch.stack([*found.values()]).sum(), rows)
    both = in_two_processes(tmp_path, of_this_process)
    for values, _ in both:
        torch.testing.assert_close(values, [value.detach() for value in found.values()])
    torch.testing.assert_close(torch.cat([slope_ for _, slope_ in both]) / 2, slope)


def test_images_that_are_not_annotated_and_places_without_a_proposal_are_absent() -> None:
    rows, batch = made_up(COUNTS)
    found = losses(rows, batch)
    wild = rows.clone()
    wild[2], wild[0, 75:, :4] = torch.nan, 50.0
    wild[2, :, -4:] = rows[2, :, -4:]
    again = losses(wild.requires_grad_(), batch)
    without = losses(rows[[0, 1, 3, 4]], part(batch, [0, 1, 3, 4]))
    for name, value in found.items():
        torch.testing.assert_close(again[name].detach(), value)
        torch.testing.assert_close(without[name], value)
    (slope,) = torch.autograd.grad(torch.stack([*again.values()]).sum(), wild)
    assert not slope[2].any()
    assert not slope[0, 75:].any()
    own = rows[2:3].clone().requires_grad_()
    unknown = losses(own, part(batch, slice(2, 3)))
    assert all(value == 0 for value in unknown.values())
    (slope,) = torch.autograd.grad(torch.stack([*unknown.values()]).sum(), own)
    assert not slope.any()
    empty = losses(rows[1:2], part(batch, slice(1, 2)))
    assert empty["box"] == empty["rpn_box"] == 0
    assert empty["classification"] > 0 < empty["objectness"]


def test_a_crowd_is_no_background() -> None:
    rows, batch = made_up((0, 0))
    crowded = {key: value.clone() for key, value in batch.items()}
    crowded["boxes"][0, 0], crowded["labels"][0, 0] = torch.tensor([-5.0, -5, 70, 70]), 1
    crowded["crowd"][0, 0] = True
    found = losses(rows, crowded)
    for name, value in losses(rows[1:], part(batch, slice(1, 2))).items():
        torch.testing.assert_close(found[name], value)


def test_wrong_rows_say_so() -> None:
    rows, batch = made_up((1, 1))
    with pytest.raises(DataError, match="A label is 3, and the network tells 3 classes"):
        losses(rows, batch | {"labels": batch["labels"] + 3})
    with pytest.raises(ShapeError, match="10 rows of an image cannot end in 20 proposals"):
        losses(rows[:, :10], batch)


def test_an_object_without_a_side_is_none() -> None:
    rows, batch = made_up((3, 2))
    boxes, labels = batch["boxes"].clone(), batch["labels"].clone()
    boxes[0, 1, 2] = boxes[0, 1, 0]
    labels[0, 1] = -1
    flat = losses(rows, batch | {"boxes": boxes})
    absent = losses(rows, batch | {"boxes": boxes, "labels": labels})
    assert flat == absent
    assert all(value.isfinite() for value in flat.values())
