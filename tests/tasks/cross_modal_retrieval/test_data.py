"""Loaders: emoji, NUS-WIDE and CIFAR-10 from small files in their original formats."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.tasks.image_classification.conftest import write_cifar10

from congener.errors import DataError
from congener.tasks.cross_modal_retrieval import data
from congener.tasks.cross_modal_retrieval.data import emoji as emoji_module
from congener.tasks.cross_modal_retrieval.data.descriptors import (
    colour_histogram,
    gradient_histogram,
)
from congener.tasks.cross_modal_retrieval.data.splits import as_text

CATEGORIES = ["Animals", "Component", "Flags"]


def emoji(root: Any, size: int = 32, vendors: tuple[str, ...] = ("google",)) -> SimpleNamespace:
    """Twenty: number i has the name Thing i, the category i % 3, and pixels that tell which."""
    category = torch.arange(20) % 3
    images = {
        vendor: torch.stack(
            [torch.full((3, size, size), 10 * place + i, dtype=torch.uint8) for i in range(20)]
        )
        for place, vendor in enumerate(vendors)
    }
    names = [f"Thing {i}" for i in range(20)]
    return SimpleNamespace(names=names, categories=CATEGORIES, category=category, images=images)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emoji_module, "read_emoji", emoji)


def numbers(texts: torch.Tensor) -> list[int]:
    return [int(as_text(row).removeprefix("thing ")) for row in texts]


def test_emoji_without_components_each_once() -> None:
    splits = data.emoji_names(queries=4, size=6)
    assert splits.label_names == ("Animals", "Flags")
    asked, learnt = numbers(splits.test.pairs.second[:4]), numbers(splits.train.pairs.second)
    assert sorted(asked + learnt) == [i for i in range(20) if i % 3 != 1]
    assert numbers(splits.test.pairs.second[4:]) == learnt
    assert splits.test.query.sum() == 4
    for dataset in (splits.train, splits.test):
        place = torch.tensor(numbers(dataset.pairs.second))
        assert torch.equal(dataset.pairs.first[:, 0, 0, 0].long(), place)
        assert torch.equal(dataset.pairs.labels, place % 3 // 2)
        assert dataset.pairs.first.shape[1:] == (3, 6, 6)


def test_the_division_of_emoji_is_always_the_same_and_mixed() -> None:
    torch.manual_seed(5)
    one = numbers(data.emoji_names(queries=4).train.pairs.second)
    torch.manual_seed(6)
    assert numbers(data.emoji_names(queries=4).train.pairs.second) == one
    assert one != sorted(one)


def test_an_emoji_of_two_vendors_makes_two_pairs_on_one_side() -> None:
    splits = data.emoji_names(vendors=["google", "twitter"], queries=4)
    place = torch.tensor(numbers(splits.train.pairs.second))
    assert torch.equal(place[0::2], place[1::2])
    pixels = splits.train.pairs.first[:, 0, 0, 0].long()
    assert torch.equal(pixels - place, torch.tensor([0, 10]).repeat(len(place) // 2))
    assert not set(place.tolist()) & set(numbers(splits.test.pairs.second[:8]))
    assert int(splits.test.query.sum()) == 8


@pytest.mark.parametrize("queries", [0, 12, 13])
def test_emoji_must_be_left(queries: int) -> None:
    with pytest.raises(DataError, match=f"queries={queries} of 13 emoji"):
        data.emoji_names(queries=queries)


def write_nus(root: Path, *, train: int = 6, test: int = 5) -> None:
    """Image i of a part has descriptors i, tag i % 1000, and the concepts i % 2 and (i + 1) % 4."""
    for folder in (
        "Groundtruth/TrainTestLabels",
        "ConceptsList",
        "NUS_WID_Tags",
        "Low_Level_Features",
    ):
        (root / folder).mkdir(parents=True)
    (root / "ConceptsList" / "Concepts81.txt").write_text("sky\ncat\ndog\nsea\n")
    for part, count in (("Train", train), ("Test", test)):
        for number, concept in enumerate(["sky", "cat", "dog", "sea"]):
            rows = [int(number in (i % 2, (i + 1) % 4)) for i in range(count)]
            path = root / "Groundtruth" / "TrainTestLabels" / f"Labels_{concept}_{part}.txt"
            path.write_text("".join(f"{row}\n" for row in rows))
        tags = [[int(i % 5 == tag) for tag in range(5)] for i in range(count)]
        lines = ["\t".join(map(str, row)) + "\t\n" for row in tags]
        (root / "NUS_WID_Tags" / f"{part}_Tags1k.dat").write_text("".join(lines))
        for width, name in enumerate(["CH", "CM55", "CORR", "EDH", "WT"], start=1):
            lines = [" ".join([f"{i}.{width}"] * width) + " \n" for i in range(count)]
            path = root / "Low_Level_Features" / f"{part}_Normalized_{name}.dat"
            path.write_text("".join(lines))
        bag = [f"{i} {2 * i} \n" for i in range(count)]
        (root / "Low_Level_Features" / f"BoW_{part}_int.dat").write_text("".join(bag))


def test_nus_wide_as_published(tmp_path: Path) -> None:
    write_nus(tmp_path)
    splits = data.nus_wide(tmp_path)
    assert splits.label_names == ("sky", "cat", "dog", "sea")
    first, second, labels = splits.train.pairs
    assert first.shape == (6, 15)
    assert labels.dtype == torch.int8
    image = first[:, 0].long()
    assert sorted(image.tolist()) == list(range(6))
    for place, i in enumerate(image.tolist()):
        assert first[place].tolist() == pytest.approx(
            [i + w / 10 for w in range(1, 6) for _ in range(w)]
        )
        assert second[place].tolist() == [float(i % 5 == tag) for tag in range(5)]
        assert labels[place].nonzero().flatten().tolist() == sorted({i % 2, (i + 1) % 4})
    assert int(splits.test.query.sum()) == 5


def test_nus_wide_in_part(tmp_path: Path) -> None:
    write_nus(tmp_path)
    splits = data.nus_wide(tmp_path, features=["BoW", "CH"], concepts=2, train=4, queries=2)
    assert splits.label_names == ("sky", "cat")  # of 6 each is an image's i % 2
    assert splits.train.pairs.first.shape == (4, 3)
    assert int(splits.test.query.sum()) == 2
    assert splits.train.pairs.labels.any(1).all()


def test_nus_wide_damaged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file Concepts81\.txt"):
        data.nus_wide(tmp_path)
    write_nus(tmp_path)
    with pytest.raises(DataError, match="concepts=9: expected 2 to 4"):
        data.nus_wide(tmp_path, concepts=9)
    with pytest.raises(DataError, match=r"no file Train_Normalized_SIFT.dat"):
        data.nus_wide(tmp_path, features=["SIFT"])
    path = tmp_path / "NUS_WID_Tags" / "Test_Tags1k.dat"
    whole = path.read_text()
    path.write_text("\n".join(whole.splitlines()[:-1]))
    with pytest.raises(DataError, match=r"Test_Tags1k.dat has 4 lines, but .*Test.txt has 5"):
        data.nus_wide(tmp_path)
    path.write_text(whole + "1 0\n")
    with pytest.raises(DataError, match=r"Test_Tags1k.dat is no table of numbers"):
        data.nus_wide(tmp_path)


def test_cifar10_as_two_descriptors(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    splits = data.cifar10(tmp_path)
    assert splits.train.pairs.first.shape == (20, 128)
    assert splits.train.pairs.second.shape == (20, 256)
    assert splits.label_names[3] == "cat"
    assert splits.test.query.tolist() == [True] * 10 + [False] * 20


def test_gradients_have_a_direction() -> None:
    across = torch.arange(32, dtype=torch.uint8).mul(4).expand(1, 3, 32, 32)
    for image, direction in ((across, 0), (across.mT, 4)):
        cells = gradient_histogram(image).view(8, 16)
        assert cells[direction].sum() > 0.99 * cells.sum()
        assert float(cells.square().sum()) == pytest.approx(1)
    turned = 255 - across
    torch.testing.assert_close(gradient_histogram(turned), gradient_histogram(across))
    assert not gradient_histogram(torch.full((1, 3, 32, 32), 9, dtype=torch.uint8)).any()


def test_gradients_know_where_they_are() -> None:
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[:, :, 2:4, 28:] = 200
    cells = gradient_histogram(image).view(8, 4, 4)
    assert float(cells[:, 0, 3].square().sum()) == pytest.approx(1)
    edge = math.pi / 4
    slope = torch.tensor([[r * math.sin(edge) + c * math.cos(edge) for c in range(32)]
                          for r in range(32)])  # fmt: skip
    cells = gradient_histogram((slope * 4).to(torch.uint8).expand(1, 3, 32, 32)).view(8, 16)
    assert int(cells.sum(1).argmax()) == 2


def test_colours_are_counted_in_quarters() -> None:
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    image[:, 0, :4, 4:] = 255  # red, upper right
    image[:, 2, 4:, :4] = 64  # a second level of blue, lower left
    counts = colour_histogram(image).view(64, 2, 2)
    assert counts[48].tolist() == [[0, 1], [0, 0]]
    assert counts[1].tolist() == [[0, 0], [1, 0]]
    assert counts[0].tolist() == [[1, 0], [0, 1]]
    assert float(counts.sum()) == 4
