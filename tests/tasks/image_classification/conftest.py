"""Small data in the original file formats, written byte by byte."""

import gzip
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from congener.tasks.image_classification import Splits, data


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def curves() -> Splits:
    return data.mnist1d()


def idx(values: bytes, *sizes: int) -> bytes:
    return struct.pack(f">BBBB{len(sizes)}I", 0, 0, 8, len(sizes), *sizes) + values


def write_mnist(folder: Path, *, zipped: bool, train: int = 30, test: int = 20) -> None:
    """Sample i of a part has the label i % 10; its pixel (r, c) is (i + 28 r + c) % 256."""
    for part, count in (("train", train), ("t10k", test)):
        pixels = bytes((i + p) % 256 for i in range(count) for p in range(784))
        files = {
            f"{part}-images-idx3-ubyte": idx(pixels, count, 28, 28),
            f"{part}-labels-idx1-ubyte": idx(bytes(i % 10 for i in range(count)), count),
        }
        for name, content in files.items():
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)


def cifar_row(labels: list[int], sample: int) -> bytes:
    """Red plane all ``sample``, green all 100, blue counting along each row."""
    return bytes(labels) + bytes(
        [sample] * 1024 + [100] * 1024 + [c for _ in range(32) for c in range(32)]
    )


def write_cifar10(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for batch in range(1, 6):
        rows = [cifar_row([(batch + i) % 10], 10 * batch + i) for i in range(4)]
        (folder / f"data_batch_{batch}.bin").write_bytes(b"".join(rows))
    (folder / "test_batch.bin").write_bytes(b"".join(cifar_row([i], i) for i in range(10)))


def write_cifar100(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "train.bin").write_bytes(b"".join(cifar_row([i % 20, i], i) for i in range(100)))
    (folder / "test.bin").write_bytes(b"".join(cifar_row([0, 99 - i], i) for i in range(5)))


@pytest.fixture
def mnist_folder(tmp_path: Path) -> Path:
    write_mnist(tmp_path, zipped=False)
    return tmp_path


@pytest.fixture
def cifar10_folder(tmp_path: Path) -> Path:
    write_cifar10(tmp_path)
    return tmp_path


@pytest.fixture
def cifar100_folder(tmp_path: Path) -> Path:
    write_cifar100(tmp_path / "cifar-100-binary")
    return tmp_path
