"""A witness tells whether a network was shown the same."""

import pytest
import torch
from torch import Tensor

from congener.teachers.witness import TOLERANCE, _direction, witness


def batch(image: Tensor, **others: object) -> dict[str, object]:
    return {"index": torch.arange(len(image)), "image": image} | others


def images(rows: int = 6, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, *(shape or (3, 8, 8)), generator=generator)


def differ(one: Tensor, other: Tensor) -> Tensor:
    return (witness(batch(one)) - witness(batch(other))).abs() > TOLERANCE


def test_is_a_number_for_each_sample_whatever_the_batch() -> None:
    x = images(40)
    found = witness(batch(x))
    assert found.shape == (40,)
    assert found.dtype == torch.float32
    order = torch.randperm(40)
    torch.testing.assert_close(witness(batch(x[order])), found[order], rtol=0, atol=1e-5)
    torch.testing.assert_close(witness(batch(x[3:4])), found[3:4], rtol=0, atol=1e-5)


@pytest.mark.parametrize("change", [
    lambda x: x.flip(-1), lambda x: x.roll(1, -1), lambda x: x.roll(1, 0), lambda x: 1.01 * x,
    lambda x: -x, lambda x: x + 0.01, lambda x: x.transpose(-1, -2), lambda x: 0 * x,
    lambda x: x.flip(1),
])  # fmt: skip
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_another_view_has_another(change, scale) -> None:
    x = images()
    assert differ(scale * x, scale * change(x)).all()


def test_one_pixel_is_enough() -> None:
    x = images(32)
    y = x.clone()
    y[:, 1, 2, 3] += 1.0
    assert differ(x, y).float().mean() > 0.95


def test_rounding_is_not() -> None:
    x = images(64, 3, 32, 32)
    assert not differ(x, x * (1 + 1e-6 * images(64, 3, 32, 32))).any()
    assert not differ(x, x.double().flip(0).float().flip(0)).any()


@pytest.mark.parametrize("value", [0.0, 1.0, 255.0, 1e30, -1e-20])
def test_constant_inputs(value) -> None:
    x = torch.full((3, 4, 4), value)
    assert witness(batch(x)).isfinite().all()
    assert not differ(x, x.clone()).any()
    y = x.clone()
    y[:, 0, 0] = value + max(1.0, abs(value)) / 2
    assert differ(x, y).all()


def test_inputs_of_integers() -> None:
    x = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(witness(batch(x)), witness(batch(x.long())))
    assert differ(x, x.flip(-1)).all()
    tokens = torch.randint(0, 100_000, (5, 20))
    assert differ(tokens, tokens.roll(1, 1)).all()
    mask = torch.rand(5, 20) > 0.5
    assert differ(mask, mask.flip(1)).any()


def test_every_input_counts_but_no_label() -> None:
    x, y = images(), images().flip(-1)
    one = witness(batch(x, strong_image=y))
    assert ((one - witness(batch(x, strong_image=x))).abs() > TOLERANCE).all()
    assert ((one - witness(batch(x))).abs() > TOLERANCE).all()
    assert ((one - witness(batch(y, strong_image=x))).abs() > TOLERANCE).all()  # swapped
    others = {
        "labels": torch.arange(6),
        "view": 3,
        "names": ["a"] * 6,
        "temperature": torch.ones(1),
    }
    assert torch.equal(witness(batch(x, **others)), witness(batch(x)))


def test_a_small_input_beside_a_large_one_counts() -> None:
    tokens = 1e5 * images(6, 20)
    small = images(6, 5)
    one, other = (witness(batch(tokens, mask=mask)) for mask in (small, small.flip(1)))
    assert ((one - other).abs() > TOLERANCE).all()


def test_all_directions_are_alike() -> None:
    drawn = _direction("image", 10_000, torch.device("cpu"))
    assert abs(float(drawn.mean())) < 0.03
    assert abs(float(drawn.var()) - 1) < 0.03
    assert abs(float((drawn[1:] * drawn[:-1]).mean())) < 0.03


def test_autocast_does_not_reach_it() -> None:
    x = images()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(witness(batch(x)), witness(batch(x)))
        found = witness(batch(x))
    assert torch.equal(found, witness(batch(x)))


def test_what_is_not_finite_shows() -> None:
    x = images()
    x[2, 0, 0, 0] = torch.nan
    assert witness(batch(x)).isfinite().tolist() == [True, True, False, True, True, True]
