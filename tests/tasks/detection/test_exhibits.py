"""Pictures of detection: which images, what is right, where it is drawn, attention, attacks."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from matplotlib import colormaps
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from congener.analysis import _keep
from congener.report.exhibits import read_exhibits
from congener.report.svg import style
from congener.tasks.detection import Detection
from congener.tasks.detection.exhibits import NEITHER, RIGHT, TRUE, WRONG, adversarial, detections
from congener.types import Exhibit

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
SIZE = 64
Found = tuple[int, float, tuple[float, ...]]
Object = tuple[int, tuple[float, ...]]


class Scenes(Dataset[Any]):
    """Grey images; an object is (class, box), a crowd has class + 10, None is not annotated."""

    def __init__(self, *images: list[Object] | None, size: int = SIZE) -> None:
        self.images, self.size = images, size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> dict[str, Any]:
        boxes, labels = torch.zeros(8, 4), torch.full((8,), -1)
        crowd = torch.zeros(8, dtype=torch.bool)
        objects = self.images[place]
        for row, (label, box) in enumerate(objects or ()):
            boxes[row], labels[row], crowd[row] = torch.tensor(box), label % 10, label >= 10
        if objects is None:
            labels[:] = -100
        image = torch.full((3, self.size, self.size), 60 + place, dtype=torch.uint8)
        return {
            "image": image, "boxes": boxes, "labels": labels, "crowd": crowd, "index": place,
        }  # fmt: skip


class Pretended:
    """A task whose networks know by heart what they answer."""

    ignore_label = -100
    categories = ("cat", "dog", "a long name")
    normalisation = MEAN, STD

    def __init__(self, test: Scenes) -> None:
        self.splits = {"test": test}

    def collate(self, samples: Any) -> Any:
        return default_collate(samples)

    def prepare(self, batch: Any, *, train: bool, seed: int, epoch: int) -> Any:
        assert not train
        mean, std = (torch.tensor(each).view(-1, 1, 1) for each in self.normalisation)
        return dict(batch) | {"image": (batch["image"] / 255 - mean) / std}

    def respond(self, network: Any, batch: Any) -> Any:
        assert not network.training
        assert not torch.is_grad_enabled()
        return [
            {
                "boxes": torch.tensor([box for _, _, box in found]).view(-1, 4),
                "scores": torch.tensor([score for _, score, _ in found]),
                "labels": torch.tensor([label for label, _, _ in found], dtype=torch.int64),
            }
            for found in (network.known.get(place, []) for place in batch["index"].tolist())
        ]

    def call(self, network: Any, batch: Any) -> Any:
        assert not network.training
        return SimpleNamespace(maps=network.maps)


class Known(nn.Module):
    def __init__(
        self, known: Mapping[int, list[Found]] | None = None, maps: tuple[Tensor, ...] = ()
    ) -> None:
        super().__init__()
        self.known, self.maps = known or {}, list(maps)
        self.norm = nn.BatchNorm2d(3)


def shown(test: Scenes, networks: Mapping[str, nn.Module]) -> list[Exhibit]:
    return list(detections(cast(Detection, Pretended(test)), networks, {}))


def square(left: float, top: float, side: float) -> tuple[float, ...]:
    return (left, top, left + side, top + side)


A, B, C = square(8, 16, 16), square(40, 16, 8), square(8, 40, 20)


def level(row: int) -> int:
    """How bright the picture of an image is."""
    return 60 + row


def colour(name: str) -> list[int]:
    return [int(name[place : place + 2], 16) for place in (1, 3, 5)]


def test_images_with_most_objects_of_differing_size() -> None:
    """Crowds do not count, nor more than six objects; images not annotated are not shown."""
    test = Scenes(
        [(0, A)],  # 0
        [(0, A), (1, A)],  # 1: of one size
        None,
        [(0, A), (1, C)],  # 3: two sizes
        [(0, A), (1, B)],  # 4: more unlike
        [(0, A), (11, A), (11, B), (12, C)],  # 5: one object
        [(0, A)] * 7,  # 6: many
        [(0, A)] * 5 + [(0, B)],  # 7: six count the same, and these differ
    )
    (truth, _) = shown(test, {"one": Known()})
    pictures = [panel.picture for panel in truth.rows["truth"]]
    assert [int(picture[-1, -1, 0]) for picture in pictures if picture is not None] == [
        level(place) for place in (7, 6, 4, 3)
    ]
    assert [panel.caption for panel in truth.rows["truth"]] == [
        "6 objects", "7 objects", "2 objects", "2 objects",
    ]  # fmt: skip


def test_images_without_objects_are_shown_where_there_are_no_others() -> None:
    found, _ = shown(Scenes(None, []), {"silent": Known(), "loud": Known({1: [(0, 0.9, A)]})})
    assert [panel.caption for panel in found.rows["truth"]] == ["0 objects"]
    (silent,), (loud,) = found.rows["silent"], found.rows["loud"]
    assert (silent.caption, silent.hit) == ("0 of 0 found", True)
    assert (loud.caption, loud.hit) == ("0 of 0 found, 1 wrong", False)


def test_nothing_to_show() -> None:
    assert shown(Scenes(None, None), {"one": Known()}) == []
    assert shown(Scenes([(0, A)]), {}) == []


NEAR = (8.0, 16.0, 24.0, 24.0)  # half of A
FAR = (8.0, 16.0, 24.0, 23.0)


@pytest.mark.parametrize(
    ("found", "caption", "hit"),
    [
        ([(0, 0.9, A), (1, 0.3, B)], "2 of 2 found", True),
        ([(0, 0.9, A)], "1 of 2 found", False),
        ([(0, 0.9, A), (1, 0.29, B)], "1 of 2 found", False),
        ([(0, 0.9, A), (0, 0.9, B)], "1 of 2 found, 1 wrong", False),
        ([(0, 0.9, A), (1, 0.5, B), (0, 0.4, A)], "2 of 2 found, 1 wrong", False),
        ([(0, 0.9, A), (1, 0.5, B), (0, 0.2, C)], "2 of 2 found", True),
        ([(0, 0.9, NEAR), (1, 0.5, B)], "2 of 2 found", True),
        ([(0, 0.9, FAR), (1, 0.5, B)], "1 of 2 found, 1 wrong", False),
        ([], "0 of 2 found", False),
    ],
)
def test_what_is_right(found: list[Found], caption: str, hit: bool) -> None:
    exhibit, _ = shown(Scenes([(0, A), (1, B)]), {"one": Known({0: found})})
    (panel,) = exhibit.rows["one"]
    assert (panel.caption, panel.hit, panel.kind) == (caption, hit, "scene")


def test_the_better_of_two_finds_the_object() -> None:
    """Though it overlaps less: boxes are judged best first, whatever their order."""
    near = {0: [(0, 0.5, A), (0, 0.9, NEAR)]}
    exhibit, _ = shown(Scenes([(0, A)]), {"one": Known(near)})
    (panel,) = exhibit.rows["one"]
    assert panel.caption == "1 of 1 found, 1 wrong"
    assert panel.picture is not None
    lower_edge = panel.picture[24 * 6, 15 * 6].tolist()  # of the half, which is right
    assert lower_edge == colour(RIGHT)


def test_crowds_count_neither_for_nor_against() -> None:
    test = Scenes([(0, A), (11, square(32, 32, 30))])
    inside, across = square(40, 40, 10), square(24, 40, 10)
    known = Known({0: [(0, 0.9, A), (1, 0.9, inside)]})
    exhibit, _ = shown(
        test,
        {
            "good": known,
            "other class": Known({0: [(0, 0.9, A), (0, 0.9, inside)]}),
            "half": Known({0: [(0, 0.9, A), (1, 0.9, across)]}),
        },
    )
    captions = {name: (row[0].caption, row[0].hit) for name, row in exhibit.rows.items()}
    assert captions == {
        "truth": ("1 object, 1 uncounted", None),
        "good": ("1 of 1 found", True),
        "other class": ("1 of 1 found, 1 wrong", False),
        "half": ("1 of 1 found, 1 wrong", False),
    }
    for name, wanted in (("good", NEITHER), ("other class", WRONG)):
        picture = exhibit.rows[name][0].picture
        assert picture is not None
        assert picture[50 * 6, 45 * 6].tolist() == colour(wanted)
    truth = exhibit.rows["truth"][0].picture
    assert truth is not None
    assert truth[45 * 6, 32 * 6].tolist() == colour(NEITHER)
    assert truth[20 * 6, 8 * 6].tolist() == colour(TRUE)


def test_pictures_are_enlarged_and_boxes_with_them() -> None:
    """64 pixels become 384; the edge is where the box is, the words are above it."""
    exhibit, _ = shown(Scenes([(0, A)]), {"one": Known({0: [(0, 0.9, A), (1, 0.9, C)]})})
    picture = exhibit.rows["one"][0].picture
    assert picture is not None
    assert (picture.dtype, tuple(picture.shape)) == (torch.uint8, (384, 384, 3))
    for box, wanted in ((A, RIGHT), (C, WRONG)):
        left, top, right, bottom = (6 * int(edge) for edge in box)
        marked = (picture == torch.tensor(colour(wanted), dtype=torch.uint8)).all(2)
        assert marked[(top + bottom) // 2, [left, right]].all()
        assert marked[bottom, (left + right) // 2]
        assert not marked[bottom + 1, left:right].any()
        assert not marked[top + 10 : bottom - 10, left + 10 : right - 10].any()
        assert marked[top - 24 : top - 3, left : left + 30].float().mean() > 0.3
    assert int(picture[5, 5, 0]) == level(0)


@pytest.mark.parametrize(("size", "side"), [(100, 300), (384, 384), (400, 384), (1000, 384)])
def test_sizes_of_pictures(size: int, side: int) -> None:
    """By a whole factor, or smaller; a box goes along."""
    box = (0.25 * size, 0.25 * size, 0.5 * size, 0.75 * size)
    exhibit, _ = shown(Scenes([(0, box)], size=size), {"one": Known({0: [(0, 0.9, box)]})})
    picture = exhibit.rows["one"][0].picture
    assert picture is not None
    assert tuple(picture.shape) == (side, side, 3)
    marked = (picture == torch.tensor(colour(RIGHT), dtype=torch.uint8)).all(2)
    columns = marked[side // 2].nonzero().flatten()
    assert int(columns.min()) in range(side // 4 - 1, side // 4 + 2)
    assert int(columns.max()) in range(side // 2 - 1, side // 2 + 2)


def test_words_stay_within_the_picture() -> None:
    corner = (54.0, 0.0, 64.0, 10.0)
    objects: list[Object] = [(2, corner), (2, (60.0, 60.0, 80.0, 80.0))]
    exhibit, _ = shown(Scenes(objects), {"one": Known()})
    picture = exhibit.rows["truth"][0].picture
    assert picture is not None
    marked = (picture == torch.tensor(colour(TRUE), dtype=torch.uint8)).all(2)
    assert marked[4, 280:320].any()  # the word begins left of its box
    dark = (picture < 30).all(2)
    assert dark[4:24].any()  # its letters
    assert not dark[4:24, -3:].any()


def test_attention_is_the_mean_magnitude_of_each_level() -> None:
    fine, coarse = torch.zeros(1, 4, 8, 8), torch.full((1, 4, 2, 2), 3.0)
    fine[0, :, 2, 5] = torch.tensor([-8.0, 0.0, 0.0, 0.0])
    fine[0, :, 6, 1] = torch.tensor([1.0, -1.0, 1.0, 1.0])
    single = torch.ones(1, 4, 1, 1)
    networks = {"first": Known(maps=(fine, coarse, single)), "second": Known(maps=(10 * fine,))}
    _, exhibit = shown(Scenes([]), networks)
    assert list(exhibit.rows) == ["truth", "first", "second"]
    one, flat = exhibit.rows["first"]
    (other,) = exhibit.rows["second"]
    assert [one.caption, flat.caption] == ["8 × 8", "2 × 2"]
    assert {panel.kind for row in exhibit.rows.values() for panel in row} == {"scene"}
    assert one.picture is not None
    assert other.picture is not None
    assert flat.picture is not None
    assert torch.equal(one.picture, other.picture)  # a scale of its own
    grey = 60 / 255
    for row, column, strength in ((2, 5, 1.0), (6, 1, 0.5), (0, 0, 0.0)):
        wanted = 0.6 * torch.tensor(colormaps["inferno"](strength)[:3]) + 0.4 * grey
        block = one.picture[48 * row : 48 * row + 48, 48 * column : 48 * column + 48]
        assert block.flatten(0, 1).unique(dim=0).shape == (1, 3)
        torch.testing.assert_close(block[0, 0] / 255, wanted.float(), atol=0.006, rtol=0)
    assert flat.picture.flatten(0, 1).unique(dim=0).shape == (1, 3)


def test_attention_shows_the_true_boxes() -> None:
    _, exhibit = shown(Scenes([(0, A)]), {"one": Known(maps=(torch.ones(1, 1, 4, 4),))})
    picture = exhibit.rows["one"][0].picture
    assert picture is not None
    assert picture[20 * 6, 8 * 6].tolist() == [255, 255, 255]
    assert picture[20 * 6, 30 * 6].max() < 255


def test_networks_stay_as_they_were() -> None:
    network = Known().train()
    shown(Scenes([(0, A)]), {"one": network})
    assert network.training
    assert network.norm.training
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_the_report_takes_them(tmp_path: Path) -> None:
    given = shown(Scenes([(0, A), (1, B)]), {"one": Known(maps=(torch.rand(1, 2, 4, 4),))})
    images = torch.zeros(1, 3, 8, 8)
    _keep([*given, adversarial(images, images, mean=MEAN, std=STD)], tmp_path)
    with style():
        read = read_exhibits(tmp_path)
    assert [each.title for each in read] == [
        "What is found", "Where each network looks", "What the attack adds",
    ]  # fmt: skip
    pictures = [picture for each in read for _, row in each.rows for picture in row]
    assert {(picture.kind, picture.width) for picture in pictures} == {("scene", 384)}


# attacks


def test_what_an_attack_adds() -> None:
    """In pixels of [0, 1]: 4/255 is magnified 16 times, the largest power of two that fits."""
    images = torch.zeros(2, 3, 4, 4)
    step = torch.tensor([4.0, -4.0, 2.0]).view(3, 1, 1) / 255
    attacked = images.clone()
    attacked[0, :, 1, 2] += (step / torch.tensor(STD).view(3, 1, 1))[:, 0, 0]
    exhibit = adversarial(images, attacked, mean=MEAN, std=STD)
    assert list(exhibit.rows) == ["image", "attacked", "difference × 16"]
    assert "magnified 16 times" in exhibit.text
    before, after, added = ([p.picture for p in row] for row in exhibit.rows.values())
    assert all(each is not None and each.shape == (384, 384, 3) for each in (*before, *after))
    assert before[0] is not None
    assert after[0] is not None
    assert added[0] is not None
    assert before[0][0, 0].tolist() == [128, 102, 76]
    moved = after[0][96:192, 192:288].flatten(0, 1).unique(dim=0)
    assert moved.tolist() == [[132, 98, 78]]
    assert added[0][96, 192].tolist() == pytest.approx([127.5 + 64, 127.5 - 64, 127.5 + 32], abs=1)
    assert added[0][0, 0].tolist() == [128, 128, 128]
    captions = [panel.caption for panel in exhibit.rows["difference × 16"]]
    assert captions == ["at most 4.0 of 255 levels", "at most 0.0 of 255 levels"]


def test_attacks_that_leave_the_colours_or_do_nothing() -> None:
    images = torch.zeros(6, 3, 4, 4)
    same = adversarial(images, images, mean=MEAN, std=STD)
    assert list(same.rows) == ["image", "attacked", "difference × 256"]
    assert all(len(row) == 4 for row in same.rows.values())
    wild = adversarial(images, images + 100, mean=MEAN, std=STD)
    row = wild.rows["difference × 1"]
    picture = row[0].picture
    assert picture is not None
    assert int(picture.min()) == 255
    assert row[0].caption == "at most 12750.0 of 255 levels"
