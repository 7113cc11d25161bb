"""Random numbers that are a function of what they are for, not of when they are drawn.

A generator with a hidden state gives a sample another number as soon as the batch, the number of
processes or the point of a resume changes. Here each number is a hash of (seed, epoch, sample id,
column): the SplitMix64 mixer (Steele, Lea and Flood, OOPSLA 2014) over a 64-bit key.
"""

import torch
from torch import Tensor

__all__ = ["keyed_uniform"]

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FACTOR_1 = 0xBF58476D1CE4E5B9
_FACTOR_2 = 0x94D049BB133111EB


def _signed(word: int) -> int:
    """The int64 that has the bits of an unsigned 64-bit ``word``."""
    return word - (1 << 64) if word >> 63 else word


def _mix_int(word: int) -> int:
    word &= _WORD
    word = ((word ^ (word >> 30)) * _FACTOR_1) & _WORD
    word = ((word ^ (word >> 27)) * _FACTOR_2) & _WORD
    return word ^ (word >> 31)


def _shift_right(words: Tensor, bits: int) -> Tensor:
    """Logical shift; int64's own shift would copy the sign."""
    return (words >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(words: Tensor) -> Tensor:
    words = (words ^ _shift_right(words, 30)).mul_(_signed(_FACTOR_1))
    words = words.bitwise_xor_(_shift_right(words, 27)).mul_(_signed(_FACTOR_2))
    return words.bitwise_xor_(_shift_right(words, 31))


def keyed_uniform(ids: Tensor, *, seed: int, epoch: int, count: int) -> Tensor:
    """Uniform numbers in [0, 1), each a function of (seed, epoch, id, column) alone.

    Args:
        ids: integer sample ids, (batch,); the result lies on their device.
        seed: any integer; its low 64 bits count.
        epoch: any integer; its low 64 bits count.
        count: how many numbers each sample needs.

    Returns:
        float32 (batch, count), multiples of 2⁻²⁴.

    >>> import torch
    >>> a = keyed_uniform(torch.tensor([3, 7]), seed=0, epoch=1, count=2)
    >>> b = keyed_uniform(torch.tensor([7]), seed=0, epoch=1, count=2)
    >>> bool((a[1] == b[0]).all())
    True
    """
    key = _mix_int(_mix_int(seed + _GOLDEN) + _GOLDEN * (epoch + 1))
    rows = _mix(ids.to(torch.int64) * _signed(_GOLDEN) + _signed(key))
    columns = torch.arange(1, count + 1, device=ids.device) * _signed(_GOLDEN)  # modulo 2⁶⁴
    words = _mix(rows[:, None] + columns)
    return _shift_right(words, 40).to(torch.float32).mul_(2.0**-24)
