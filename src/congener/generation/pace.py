"""How many tokens are worth drafting, by the share of proposals that the teacher accepted so far.

A draft of n tokens at acceptance a leaves (1 − aⁿ) / (1 − a) of them, for n steps of the student
and one pass of the teacher over n positions. What those take is estimated from the networks' sizes
and not measured, so that a run repeats itself exactly.
"""

from typing import Literal

from torch import Tensor, nn

__all__ = ["Pace"]

_LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24)
_CPU, _DEVICE = (5e-5, 3e-10, 1.4e-11), (5e-5, 2e-12, 4e-14)
"""Seconds of a pass for each module without children, for each weight, and for each weight and
token: what a processor core and a data-centre GPU take, roughly (ours)."""

_VECTORS = 4  # until so many tokens a core slows down, to half, as vectors become matrices (ours)
_EXPECTED, _WEIGHT = 0.85, 2.0  # acceptance before any is seen, worth so many proposals (ours)
_WORTH = 1.1  # drafts make rows uneven, and must so be faster by this at least (ours)
_NEARLY = 0.97  # of the best speed is enough for a shorter draft, of which less is lost (ours)
_MEMORY = 0.95  # what was seen counts so much less with each block (ours)


class Pace:
    """Chooses the length of drafts.

    Args:
        block: a fixed length, or ``"adaptive"``.
        student: the network that drafts.
        teacher: the network that checks.

    Raises:
        ValueError: a length below 1, or another word.
    """

    def __init__(self, block: int | Literal["adaptive"], student: nn.Module, teacher: nn.Module):
        if block != "adaptive" and (not isinstance(block, int) or block < 1):
            raise ValueError(f'block must be "adaptive" or at least 1, not {block!r}.')
        self._block = block
        if block == "adaptive":
            self._student, self._teacher = _Cost(student), _Cost(teacher)
        self._right = self._seen = 0.0

    def length(self, rows: int) -> int:
        """Of the next draft, for so many texts at once."""
        if self._block != "adaptive":
            return self._block
        share = (self._right + _EXPECTED * _WEIGHT) / (self._seen + _WEIGHT)
        step = self._student.seconds(rows)

        def speed(length: int) -> float:
            written = sum(share**place for place in range(length))
            return written / (length * step + self._teacher.seconds(rows * length))

        speeds = {length: speed(length) for length in _LENGTHS}
        best = max(speeds.values())
        enough = next(length for length, each in speeds.items() if each >= _NEARLY * best)
        return enough if best > _WORTH * speeds[1] else 1

    def learn(self, kept: Tensor, own: Tensor) -> None:
        """Note how many tokens of each row were kept, and which were accepted, (rows, count)."""
        if self._block != "adaptive":
            return
        right = own.int().cumprod(1).sum()
        self._right = _MEMORY * self._right + float(right)
        self._seen = _MEMORY * self._seen + float(kept.sum())


class _Cost:
    """Roughly what a pass of a network takes."""

    def __init__(self, model: nn.Module) -> None:
        weights = list(model.parameters())
        self._on_cpu = not weights or weights[0].device.type == "cpu"
        start, weight, product = _CPU if self._on_cpu else _DEVICE
        size = sum(each.numel() for each in weights)
        parts = sum(1 for each in model.modules() if next(each.children(), None) is None)
        self._start, self._weights, self._products = start * parts, weight * size, product * size

    def seconds(self, tokens: int) -> float:
        slower = 1 + min(tokens - 1, _VECTORS) / _VECTORS if self._on_cpu else 1.0
        return self._start + self._weights * slower + self._products * tokens
