"""MM-NN hashing: which pairs are drawn together, which are kept apart."""

from math import sqrt
from typing import Any

import pytest
import torch
from tests.losses import golden
from torch import Tensor

from congener.conformance.table.case import pooled
from congener.losses import MMHashingLoss, binary_codes, mm_hashing_loss

LABELS = torch.tensor([0, 2, 1, 1, 2, 0, 1])
MARGINS = {"margin": 3.0, "first_margin": 2.5, "second_margin": 1.5}
WEIGHTS = {"first_weight": 0.7, "second_weight": 0.2, "negative_weight": 1.3}
ALONE = {"first_weight": 0.0, "second_weight": 0.0}


def codes(seed: int, batch: int = 7) -> tuple[Tensor, Tensor]:
    first, second = pooled(seed, batch)
    return first.tanh(), second.tanh()


def term(
    a: list[list[float]], b: list[list[float]], labels: list[int], margin: float, beta: float
) -> float:
    alike, unlike = [], []
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            square = sum((u - v) ** 2 for u, v in zip(x, y, strict=True))
            if labels[i] == labels[j]:
                alike.append(square)
            else:
                unlike.append(max(0.0, margin - sqrt(square)) ** 2)
    return (sum(alike) / max(len(alike), 1) + beta * sum(unlike) / max(len(unlike), 1)) / 2


def oracle(a: Tensor, b: Tensor, labels: Tensor, **o: float) -> float:
    x, y, of = a.tolist(), b.tolist(), labels.tolist()
    beta = o["negative_weight"]
    return (
        term(x, y, of, o["margin"], beta)
        + o["first_weight"] * term(x, x, of, o["first_margin"], beta)
        + o["second_weight"] * term(y, y, of, o["second_margin"], beta)
    )


@pytest.mark.parametrize("labels", [LABELS, torch.arange(7), torch.zeros(7, dtype=torch.int64)])
def test_oracle(labels: Tensor) -> None:
    options = MARGINS | WEIGHTS
    first, second = codes(0)
    loss = MMHashingLoss(**options)(first, second, labels)  # type: ignore[arg-type]
    assert golden.close(loss, oracle(first, second, labels, **options))


def test_defaults() -> None:
    first, second = codes(1)
    expected = oracle(first, second, LABELS, margin=2, first_margin=2, second_margin=2,
                      first_weight=0.3, second_weight=0.3, negative_weight=1)  # fmt: skip
    assert golden.close(mm_hashing_loss(first, second, LABELS), expected)


def loss_of(first: Tensor, second: Tensor, **options: Any) -> Tensor:
    return mm_hashing_loss(first, second, LABELS, **{**MARGINS, **WEIGHTS, **options})


def test_zero_where_like_codes_coincide_and_unlike_ones_are_apart() -> None:
    corners = torch.tensor([[1.0, 1, 1, 1], [-1, -1, 1, 1], [1, 1, -1, -1]], dtype=torch.float64)
    code = corners[LABELS]  # two bits apart: a distance of √8
    apart = {name: sqrt(8) - 1e-9 for name in MARGINS}
    assert loss_of(code, code, **apart) == 0
    assert loss_of(code, code, margin=sqrt(8) + 0.1, first_margin=0, second_margin=0) > 0
    moved = code.clone()
    moved[3, 0] = 0.5
    assert loss_of(moved, code, **apart) > 0


def test_roles_may_be_swapped() -> None:
    first, second = codes(2)
    expected = loss_of(first, second)
    swapped = loss_of(second, first, first_weight=0.2, second_weight=0.7, first_margin=1.5,
                      second_margin=2.5)  # fmt: skip
    torch.testing.assert_close(swapped, expected)
    assert not torch.isclose(loss_of(second, first), expected, rtol=1e-3)


def test_one_modality_twice_has_three_equal_terms() -> None:
    code, _ = codes(3)
    alone = loss_of(code, code, first_margin=3.0, second_margin=3.0, **ALONE)
    whole = loss_of(code, code, first_margin=3.0, second_margin=3.0)
    torch.testing.assert_close(whole, (1 + 0.7 + 0.2) * alone)


