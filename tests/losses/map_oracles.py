"""Maps as nested lists: pooling and the like, in plain Python."""

from collections.abc import Sequence

Plane = Sequence[Sequence[float]]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def pool(plane: Plane, height: int, width: int, *, largest: bool = False) -> list[list[float]]:
    """Adaptive pooling of one channel; the bins reach from ⌊i·n/m⌋ to ⌈(i+1)·n/m⌉."""

    def bins(size: int, count: int) -> list[range]:
        return [range(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]

    how = max if largest else mean
    rows, columns = bins(len(plane), height), bins(len(plane[0]), width)
    return [[how([plane[h][w] for h in hs for w in ws]) for ws in columns] for hs in rows]


def channels(maps: Sequence[Plane], height: int, width: int, *, largest: bool = False):
    """The channels of one sample, each pooled and flattened."""
    return [
        [x for row in pool(plane, height, width, largest=largest) for x in row] for plane in maps
    ]


def smaller(first: Sequence[Plane], second: Sequence[Plane]) -> tuple[int, int]:
    return min(len(first[0]), len(second[0])), min(len(first[0][0]), len(second[0][0]))
