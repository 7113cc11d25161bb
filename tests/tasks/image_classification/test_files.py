"""Loaders of published files and folders, right and damaged."""

import gzip
import struct
from pathlib import Path

import pytest
import torch
from PIL import Image

from congener.errors import DataError
from congener.tasks.image_classification import data


def rewrite(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def test_idx_plain_and_zipped(mnist_folder: Path) -> None:
    plain = data.mnist(mnist_folder)
    for path in list(mnist_folder.iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    zipped = data.fashion_mnist(mnist_folder)
    for splits in (plain, zipped):
        assert splits.input_shape == (1, 28, 28)
        assert (len(splits.train), len(splits.test)) == (30, 20)
        assert splits.train.labels.tolist() == [i % 10 for i in range(30)]
        assert splits.train.images.dtype == torch.uint8
        expected = torch.tensor([[(5 + 28 * r + c) % 256 for c in range(28)] for r in range(28)])
        assert torch.equal(splits.train.images[5, 0].long(), expected)
    assert plain.class_names[3] == "3"
    assert zipped.class_names[3] == "Dress"


def test_idx_names_with_a_dot(mnist_folder: Path) -> None:
    for path in list(mnist_folder.iterdir()):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    assert len(data.mnist(mnist_folder).train) == 30


@pytest.mark.parametrize("load", [data.fashion_mnist, data.mnist])
def test_missing_file(tmp_path: Path, load: type) -> None:
    with pytest.raises(DataError, match=r"There is no file .*train-images-idx3-ubyte\(\.gz\)"):
        load(tmp_path)


def test_fashion_names_its_package(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
        data.fashion_mnist(tmp_path)


def test_damaged_idx(mnist_folder: Path) -> None:
    images = mnist_folder / "train-images-idx3-ubyte"
    good = images.read_bytes()
    rewrite(images, good[:-7])
    with pytest.raises(
        DataError, match=r"holds 23529 bytes, .* announces 30 x 28 x 28 values, 23536 bytes"
    ):
        data.mnist(mnist_folder)
    rewrite(images, good + b"\0")
    with pytest.raises(DataError, match="holds 23537 bytes"):
        data.mnist(mnist_folder)
    rewrite(images, b"\x89PNG" + good[4:])
    with pytest.raises(DataError, match=r"starts with the bytes 89 50 4e 47; expected 00 00 08 03"):
        data.mnist(mnist_folder)
    rewrite(images, good[:9])
    with pytest.raises(DataError, match="ends within its header after 9 bytes"):
        data.mnist(mnist_folder)
    rewrite(images, b"")
    with pytest.raises(DataError, match="starts with the bytes nothing"):
        data.mnist(mnist_folder)


@pytest.mark.parametrize("damage", ["truncate", "flip", "not gzip"])
def test_damaged_gzip(mnist_folder: Path, damage: str) -> None:
    labels = mnist_folder / "train-labels-idx1-ubyte"
    packed = bytearray(gzip.compress(labels.read_bytes()))
    labels.unlink()
    if damage == "truncate":
        packed = packed[: len(packed) // 2]
    elif damage == "flip":
        packed[-6] ^= 0xFF
    else:
        packed = bytearray(b"<html>not found</html>")
    (mnist_folder / "train-labels-idx1-ubyte.gz").write_bytes(packed)
    with pytest.raises(DataError, match=r"labels-idx1-ubyte\.gz cannot be unzipped .* fetch it"):
        data.mnist(mnist_folder)


def test_idx_counts_and_labels(mnist_folder: Path) -> None:
    labels = mnist_folder / "train-labels-idx1-ubyte"
    rewrite(labels, struct.pack(">4BI", 0, 0, 8, 1, 29) + bytes(29))
    with pytest.raises(DataError, match="has 30 images but 29 labels"):
        data.mnist(mnist_folder)
    rewrite(labels, struct.pack(">4BI", 0, 0, 8, 1, 30) + bytes([1] * 11 + [12] + [3] * 18))
    with pytest.raises(DataError, match="label 12 at sample 11, outside the range 0 to 9"):
        data.mnist(mnist_folder)
    rewrite(labels, struct.pack(">4BI", 0, 0, 8, 1, 30) + bytes([4] * 30))
    with pytest.raises(DataError, match="has only the class 4"):
        data.mnist(mnist_folder)


def test_empty_idx(mnist_folder: Path) -> None:
    rewrite(mnist_folder / "t10k-images-idx3-ubyte", struct.pack(">4B3I", 0, 0, 8, 3, 0, 28, 28))
    rewrite(mnist_folder / "t10k-labels-idx1-ubyte", struct.pack(">4BI", 0, 0, 8, 1, 0))
    with pytest.raises(DataError, match="The test set of MNIST is empty"):
        data.mnist(mnist_folder)


def test_cifar10(cifar10_folder: Path) -> None:
    splits = data.cifar10(cifar10_folder)
    assert splits.input_shape == (3, 32, 32)
    assert splits.train.labels.tolist() == [(b + i) % 10 for b in range(1, 6) for i in range(4)]
    red, green, blue = splits.train.images[6]
    assert red.unique().tolist() == [22]
    assert green.unique().tolist() == [100]
    assert torch.equal(blue, torch.arange(32, dtype=torch.uint8).expand(32, 32))
    assert splits.class_names[:2] == ("airplane", "automobile")
    (cifar10_folder / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    assert data.cifar10(cifar10_folder).class_names == tuple("abcdefghij")
    (cifar10_folder / "batches.meta.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match="names 2 classes; expected 10"):
        data.cifar10(cifar10_folder)


def test_cifar100_in_its_own_folder(cifar100_folder: Path) -> None:
    splits = data.cifar100(cifar100_folder)
    assert splits.train.labels.tolist() == list(range(100))  # the fine label, not the coarse one
    assert splits.test.labels.tolist() == [99, 98, 97, 96, 95]
    assert splits.train.images[7, 0].unique().tolist() == [7]
    assert len(splits.class_names) == 100
    inner = cifar100_folder / "cifar-100-binary"
    (inner / "fine_label_names.txt").write_text("\n".join(f"n{i}" for i in range(100)))
    assert data.cifar100(inner).class_names[42] == "n42"


def test_damaged_cifar(cifar10_folder: Path, cifar100_folder: Path) -> None:
    batch = cifar10_folder / "data_batch_3.bin"
    good = batch.read_bytes()
    rewrite(batch, good[:-100])
    with pytest.raises(DataError, match=r"data_batch_3\.bin holds 12192 bytes, .* of 3073 bytes"):
        data.cifar10(cifar10_folder)
    rewrite(batch, b"\x0b" + good[1:])
    with pytest.raises(DataError, match=r"data_batch_3\.bin has the label 11 at sample 0"):
        data.cifar10(cifar10_folder)
    batch.unlink()
    with pytest.raises(DataError, match=r"There is no file .*data_batch_3\.bin"):
        data.cifar10(cifar10_folder)
    rewrite(cifar100_folder / "cifar-100-binary" / "test.bin", b"")
    with pytest.raises(DataError, match=r"test\.bin holds 0 bytes, .* of 3074 bytes"):
        data.cifar100(cifar100_folder)
    with pytest.raises(DataError, match=r"no file test\.bin in .*cifar-100-binary\.tar\.gz"):
        data.cifar100(cifar10_folder / "nowhere")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six training images and two validation images in two classes; class b is brighter."""
    for part, count in (("train", 3), ("val", 1)):
        for bright, name in enumerate("ab"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                image = Image.new("RGB", (30, 20), (200 * bright + i,) * 3)
                image.save(tmp_path / part / name / f"{i}.png")
    return tmp_path


def test_image_folder(folder: Path) -> None:
    splits = data.image_folder(folder, size=16)
    assert splits.input_shape == (3, 16, 16)
    assert splits.class_names == ("a", "b")
    values = splits.train.images[:, 0, 0, 0].tolist()
    seen = sorted(zip(splits.train.labels.tolist(), values, strict=True))
    assert seen == [(0, 0), (0, 1), (0, 2), (1, 200), (1, 201), (1, 202)]
    assert splits.train.images.dtype == torch.uint8
    again = data.image_folder(folder, size=16)
    assert torch.equal(again.train.images, splits.train.images)
    assert splits.test.labels.tolist() == [0, 1]


def test_bad_image_folder(folder: Path) -> None:
    (folder / "train" / "a" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(DataError, match=r"1\.png cannot be read as an image"):
        data.image_folder(folder, size=16)
    (folder / "train" / "a" / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1\.png cannot be read as an image"):
        data.image_folder(folder, size=16)
    Image.effect_noise((30, 20), 50).save(folder / "train" / "a" / "1.png")
    whole = (folder / "train" / "a" / "1.png").read_bytes()
    (folder / "train" / "a" / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"1\.png cannot be read as an image .*truncated"):
        data.image_folder(folder, size=16)
    (folder / "train" / "c").mkdir()
    with pytest.raises(DataError, match=r"has 3 classes but .* has 2; only in one of them: c"):
        data.image_folder(folder, size=16)
    with pytest.raises(DataError, match=r"There is no folder train in .*; expected train/CLASS"):
        data.image_folder(folder / "train", size=16)


def test_image_folder_with_an_empty_part(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=r"no folder test \(nor val\)"):
        data.image_folder(tmp_path, size=8)
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match="has no folder inside; expected one for each class"):
        data.image_folder(tmp_path, size=8)
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir()
    with pytest.raises(DataError, match="has no image in its class folders"):
        data.image_folder(tmp_path, size=8)