def test_both_networks_learn_and_without_own_terms_from_each_other_alone() -> None:
    first, second = (x.requires_grad_() for x in codes(4))
    loss_of(first, second).backward()
    assert first.grad is not None
    assert second.grad is not None
    assert first.grad.abs().max() > 1e-3 < second.grad.abs().max()
    row = first.detach()[:1].clone().requires_grad_()
    rest = first.detach()[1:].clone().requires_grad_()
    for weights, reached in ((ALONE, False), (WEIGHTS, True)):
        rows = loss_of(torch.cat((row, rest)), second.detach(), reduction="none", **weights)
        (gradient,) = torch.autograd.grad(rows[0], rest)
        assert bool(gradient.any()) is reached


def test_bits_may_be_reordered_and_flipped_together() -> None:
    first, second = codes(5)
    expected = loss_of(first, second)
    flip = torch.tensor([1.0, -1, 1, 1, -1, 1], dtype=torch.float64)
    torch.testing.assert_close(loss_of(first.flip(1), second.flip(1)), expected)
    torch.testing.assert_close(loss_of(flip * first, flip * second), expected)
    assert not torch.isclose(loss_of(flip * first, second), expected, rtol=1e-3)
    ranking = (binary_codes(first) @ binary_codes(second).T).argsort(dim=1, stable=True)
    flipped = binary_codes(flip * first) @ binary_codes(flip * second).T
    assert torch.equal(flipped.argsort(dim=1, stable=True), ranking)


def test_without_margin_unlike_pairs_count_nothing() -> None:
    first, second = codes(6)
    none = dict.fromkeys(MARGINS, 0.0)
    torch.testing.assert_close(
        loss_of(first, second, **none), loss_of(first, second, negative_weight=0.0)
    )
    constant = torch.full_like(first, 0.4)
    assert loss_of(constant, constant, **none) == 0
    assert loss_of(constant, constant) > 0


def test_equal_codes_of_unlike_samples_have_no_gradient() -> None:
    code = torch.full((7, 6), 0.4, dtype=torch.float64, requires_grad=True)
    loss_of(code, code.detach()).backward()
    assert code.grad is not None
    assert not code.grad.any()


def test_near_codes_are_not_blurred_in_float32() -> None:
    first = torch.full((2, 64), 0.9)
    second = first + torch.tensor([[1e-4], [2e-4]])
    labels = torch.zeros(2, dtype=torch.int64)
    loss = mm_hashing_loss(first, second, labels, **ALONE)
    expected = mm_hashing_loss(first.double(), second.double(), labels, **ALONE)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)


def test_lone_sample_is_drawn_to_itself() -> None:
    first, second = codes(7, 1)
    loss = mm_hashing_loss(first, second, torch.tensor([5]))
    torch.testing.assert_close(loss, (first - second).square().sum() / 2)


@pytest.mark.parametrize("bits", [1, 7, 9, 64, 65, 100])
def test_bits_and_distances(bits: int) -> None:
    first, second = (binary_codes(golden.wave((5, bits), phase)) for phase in (0.1, 1.3))
    differing = (first != second).sum(dim=1).double()
    assert set(first.unique().tolist()) <= {-1.0, 1.0}
    assert ((bits - (first * second).sum(dim=1)) / 2 == differing).all()
    assert ((first - second).square().sum(dim=1) / 4 == differing).all()
    packed = [
        [int("".join("1" if bit > 0 else "0" for bit in row), 2) for row in code.tolist()]
        for code in (first, second)
    ]
    assert [(a ^ b).bit_count() for a, b in zip(*packed, strict=True)] == differing.tolist()
    assert binary_codes(torch.zeros(1, 1)).item() == -1


def test_what_does_not_fit_is_told() -> None:
    first, second = codes(8)
    for name in MARGINS:
        for wrong in (-1.0, torch.nan, torch.inf):
            with pytest.raises(ValueError, match=f"{name} must be finite and not negative"):
                mm_hashing_loss(first, second, LABELS, **{name: wrong})  # type: ignore[arg-type]
            with pytest.raises(ValueError, match=f"{name} must be finite and not negative"):
                MMHashingLoss(**{name: wrong})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="floating point"):
        binary_codes(LABELS.reshape(1, 7))
