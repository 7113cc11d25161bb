"""Data sets by name; each is a function that returns :class:`Splits`. ``__all__`` is the list."""

from .files import cifar10, cifar100, fashion_mnist, image_folder, mnist
from .synthetic import mnist1d, tensors

__all__ = ["cifar10", "cifar100", "fashion_mnist", "image_folder", "mnist", "mnist1d", "tensors"]
