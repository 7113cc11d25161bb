"""The number format in which losses are computed."""

import torch
from torch import Tensor

__all__ = ["upcast"]


def upcast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Bring tensors to one floating-point type that is at least float32.

    >>> [x.dtype for x in upcast(torch.zeros(1).half(), torch.zeros(1).bfloat16())]
    [torch.float32, torch.float32]
    """
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(dtype) for tensor in tensors)
