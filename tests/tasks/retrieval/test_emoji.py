"""Emoji read from npm packages as they are, right and damaged."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tasks.retrieval.emoji_files import listed, picture, save_emoji

from congener.errors import DataError
from congener.tasks.retrieval import data
from congener.tasks.retrieval.data.emoji import read_emoji


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_emoji(tmp_path_factory.mktemp("emoji"))


def test_names_categories_and_pictures(folder: Path) -> None:
    found = read_emoji(folder, size=64)
    kept = [number for number in range(12) if number != 9]  # which twitter does not draw
    assert found.names == [f"emoji {n} short too" for n in kept]
    assert found.categories == ["Flags", "Objects", "Symbols"]
    assert found.category.tolist() == [{0: 2, 1: 0, 2: 1}[n % 3] for n in kept]
    assert list(found.images) == ["google", "twitter"]
    for vendor, images in found.images.items():
        assert images.shape == (11, 3, 64, 64)
        assert images.dtype == torch.uint8
        for place, number in enumerate(kept):
            drawn = Image.open(io.BytesIO(picture(number, vendor)))
            pixels = torch.tensor(np.asarray(drawn)).long().permute(2, 0, 1)
            expected = torch.where(pixels[3:] > 0, pixels[:3], 255)
            assert torch.equal(images[place].long(), expected)


def test_a_smaller_picture_has_the_mean_of_its_pixels(folder: Path) -> None:
    whole = read_emoji(folder, size=64).images["google"].double()
    half = read_emoji(folder, size=32).images["google"].double()
    expected = whole.unflatten(3, (32, 2)).unflatten(2, (32, 2)).mean((3, 5))
    assert (half - expected).abs().max() <= 1


def test_one_vendor_alone_has_all_of_its_emoji(folder: Path) -> None:
    assert len(read_emoji(folder, vendors=["google"]).names) == 12


def test_files_are_read_once(folder: Path, tmp_path: Path) -> None:
    assert read_emoji(folder, 8) is read_emoji(folder, 8)
    read_emoji(save_emoji(tmp_path), 8)
    save_emoji(tmp_path, 15)
    assert len(read_emoji(tmp_path, 8).names) == 14  # other files, though at the same place


def test_absent_files_name_the_command(tmp_path: Path) -> None:
    command = (
        r"npm pack emoji-datasource-google@16\.0\.0 emoji-datasource-twitter@16\.0\.0 "
        "--pack-destination data/emoji$"
    )
    with pytest.raises(DataError, match=rf"no file emoji-datasource-google-16.*{command}"):
        read_emoji(tmp_path)
    save_emoji(tmp_path, vendors=["google"])
    with pytest.raises(DataError, match=r"no file emoji-datasource-twitter-16"):
        read_emoji(tmp_path)


def test_the_root_is_data_emoji(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_emoji(tmp_path / "data" / "emoji")
    monkeypatch.chdir(tmp_path)
    assert len(read_emoji().names) == 11


def test_two_packages_of_a_vendor(tmp_path: Path) -> None:
    save_emoji(tmp_path)
    save_emoji(tmp_path, version="15.0.0")
    with pytest.raises(DataError, match=r"has 2 files of google \(.*15.0.0.tgz, .*\); keep one"):
        read_emoji(tmp_path)


def test_another_version(tmp_path: Path) -> None:
    save_emoji(tmp_path, version="15.1.2")
    with pytest.raises(DataError, match=r"is version 15\.1\.2 of its package, .* that of 16\.0\.0"):
        read_emoji(tmp_path)
    save_emoji(tmp_path / "bare", changes={"package/package.json": None})
    with pytest.raises(DataError, match="is version unknown"):
        read_emoji(tmp_path / "bare")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no archive", "empty"])
def test_a_damaged_package(tmp_path: Path, damage: str) -> None:
    save_emoji(tmp_path)
    path = tmp_path / "emoji-datasource-twitter-16.0.0.tgz"
    good = path.read_bytes()
    bad = {
        "truncated": good[: len(good) // 2],
        "flipped": good[:200] + bytes(255 - byte for byte in good[200:400]) + good[400:],
        "no archive": b"<html>not found</html>",
        "empty": b"",
    }
    path.write_bytes(bad[damage])
    with pytest.raises(
        DataError, match=r"twitter.*damaged.*delete it and fetch it again with: npm"
    ):
        read_emoji(tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "package/emoji.json is missing"),
        (b"{", "package/emoji.json: Expecting"),
        (b"[1]", "package/emoji.json: argument of type 'int'"),
        (json.dumps([{"name": "x"}]).encode(), "an emoji lacks one of name, short_names, cat"),
    ],
)
def test_a_damaged_list(tmp_path: Path, content: bytes | None, problem: str) -> None:
    save_emoji(tmp_path, vendors=["google"], changes={"package/emoji.json": content})
    with pytest.raises(DataError, match=rf"is damaged \({problem}.*fetch it again"):
        read_emoji(tmp_path, vendors=["google"])


def test_a_picture_that_is_missing_or_damaged(tmp_path: Path) -> None:
    place = f"package/img/twitter/64/{listed(12)[4]['image']}"
    save_emoji(tmp_path / "missing", changes={place: None})
    with pytest.raises(DataError, match=r"lists 1f004.png but has no package/img/twitter/64/1f00"):
        read_emoji(tmp_path / "missing")
    save_emoji(tmp_path / "damaged", changes={place: picture(4, "twitter")[:90]})
    with pytest.raises(DataError, match=r"twitter/64/1f004.png in .* cannot be read as an image"):
        read_emoji(tmp_path / "damaged")


def test_nothing_that_all_draw(tmp_path: Path) -> None:
    none = [{**entry, "has_img_twitter": False} for entry in listed(4)]
    save_emoji(tmp_path)
    save_emoji(tmp_path, 4, changes={"package/emoji.json": json.dumps(none).encode()})
    with pytest.raises(DataError, match="lists no emoji that twitter and google all draw"):
        read_emoji(tmp_path, vendors=["twitter", "google"])


@pytest.mark.parametrize("vendors", [[], ["google", "google"]])
def test_vendors_that_are_no_cameras(folder: Path, vendors: list[str]) -> None:
    with pytest.raises(DataError, match="names none, or one twice"):
        read_emoji(folder, vendors=vendors)


def test_a_size_that_is_none(folder: Path) -> None:
    with pytest.raises(DataError, match="size=0 is not a number of pixels"):
        read_emoji(folder, size=0)


def test_identities_are_emoji_and_cameras_are_vendors(folder: Path) -> None:
    found = data.emoji(folder, size=8, train=7)
    assert found.train.labels.tolist() == [n // 2 for n in range(14)]
    assert found.test.labels.tolist() == [7 + n // 2 for n in range(8)]
    assert found.train.cameras.tolist() == [0, 1] * 7
    images = read_emoji(folder, 8)
    for dataset in (found.train, found.test):
        for image, label, camera in zip(
            dataset.images, dataset.labels, dataset.cameras, strict=True
        ):
            place = images.names.index(found.names[int(label)])
            assert torch.equal(image, list(images.images.values())[int(camera)][place])
    assert sorted(found.names) == sorted(images.names)
    assert list(found.names) != images.names  # the package's order goes by category
    assert found.teacher is None


def test_the_division_is_always_the_same(folder: Path) -> None:
    first = data.emoji(folder, size=8, train=7).names
    torch.manual_seed(99)
    assert data.emoji(folder, size=8, train=9).names == first


@pytest.mark.parametrize("train", [0, 11, 20])
def test_a_division_that_leaves_nothing(folder: Path, train: int) -> None:
    with pytest.raises(DataError, match=f"train={train} .*of 11"):
        data.emoji(folder, train=train)
