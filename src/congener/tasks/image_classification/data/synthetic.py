"""Data that needs no file: MNIST-1D, made by its package, and arrays of the user's own."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from congener.errors import CongenerError, DataError

from .splits import IGNORE, Arrays, Division, Splits, check_arrays, divide

__all__ = ["mnist1d", "tensors"]


@contextmanager
def _untouched_generators() -> Iterator[None]:
    """Give the global random states back as they were; the ``mnist1d`` package reseeds them."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def mnist1d(
    *, seed: int = 42, extra: int = 0, extra_seed: int = 43, **division: Unpack[Division]
) -> Splits:
    """MNIST-1D (Greydanus and Kobak, ICML 2024): digits as curves of 40 points, 10 classes.

    4000 training and 1000 test samples of shape (1, 40), standardised as a whole. Nothing is
    read or downloaded: the package draws the samples, always the same for a seed, in a second.

    Args:
        seed: of the package's generator; 42 gives the published data set.
        extra: this many more samples, without labels, for the student; a multiple of 10.
        extra_seed: of the generator for ``extra``; must differ from ``seed``.
        **division: teacher, pool, labelled, balanced, holdout; see :func:`divide`.
    """
    try:
        # Imported here because it imports matplotlib, which takes a second.
        from mnist1d.data import get_dataset_args, make_dataset
    except ImportError as error:
        raise CongenerError(
            f"MNIST-1D needs the package {error.name!r}; install it with: "
            'pip install "congener[image]"'
        ) from error
    if extra % 10 or extra < 0:
        raise DataError(f"extra={extra} is not a multiple of 10, the number of classes.")
    if extra and extra_seed == seed:
        raise DataError(f"extra_seed={seed} would repeat the training set; use another number.")
    with _untouched_generators():
        arguments = get_dataset_args()
        arguments.seed = seed
        drawn = make_dataset(arguments)
        more = None
        if extra:
            arguments.seed, arguments.num_samples, arguments.train_split = extra_seed, extra, 1.0
            more = _curves(make_dataset(arguments)["x"])
    return divide(
        "MNIST-1D",
        Arrays(_curves(drawn["x"]), torch.as_tensor(drawn["y"], dtype=torch.int64)),
        Arrays(_curves(drawn["x_test"]), torch.as_tensor(drawn["y_test"], dtype=torch.int64)),
        class_names=[str(digit) for digit in range(10)],
        mean=[0.0],
        std=[1.0],
        extra=more,
        **division,
    )


def _curves(values: "np.ndarray[tuple[int, ...], np.dtype[np.floating]]") -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32)[:, None]


def tensors(
    *,
    train_images: Tensor,
    train_labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **division: Unpack[Division],
) -> Splits:
    """Your own arrays: (samples, channels, *size) or (samples, features), uint8 or float.

    Args:
        train_images: tensor or numpy array.
        train_labels: integers from 0; -100 where a sample has no label.
        test_images: like ``train_images``.
        test_labels: like ``train_labels``.
        num_classes: default: the length of ``class_names``, else the largest label plus one.
        class_names: default: the numbers.
        mean: per channel; default: measured over the training images if those are uint8, else 0.
        std: likewise; default for floats: 1.
        **division: teacher, pool, labelled, balanced, holdout; see :func:`divide`.

    Raises:
        DataError: arrays that do not fit each other.
    """
    train = _arrays("The training arrays", train_images, train_labels)
    test = _arrays("The test arrays", test_images, test_labels)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"Training images have the shape {tuple(train.images.shape[1:])} but test images "
            f"{tuple(test.images.shape[1:])}; they must be equal."
        )
    if train.images.dtype != test.images.dtype:
        raise DataError(
            f"Training images are {train.images.dtype} but test images {test.images.dtype}; "
            "they must be of one type."
        )
    if num_classes is None:
        num_classes = len(class_names) if class_names else int(train.labels.amax(0)) + 1
    if class_names is None:
        class_names = [str(label) for label in range(num_classes)]
    if len(class_names) != num_classes:
        raise DataError(
            f"There are {len(class_names)} class names for num_classes={num_classes}; "
            "give one name for each class."
        )
    check_arrays("The training set", train, num_classes)
    channels = train.images.shape[1] if train.images.ndim > 2 else 1
    if train.images.dtype == torch.uint8 and (mean is None or std is None):
        measured_mean, measured_std = _statistics(train.images)
        mean, std = mean or measured_mean, std or measured_std
    mean, std = mean or [0.0] * channels, std or [1.0] * channels
    return divide(
        "the given arrays", train, test, class_names=class_names, mean=mean, std=std, **division
    )


def _arrays(what: str, images: Tensor, labels: Tensor) -> Arrays:
    images, labels = torch.as_tensor(images), torch.as_tensor(labels)
    if images.ndim < 2 or labels.ndim != 1:
        raise DataError(
            f"{what} have the shapes {tuple(images.shape)} and {tuple(labels.shape)}; expected "
            "(samples, channels, ...) images and (samples,) labels."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(f"{what} have labels of type {labels.dtype}; expected class numbers.")
    check_arrays(what, Arrays(images, labels.new_full(labels.shape, IGNORE)), 1)
    if images.dtype != torch.uint8:
        images = images.to(torch.float32)
        if not images.isfinite().all():
            raise DataError(f"{what} have NaN or infinite values; clean them first.")
    return Arrays(images, labels.to(torch.int64))


def _statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of uint8 images, on the scale 0 to 1."""
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    channels = images.unbind(1) if images.ndim > 2 else [images]
    for channel in channels:
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        centre = float(share @ values)
        mean.append(centre)
        std.append(max(float(share @ (values - centre).square()) ** 0.5, 1 / 255))
    return mean, std
