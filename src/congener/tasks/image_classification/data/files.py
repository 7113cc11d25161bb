"""Published image sets in their original files, and folders of images."""

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor
from torchvision.datasets.folder import pil_loader
from torchvision.transforms import functional

from congener.errors import DataError

from .splits import Arrays, Division, Splits, check_arrays, divide

__all__ = ["cifar10", "cifar100", "fashion_mnist", "image_folder", "mnist"]

_FASHION_ROOT = "/usr/share/datasets/fashion-mnist"
_FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_DAMAGED = "the file is truncated or damaged, fetch it again."


def fashion_mnist(root: str | Path | None = None, **division: Unpack[Division]) -> Splits:
    """Fashion-MNIST (Xiao et al., 2017): 60,000 + 10,000 grey images of 28×28, 10 classes.

    Args:
        root: folder of the four idx files, gzipped or not; default: where the Debian package
            ``dataset-fashion-mnist`` puts them.
        **division: teacher, pool, labelled, balanced, holdout; see :func:`divide`.
    """
    hint = "install it with: apt-get install dataset-fashion-mnist, or give its folder as root"
    folder = Path(root or _FASHION_ROOT)
    train, test = _idx_pair(folder, "train", hint), _idx_pair(folder, "t10k", hint)
    return divide(
        "Fashion-MNIST",
        train,
        test,
        class_names=_FASHION_CLASSES,
        mean=(0.2860,),
        std=(0.3530,),
        **division,
    )


def mnist(root: str | Path | None = None, **division: Unpack[Division]) -> Splits:
    """MNIST (LeCun et al., 1998): 60,000 + 10,000 grey images of 28×28, 10 classes.

    Args:
        root: folder of the four idx files, gzipped or not; default: ``data/mnist``.
        **division: teacher, pool, labelled, balanced, holdout; see :func:`divide`.
    """
    hint = "put the four original idx files of MNIST there, or give their folder as root"
    folder = Path(root or "data/mnist")
    return divide(
        "MNIST",
        _idx_pair(folder, "train", hint),
        _idx_pair(folder, "t10k", hint),
        class_names=[str(digit) for digit in range(10)],
        mean=(0.1307,),
        std=(0.3081,),
        **division,
    )


def _idx_pair(folder: Path, part: str, hint: str) -> Arrays:
    images = _read_idx(_find(folder, f"{part}-images-idx3-ubyte", hint), axes=3)
    labels = _read_idx(_find(folder, f"{part}-labels-idx1-ubyte", hint), axes=1)
    return Arrays(images[:, None], labels.long())


def _find(folder: Path, name: str, hint: str) -> Path:
    # Some copies write the kind with a dot: train-images.idx3-ubyte.
    for candidate in (name, name.replace("-idx", ".idx")):
        for path in (folder / candidate, folder / f"{candidate}.gz"):
            if path.is_file():
                return path
    raise DataError(f"There is no file {folder / name}(.gz); {hint}.")


def _read_idx(path: Path, axes: int) -> Tensor:
    """An idx file: two zero bytes, type 8 (uint8), axis count, big-endian sizes, then the data."""
    content = _read_bytes(path)
    if content[:4] != bytes([0, 0, 8, axes]):
        raise DataError(
            f"{path} starts with the bytes {content[:4].hex(' ') or 'nothing'}; expected "
            f"00 00 08 0{axes} of an idx file of bytes with {axes} axes; {_DAMAGED}"
        )
    if len(content) < 4 + 4 * axes:
        raise DataError(f"{path} ends within its header after {len(content)} bytes; {_DAMAGED}")
    shape = [int.from_bytes(content[4 * i : 4 * i + 4], "big") for i in range(1, axes + 1)]
    expected = 4 + 4 * axes + math.prod(shape)
    if len(content) != expected:
        raise DataError(
            f"{path} holds {len(content)} bytes, but its header announces "
            f"{' x '.join(map(str, shape))} values, {expected} bytes; {_DAMAGED}"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[4 + 4 * axes :].view(shape)


def _read_bytes(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be unzipped ({error}); {_DAMAGED}") from error


def cifar10(root: str | Path, **division: Unpack[Division]) -> Splits:
    """CIFAR-10 (Krizhevsky, 2009), binary version: 50,000 + 10,000 images of 32×32, 10 classes.

    Args:
        root: folder of ``data_batch_1.bin`` … ``test_batch.bin``, or the folder above it.
        **division: teacher, pool, labelled, balanced, holdout; see :func:`divide`.
    """
    folder = _cifar_folder(root, "cifar-10-batches-bin", "test_batch.bin")
    parts = [_read_cifar(folder / f"data_batch_{number}.bin", 1) for number in range(1, 6)]
    return divide(
        "CIFAR-10",
        Arrays(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts])),
        _read_cifar(folder / "test_batch.bin", 1),
        class_names=_meta(folder / "batches.meta.txt", 10) or _CIFAR10_CLASSES,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        **division,
    )


