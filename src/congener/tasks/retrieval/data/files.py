"""Identities in folders of images, and arrays of the user's own."""

from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from congener.errors import DataError

from .images import check_size, decode
from .splits import Division, IdentityDataset, Splits, divide

__all__ = ["image_identities", "tensors"]

KINDS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")


def image_identities(root: str | Path, *, size: int = 32, **division: Unpack[Division]) -> Splits:
    """Images in ``root/train/CAMERA/IDENTITY/`` and ``root/test/CAMERA/IDENTITY/``.

    Where identities have no cameras, give each of them two folders, or use :func:`tensors`.
    Identities are numbered in a fixed random order, those of training first.

    Args:
        root: the folder; png, jpg, jpeg, webp, gif and bmp files count.
        size: height and width in memory, to which images are scaled.
        **division: labelled, teacher, holdout; see :func:`divide`.
    """
    check_size(size)
    base = Path(root)
    parts = {part: _files(base / part) for part in ("train", "test")}
    numbers: dict[str, int] = {}
    for files in parts.values():
        new = sorted({identity for _, identity, _ in files} - numbers.keys())
        order = torch.randperm(len(new), generator=torch.Generator().manual_seed(0))
        numbers |= {new[place]: len(numbers) + rank for rank, place in enumerate(order.tolist())}
    cameras = sorted({camera for files in parts.values() for camera, _, _ in files})
    train, test = (
        IdentityDataset(
            torch.stack([decode(path, size, name=str(path)) for _, _, path in files]),
            torch.tensor([numbers[identity] for _, identity, _ in files]),
            torch.tensor([cameras.index(camera) for camera, _, _ in files]),
        )
        for files in parts.values()
    )
    return divide(str(base), train, test, names=list(numbers), **division)


def _files(folder: Path) -> list[tuple[str, str, Path]]:
    """Camera, identity and path of each image of a part."""
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}; expected {folder}/CAMERA/IDENTITY/*.png.")
    found = [path for path in sorted(folder.glob("*/*/*")) if path.suffix.lower() in KINDS]
    if not found:
        raise DataError(f"{folder} has no image at CAMERA/IDENTITY/*.png; expected some.")
    return [(path.parts[-3], path.parts[-2], path) for path in found]


def tensors(
    *,
    train_images: Tensor,
    train_labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    train_cameras: Tensor | None = None,
    test_cameras: Tensor | None = None,
    **division: Unpack[Division],
) -> Splits:
    """Your own arrays.

    Args:
        train_images: (samples, 3, height, width), uint8.
        train_labels: identities, integers from 0; -100 where it is not known.
        test_images: like ``train_images``, of the same size.
        test_labels: like ``train_labels``.
        train_cameras: integers; default: each image has a camera of its own.
        test_cameras: likewise; a query looks in the images of the other cameras, so by default in
            all other images.
        **division: labelled, teacher, holdout; see :func:`divide`.

    Raises:
        DataError: arrays that do not fit each other.
    """
    train = _arrays("training", train_images, train_labels, train_cameras)
    test = _arrays("test", test_images, test_labels, test_cameras)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"Training images have the shape {tuple(train.images.shape[1:])} but test images "
            f"{tuple(test.images.shape[1:])}; they must be equal."
        )
    return divide("the given arrays", train, test, **division)


def _arrays(part: str, images: Tensor, labels: Tensor, cameras: Tensor | None) -> IdentityDataset:
    images, labels = torch.as_tensor(images), torch.as_tensor(labels)
    cameras = torch.arange(len(images)) if cameras is None else torch.as_tensor(cameras)
    for what, numbers in (("labels", labels), ("cameras", cameras)):
        inexact = numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool
        if numbers.ndim != 1 or inexact:
            raise DataError(
                f"The {part} {what} are {numbers.dtype} of the shape {tuple(numbers.shape)}; "
                "expected one whole number for each image."
            )
    return IdentityDataset(images, labels.long(), cameras.long())
