"""Augmentation of scenes: IKD's rule, what is drawn, and that it depends on ids alone."""

from typing import Any

import pytest
import torch
from torch import Tensor

from congener.errors import DataError
from congener.ops.keyed_random import keyed_uniform
from congener.tasks.detection import augment
from congener.tasks.detection.geometry import still

COUNT, SIZE = 600, (24, 36)
IDS = torch.arange(1000, 1000 + COUNT)
IMAGES = torch.randint(
    0, 256, (COUNT, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
LARGE, SMALL = [0.0, 0, 10, 10], [0.0, 0, 5, 5]


def scene(*objects: tuple[list[float], int], count: int = COUNT) -> tuple[Tensor, Tensor]:
    """As many scenes of one kind: boxes and labels."""
    boxes = torch.tensor([box for box, _ in objects]).repeat(count, 1, 1)
    return boxes, torch.tensor([label for _, label in objects]).repeat(count, 1)


NOTHING = scene(([0.0] * 4, -1), ([0.0] * 4, -1))
UNKNOWN = scene(([0.0] * 4, -100), ([0.0] * 4, -100))
ALL_SMALL = scene((SMALL, 0), (SMALL, 1), ([0.0] * 4, -1))
ONE_LARGE = scene((SMALL, 0), (LARGE, 1), ([0.0] * 4, -1))


def made(
    name: str,
    scenes: tuple[Tensor, Tensor] = ONE_LARGE,
    rows: Tensor | None = None,
    seed: int = 0,
    epoch: int = 0,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    rows = torch.arange(COUNT) if rows is None else rows
    given = IMAGES[rows], scenes[0][rows], scenes[1][rows], IDS[rows]
    before = [value.clone() for value in given]
    if name == "sample_specific":
        options = {"small": 8, **options}
    images, geometry = getattr(augment, name)(*given, seed=seed, epoch=epoch, **options)
    assert all(torch.equal(value, old) for value, old in zip(given, before, strict=True))
    assert images.dtype == torch.uint8
    return images, geometry


def changed(images: Tensor) -> Tensor:
    return (images != IMAGES).flatten(1).any(1)


def cropped(geometry: Tensor) -> Tensor:
    return (geometry[:, 1:] != still(len(geometry), SIZE)[:, 1:]).any(1)


def test_none() -> None:
    images, geometry = made("none")
    assert torch.equal(images, IMAGES)
    assert torch.equal(geometry, still(COUNT, SIZE))


def test_flip() -> None:
    images, geometry = made("flip")
    assert torch.equal(images, IMAGES)
    assert not cropped(geometry).any()
    assert geometry[:, 0].unique().tolist() == [0, 1]
    assert geometry[:, 0].mean() == pytest.approx(0.5, abs=0.06)
    assert made("flip", flip=0.2)[1][:, 0].mean() == pytest.approx(0.2, abs=0.05)
    assert made("flip", flip=0)[1][:, 0].sum() == 0
    assert made("flip", flip=1)[1][:, 0].sum() == COUNT


@pytest.mark.parametrize("name", ["crop_flip", "sample_specific"])
def test_windows(name: str) -> None:
    """Whole pixels, uniform in size and place, drawn apart from each other and from mirroring."""
    images, geometry = made(name, scale=0.5)
    assert torch.equal(images, IMAGES)
    mirrored, top, left, height, width = geometry.T
    assert torch.equal(geometry, geometry.floor())
    for start, length, full in ((top, height, 24), (left, width, 36)):
        assert length.min() == full // 2
        assert length.max() == full
        assert length.mean() / full == pytest.approx(0.75, abs=0.02)
        assert start.min() == 0
        assert ((start + length) <= full).all()
        assert ((start + length) == full).any()
        narrow = length < 0.7 * full
        share = start[narrow] / (full - length[narrow])
        assert share.mean() == pytest.approx(0.5, abs=0.06)
        assert share.std() > 0.27
    share = top / (24 - height).clamp(min=1)
    together = torch.stack((mirrored, height, width, share, left / (36 - width).clamp(min=1)))
    assert (torch.corrcoef(together) - torch.eye(5)).abs().max() < 0.2
    assert torch.equal(mirrored, made("flip")[1][:, 0])


def test_windows_are_rounded_as_the_authors_round_them() -> None:
    draws = keyed_uniform(IDS, seed=0, epoch=0, count=3)[:, 1:].tolist()
    geometry = made("sample_specific")[1]
    for (down, across), row in zip(draws, geometry.tolist(), strict=True):
        assert row[3] == int(24 * (0.8 + 0.2 * down) + 0.5)
        assert row[4] == int(36 * (0.8 + 0.2 * across) + 0.5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("none", {}),
        ("flip", {}),
        ("crop_flip", {"jitter": 0.3}),
        ("sample_specific", {"noise": 0.5}),
        ("sample_specific", {"noise": 0.5, "jitter": 0.3}),
    ],
)
def test_whatever_the_batch(name: str, options: dict) -> None:
    kinds = (ALL_SMALL, ONE_LARGE)
    mixed = tuple(torch.cat([kind[i][: COUNT // 2] for kind in kinds]) for i in (0, 1))
    images, geometry = made(name, mixed, **options)
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(5)
    parts = [made(name, mixed, rows, **options) for rows in order.split(170)]
    assert torch.equal(torch.cat([part[0] for part in parts]), images[order])
    assert torch.equal(torch.cat([part[1] for part in parts]), geometry[order])
    if name != "none":
        for other in ({"epoch": 1}, {"seed": 1}):
            assert not torch.equal(made(name, mixed, **options, **other)[1], geometry)


def test_scenes_of_small_objects_are_noised_and_never_cropped() -> None:
    images, geometry = made("sample_specific", ALL_SMALL)
    assert not cropped(geometry).any()
    noised = changed(images)
    assert noised.float().mean() == pytest.approx(0.3, abs=0.06)
    assert torch.equal(geometry, made("flip")[1])
    mirrored = geometry[:, 0] == 1
    assert noised[mirrored].float().mean() == pytest.approx(0.3, abs=0.08)


def test_scenes_with_a_large_object_are_cropped_and_never_noised() -> None:
    for epoch in range(4):
        images, geometry = made("sample_specific", ONE_LARGE, epoch=epoch, noise=1)
        assert torch.equal(images, IMAGES)
        assert cropped(geometry).float().mean() > 0.9
        assert (geometry[:, 3:] >= 0.8 * still(COUNT, SIZE)[:, 3:] - 0.5).all()


@pytest.mark.parametrize(
    ("scenes", "small"),
    [
        (NOTHING, True),
        (UNKNOWN, False),
        (scene(([0.0, 0, 8, 8], 0)), False),  # exactly small², which is not below it
        (scene(([0.0, 0, 8, 7.99], 0)), True),
        (scene(([0.0, 0, 30, 2], 0)), True),  # the area counts
        (scene((LARGE, -1), (SMALL, 0)), True),  # a crowd, whose label the caller has taken away
        (scene((LARGE, 0)), False),
    ],
)
def test_what_counts_as_small(scenes: tuple[Tensor, Tensor], small: bool) -> None:
    images, geometry = made("sample_specific", scenes, noise=1)
    assert bool(changed(images).all()) == small
    assert bool(changed(images).any()) == small
    assert bool(cropped(geometry).any()) != small


def test_the_defaults_are_the_authors() -> None:
    boxes, labels = scene(([0.0, 0, 32, 31.9], 0), count=2)
    boxes[1, 0, 3] = 32
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    noised = windows = 0
    for epoch in range(300):
        found, geometry = augment.sample_specific(
            images, boxes, labels, torch.tensor([1, 2]), seed=0, epoch=epoch
        )
        assert not found[1].any()
        assert geometry[0, 3:].tolist() == [64, 64]
        noised += int(found[0].any())
        windows += int((geometry[1, 3:] < 64).any())
    assert 0.22 < noised / 300 < 0.38
    assert windows > 280


def test_the_noise() -> None:
    """σ = 0.08 of pixels in [0, 1], cut down to whole levels, apart for each value."""
    grey = torch.full((8, 3, 64, 64), 128, dtype=torch.uint8)
    boxes, labels = scene((SMALL, 0), count=8)
    found = augment.sample_specific(grey, boxes, labels, IDS[:8], seed=0, epoch=0, noise=1)[0]
    change = found.double() - 128
    assert change.std() == pytest.approx(0.08 * 255, rel=0.02)
    assert change.mean() == pytest.approx(-0.5, abs=0.2)
    within = (change.abs() < 0.08 * 255).double().mean()
    assert within == pytest.approx(0.683, abs=0.01)
    rows = change.flatten(1)
    assert (torch.corrcoef(rows) - torch.eye(8)).abs().max() < 0.05
    assert (
        abs(torch.corrcoef(torch.stack((rows[:, :-1].ravel(), rows[:, 1:].ravel())))[0, 1]) < 0.02
    )
    for level in (0, 255):
        flat = torch.full_like(grey, level)
        ends = augment.sample_specific(flat, boxes, labels, IDS[:8], seed=0, epoch=0, noise=1)[0]
        assert (ends == level).double().mean() == pytest.approx(0.5, abs=0.03)
    still_grey = augment.sample_specific(
        grey, boxes, labels, IDS[:8], seed=0, epoch=0, noise=1, sigma=0
    )[0]
    assert torch.equal(still_grey, grey)


def test_the_noise_is_apart_from_all_else_that_is_drawn() -> None:
    ids, grey = torch.arange(4000), torch.full((4000, 1, 4, 4), 128, dtype=torch.uint8)
    boxes, labels = scene((SMALL, 0), count=4000)
    images, geometry = augment.sample_specific(grey, boxes, labels, ids, seed=0, epoch=0)
    noised = (images != grey).flatten(1).any(1)
    change = images[noised].flatten(1).double() - 128
    assert change.mean(0).abs().max() < 3  # of 20.4, over 1200 images
    mirrored = geometry[noised, 0].double()
    together = torch.corrcoef(torch.cat((change.T, mirrored[None])))
    assert together[-1, :-1].abs().max() < 0.15


@pytest.mark.parametrize("scenes", [ALL_SMALL, ONE_LARGE, UNKNOWN])
def test_without_noise_and_crops_it_is_a_flip(scenes: tuple[Tensor, Tensor]) -> None:
    images, geometry = made("sample_specific", scenes, noise=0, scale=1)
    assert torch.equal(images, IMAGES)
    assert torch.equal(geometry, made("flip")[1])


def test_until() -> None:
    for scenes in (ALL_SMALL, ONE_LARGE):
        for epoch in (0, 15, 16, 23):
            images, geometry = made("sample_specific", scenes, epoch=epoch, until=16)
            wanted = "sample_specific" if epoch < 16 else "flip"
            expected = made(wanted, scenes, epoch=epoch)
            assert torch.equal(images, expected[0])
            assert torch.equal(geometry, expected[1])
    late = made("sample_specific", ALL_SMALL, epoch=3, until=1, jitter=0.3)
    assert torch.equal(late[0], made("crop_flip", epoch=3, jitter=0.3)[0])


@pytest.mark.parametrize("name", ["crop_flip", "sample_specific"])
def test_jitter(name: str) -> None:
    """Of a grey image contrast changes nothing; of two levels it changes their distance."""
    images = torch.full((400, 1, 16, 16), 100, dtype=torch.uint8)
    scenes = scene(([0.0, 0, 32, 32], 0), count=400)
    ids = torch.arange(400)
    found = getattr(augment, name)(images, *scenes, ids, seed=0, epoch=0, jitter=0.4)[0]
    level = found[:, 0, 0, 0].double()
    assert level.min() >= 59
    assert level.max() <= 140
    assert level.mean() == pytest.approx(100, abs=3)
    assert level.std() == pytest.approx(80 / 12**0.5, rel=0.1)
    images[..., ::2] = 140
    found = getattr(augment, name)(images, *scenes, ids, seed=0, epoch=0, jitter=0.4)[0].double()
    ratio = (found[:, 0, 0, 0] - found[:, 0, 0, 1]) / (found.flatten(1).mean(1) / 3)
    assert 0.57 < ratio.min() < 0.65
    assert 1.35 < ratio.max() < 1.46
    assert ratio.std() > 0.2
    assert abs(torch.corrcoef(torch.stack((ratio, level)))[0, 1]) < 0.2


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("flip", {"flip": 1.5}, "flip=1.5 must be from 0 to 1"),
        ("crop_flip", {"scale": 0}, "scale=0 must be above 0 and at most 1"),
        ("crop_flip", {"scale": 1.1}, "scale=1.1 must be above 0"),
        ("crop_flip", {"jitter": -0.1}, "jitter=-0.1 must be from 0 to 1"),
        ("sample_specific", {"noise": 2}, "noise=2 must be from 0 to 1"),
        ("sample_specific", {"sigma": -1}, "must not be negative"),
        ("sample_specific", {"small": -1}, "must not be negative"),
    ],
)
def test_options_that_cannot_be(name: str, options: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        made(name, **options)