def cifar100(root: str | Path, **division: Unpack[Division]) -> Splits:
    """CIFAR-100 (Krizhevsky, 2009), binary version: 50,000 + 10,000 images of 32×32, 100 classes.

    Args:
        root: folder of ``train.bin`` and ``test.bin``, or the folder above it.
        **division: teacher, pool, labelled, balanced, holdout; see :func:`divide`.
    """
    folder = _cifar_folder(root, "cifar-100-binary", "test.bin")
    names = _meta(folder / "fine_label_names.txt", 100)
    return divide(
        "CIFAR-100",
        _read_cifar(folder / "train.bin", 2),
        _read_cifar(folder / "test.bin", 2),
        class_names=names or [f"class {label}" for label in range(100)],
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
        **division,
    )


def _cifar_folder(root: str | Path, inner: str, file: str) -> Path:
    for folder in (Path(root), Path(root) / inner):
        if (folder / file).is_file():
            return folder
    raise DataError(
        f"There is no file {file} in {root} or {Path(root) / inner}; unpack the binary version "
        f"({inner.removesuffix('-batches-bin').removesuffix('-binary')}-binary.tar.gz) there."
    )


def _read_cifar(path: Path, label_bytes: int) -> Arrays:
    """Rows of one label byte (CIFAR-100: coarse, then fine) and 3×32×32 pixels."""
    if not path.is_file():
        raise DataError(f"There is no file {path}; unpack the binary version of CIFAR again.")
    row = label_bytes + 3 * 32 * 32
    content = path.read_bytes()
    if len(content) % row or not content:
        raise DataError(
            f"{path} holds {len(content)} bytes, which is not a whole number of samples of {row} "
            f"bytes; {_DAMAGED}"
        )
    rows = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, row)
    images = rows[:, label_bytes:].reshape(-1, 3, 32, 32)
    arrays = Arrays(images, rows[:, label_bytes - 1].long())
    check_arrays(str(path), arrays, 10 if label_bytes == 1 else 100)
    return arrays


def _meta(path: Path, classes: int) -> tuple[str, ...] | None:
    if not path.is_file():
        return None
    names = tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    if len(names) != classes:
        raise DataError(f"{path} names {len(names)} classes; expected {classes}.")
    return names


def image_folder(
    root: str | Path,
    *,
    size: int,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
    **division: Unpack[Division],
) -> Splits:
    """Images in ``root/train/CLASS/`` and ``root/test/CLASS/`` (or ``val``), decoded into memory.

    The shorter side is scaled to ``size`` and the centre is cut out. Because the files of a class
    lie together, ``train`` is put into a fixed random order before it is divided.

    Args:
        root: the folder; png, jpg, jpeg, webp, gif files count.
        size: height and width in memory.
        mean: per channel; default: ImageNet's.
        std: per channel; default: ImageNet's.
        **division: teacher, pool, labelled, balanced, holdout; see :func:`divide`.
    """
    base = Path(root)
    train_folder = base / "train"
    test_folder = base / "test" if (base / "test").is_dir() else base / "val"
    for folder in (train_folder, test_folder):
        if not folder.is_dir():
            wanted = "train" if folder is train_folder else "test (nor val)"
            raise DataError(f"There is no folder {wanted} in {base}; expected train/CLASS/*.png.")
    names = _class_folders(train_folder)
    if _class_folders(test_folder) != names:
        odd = sorted(set(names) ^ set(_class_folders(test_folder)))
        raise DataError(
            f"{train_folder} has {len(names)} classes but {test_folder} has "
            f"{len(_class_folders(test_folder))}; only in one of them: {', '.join(odd[:5])}."
        )
    images, labels = _decode_folder(train_folder, names, size)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return divide(
        str(base),
        Arrays(images[order], labels[order]),
        _decode_folder(test_folder, names, size),
        class_names=names,
        mean=mean,
        std=std,
        **division,
    )


def _class_folders(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not names:
        raise DataError(f"{folder} has no folder inside; expected one for each class.")
    return names


def _decode_folder(folder: Path, names: Sequence[str], size: int) -> Arrays:
    kinds = {".png", ".jpg", ".jpeg", ".webp", ".gif"}
    images, labels = [], []
    for label, name in enumerate(names):
        for path in sorted((folder / name).iterdir()):
            if path.suffix.lower() in kinds:
                images.append(_decode(path, size))
                labels.append(label)
    if not images:
        raise DataError(f"{folder} has no image in its class folders; expected .png or .jpg files.")
    return Arrays(torch.stack(images), torch.tensor(labels))


def _decode(path: Path, size: int) -> Tensor:
    try:
        image = pil_loader(path)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as an image ({error}); fix or delete it."
        ) from error
    cut = functional.center_crop(functional.resize(image, [size]), [size, size])
    pixels: Tensor = functional.pil_to_tensor(cut)
    return pixels
