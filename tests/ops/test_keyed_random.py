"""keyed_uniform: a function of (seed, epoch, id, column), and random enough."""

import math

import pytest
import torch

from congener.ops.keyed_random import keyed_uniform

IDS = torch.arange(20_000)


def reference(seed: int, epoch: int, sample: int, column: int) -> float:
    """The same hash in unbounded integers."""
    word, golden = (1 << 64) - 1, 0x9E3779B97F4A7C15

    def mix(z: int) -> int:
        z &= word
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & word
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & word
        return z ^ (z >> 31)

    # SplitMix64's first output for the state 0, as published with the generator.
    assert mix(golden) == 0xE220A8397B1DCDAF
    key = mix(mix(seed + golden) + golden * (epoch + 1))
    return (mix(mix(sample * golden + key) + golden * (column + 1)) >> 40) / 2**24


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (7, 3), (-1, 5), (2**63, 2), (1, -1)])
def test_equals_the_hash_in_plain_integers(seed: int, epoch: int) -> None:
    ids = torch.tensor([0, 1, 59_999, 2**40, 2**63 - 1, -5])
    drawn = keyed_uniform(ids, seed=seed, epoch=epoch, count=3)
    expected = [[reference(seed, epoch, int(i), c) for c in range(3)] for i in ids]
    assert drawn.dtype == torch.float32
    assert drawn.tolist() == expected


def test_a_number_depends_on_nothing_else() -> None:
    whole = keyed_uniform(IDS, seed=5, epoch=2, count=4)
    order = torch.randperm(len(IDS), generator=torch.Generator().manual_seed(0))[:333]
    torch.rand(3)
    assert torch.equal(keyed_uniform(IDS[order], seed=5, epoch=2, count=4), whole[order])
    assert torch.equal(keyed_uniform(IDS.int(), seed=5, epoch=2, count=2), whole[:, :2])


def test_range_and_empty() -> None:
    drawn = keyed_uniform(IDS, seed=0, epoch=0, count=8)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert keyed_uniform(IDS[:0], seed=0, epoch=0, count=3).shape == (0, 3)
    assert keyed_uniform(IDS, seed=0, epoch=0, count=0).shape == (len(IDS), 0)


@pytest.mark.parametrize("stride", [1, 2, 256, 2**32])
def test_uniform(stride: int) -> None:
    """Chi-squared over 100 cells: mean 99, standard deviation 14."""
    drawn = keyed_uniform(IDS * stride, seed=1, epoch=1, count=2)
    for column in drawn.unbind(1):
        cells = torch.bincount((column * 100).long(), minlength=100).double()
        expected = len(IDS) / 100
        assert 50 < float((cells - expected).square().sum() / expected) < 170


def pairs() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    base = keyed_uniform(IDS, seed=0, epoch=0, count=3)
    return {
        "neighbouring ids": (base[:-1, 0], base[1:, 0]),
        "columns": (base[:, 0], base[:, 1]),
        "column against the next id": (base[:-1, 1], base[1:, 0]),
        "epochs": (base[:, 0], keyed_uniform(IDS, seed=0, epoch=1, count=1)[:, 0]),
        "seeds": (base[:, 0], keyed_uniform(IDS, seed=1, epoch=0, count=1)[:, 0]),
        "seed against epoch": (
            keyed_uniform(IDS, seed=0, epoch=1, count=1)[:, 0],
            keyed_uniform(IDS, seed=1, epoch=0, count=1)[:, 0],
        ),
    }


@pytest.mark.parametrize("which", pairs())
def test_independent(which: str) -> None:
    left, right = pairs()[which]
    assert (left == right).sum() < 20
    correlation = torch.corrcoef(torch.stack([left, right]).double())[0, 1]
    assert abs(float(correlation)) < 4 / math.sqrt(len(left))
    # And jointly uniform: chi-squared over 10 x 10 cells.
    cells = torch.bincount((left * 10).long() * 10 + (right * 10).long(), minlength=100).double()
    expected = len(left) / 100
    assert 50 < float((cells - expected).square().sum() / expected) < 170
