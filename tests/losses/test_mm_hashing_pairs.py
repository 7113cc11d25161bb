"""MM-NN hashing: its pairs by several labels, of a list, and by a teacher's codes."""

from itertools import pairwise
from math import dist
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from tests.losses import golden
from tests.losses.test_mm_hashing import ALONE, codes
from tests.trajectory.processes import in_two_processes
from torch import Tensor

from congener.errors import NonFiniteLossError, ShapeError
from congener.losses import mm_hashing_loss
from congener.losses.mm_hashing_pairs import Shares, labelled_shares, listed_shares, soft_shares
from congener.losses.mm_hashing_parts import pair_rows
from congener.ops.collectives import global_mean

TAGS = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0], [0, 0, 1], [1, 1, 0], [0, 0, 0], [0, 1, 1]])
NONE = torch.tensor([False, False, True, False, False, False, True])
DRAWS = torch.tensor([0.5, 0.1, 0.9, 0.3, 0.7, 0.2, 0.8])
EVERYONE = torch.ones(7, dtype=torch.bool)


def of_list(
    a: Tensor, b: Tensor, like: set[tuple[int, int]], unlike: set[tuple[int, int]], **o: float
) -> float:
    """The published form: over a list of like pairs and one of unlike ones."""
    x, y = a.tolist(), b.tolist()
    pulled = [dist(x[i], y[j]) ** 2 for i, j in like]
    pushed = [max(0.0, o["margin"] - dist(x[i], y[j])) ** 2 for i, j in unlike]
    return (sum(pulled) / max(len(pulled), 1) + o["beta"] * sum(pushed) / max(len(pushed), 1)) / 2


def by_labels(labels: list[set[int]]) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    every = {(i, j) for i in range(len(labels)) for j in range(len(labels))}
    like = {(i, j) for i, j in every if i == j or labels[i] & labels[j]}
    return like, every - like


def sets(labels: Tensor) -> list[set[int]]:
    return [{n for n, has in enumerate(row) if has} for row in labels.tolist()]


def marked(share: Tensor) -> set[tuple[int, int]]:
    return {(i, j) for i, j in share.nonzero().tolist()}


def value(shares: Shares, a: Tensor, b: Tensor, margin: float, mask: Tensor = EVERYONE) -> Tensor:
    return global_mean(pair_rows(a, b, shares, margin=margin), mask)


@pytest.mark.parametrize("kind", [torch.bool, torch.int8, torch.int64])
def test_samples_with_a_label_in_common_are_alike(kind: torch.dtype) -> None:
    first, second = codes(0)
    labels = TAGS.to(kind)
    loss = mm_hashing_loss(
        first, second, labels, margin=3.0, first_margin=2.5, second_margin=1.5, first_weight=0.7,
        second_weight=0.2, negative_weight=1.3,
    )  # fmt: skip
    pairs = by_labels(sets(TAGS))
    expected = (
        of_list(first, second, *pairs, margin=3.0, beta=1.3)
        + 0.7 * of_list(first, first, *pairs, margin=2.5, beta=1.3)
        + 0.2 * of_list(second, second, *pairs, margin=1.5, beta=1.3)
    )
    assert golden.close(loss, expected)


def test_one_class_each_is_a_class_number() -> None:
    first, second = codes(1)
    numbers = torch.tensor([0, 2, 1, 1, 2, 0, 1])
    tags = torch.nn.functional.one_hot(numbers)
    expected = mm_hashing_loss(first, second, numbers)
    torch.testing.assert_close(mm_hashing_loss(first, second, tags), expected)


@pytest.mark.parametrize("labels", [torch.tensor([0, 2, 1, 1, 2, 0, 1]), TAGS])
def test_samples_without_a_label_are_as_if_absent(labels: Tensor) -> None:
    first, second = (x.requires_grad_() for x in codes(2))
    labels = labels.clone()
    labels[NONE] = -100
    kept = ~NONE
    loss = mm_hashing_loss(first, second, labels)
    expected = mm_hashing_loss(first[kept], second[kept], labels[kept])
    torch.testing.assert_close(loss, expected)
    masked = torch.tensor([True, True, True, True, True, False, False])
    torch.testing.assert_close(
        mm_hashing_loss(first, second, labels, mask=masked),
        mm_hashing_loss(*(x[kept & masked] for x in (first, second, labels))),
    )
    loss.backward()
    for code in (first, second):
        assert code.grad is not None
        assert not code.grad[NONE].any()
        assert code.grad[kept].any(1).all()
    nobody = mm_hashing_loss(first, second, torch.full_like(labels, -100))
    nobody.backward()
    assert nobody == 0


def test_a_class_that_is_not_known_makes_no_pair_alike() -> None:
    first, second = codes(3)
    some = TAGS.clone()
    some[4, 2] = some[3, 0] = some[5, 1] = -100
    torch.testing.assert_close(
        mm_hashing_loss(first, second, some), mm_hashing_loss(first, second, TAGS)
    )


def test_labels_that_do_not_fit_are_told() -> None:
    first, second = codes(4)
    for wrong in (TAGS[:6], TAGS[:, :0], TAGS[:, 0, None, None].expand(7, 2, 2)):
        with pytest.raises(ShapeError, match=r"labels \(\d, .*\) must be \(batch,\)"):
            mm_hashing_loss(first, second, wrong)
    with pytest.raises(ValueError, match=r"integers or boolean, not torch.float32; call .int()"):
        mm_hashing_loss(first, second, TAGS.float())


def next_unlike(labels: list[set[int]], draws: list[float], kept: list[bool]) -> dict[int, int]:
    """Walk the circle on from each sample to the first that is unlike."""
    circle = sorted(range(len(draws)), key=draws.__getitem__)
    found = {}
    for place, i in enumerate(circle):
        for j in circle[place + 1 :] + circle[:place]:
            if kept[i] and kept[j] and not labels[i] & labels[j]:
                found[i] = j
                break
    return found


@pytest.mark.parametrize("labels", [torch.arange(7), torch.tensor([0, 2, 1, 1, 2, 0, 1]), TAGS])
@pytest.mark.parametrize("kept", [EVERYONE, ~NONE])
def test_a_list_has_each_sample_with_itself_and_with_an_unlike_one(
    labels: Tensor, kept: Tensor
) -> None:
    first, second = codes(5)
    own = [{n} for n in labels.tolist()] if labels.dim() == 1 else sets(labels)
    wanted = next_unlike(own, DRAWS.tolist(), kept.tolist())
    shares = listed_shares(labels, DRAWS, first, 1.3, kept)
    like = {(i, i) for i in range(7) if kept[i]}
    assert marked(shares[0]) == like
    assert marked(shares[1]) == set(wanted.items())
    expected = of_list(first, second, like, set(wanted.items()), margin=3.0, beta=1.3)
    assert golden.close(value(shares, first, second, 3.0, kept), expected)


def test_of_samples_that_are_all_unlike_it_is_a_derangement() -> None:
    first, _ = codes(6)
    for seed in range(20):
        draws = torch.rand(7, generator=torch.Generator().manual_seed(seed))
        _, unlike = listed_shares(torch.arange(7), draws, first, 1.0, EVERYONE)
        partners = unlike.argmax(dim=1)
        assert sorted(partners.tolist()) == list(range(7))
        assert all(partner != sample for sample, partner in enumerate(partners.tolist()))
        circle = draws.argsort().tolist()
        assert all(partners[a] == b for a, b in pairwise([*circle, circle[0]]))


def test_a_sample_that_none_is_unlike_has_no_unlike_partner() -> None:
    first, second = codes(7)
    shares = listed_shares(torch.zeros(7).int(), DRAWS, first, 1.0, EVERYONE)
    assert not shares[1].any()
    expected = of_list(first, second, {(i, i) for i in range(7)}, set(), margin=3.0, beta=1.0)
    assert golden.close(value(shares, first, second, 3.0), expected)


def test_all_pairs_are_the_list_of_them() -> None:
    first, second = codes(8)
    pairs = by_labels(sets(TAGS))
    shares = labelled_shares(TAGS, first, 0.7, EVERYONE)
    assert (marked(shares[0]), marked(shares[1])) == pairs
    assert golden.close(
        value(shares, first, second, 3.0),
        of_list(first, second, *pairs, margin=3.0, beta=0.7),
    )


def teacher_codes(seed: int, batch: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, batch, 9, generator=generator, dtype=torch.float64).tanh().unbind()


def soft_oracle(a: Tensor, b: Tensor, u: Tensor, v: Tensor, margin: float, beta: float) -> float:
    x, y, p, q = (each.tolist() for each in (a, b, u, v))
    n = range(len(x))
    apart = [dist(p[i], q[j]) for i in n for j in n if i != j]
    mean = sum(apart) / len(apart)
    like = unlike = pulled = pushed = 0.0
    for i in n:
        for j in n:
            s = max(0.0, 1 - dist(p[i], q[j]) / mean)
            like, unlike = like + s, unlike + 1 - s
            pulled += s * dist(x[i], y[j]) ** 2
            pushed += (1 - s) * max(0.0, margin - dist(x[i], y[j])) ** 2
    return (pulled / like + beta * pushed / unlike) / 2


def test_pairs_are_alike_as_far_as_the_teacher_says() -> None:
    first, second = (x.requires_grad_() for x in codes(9))
    taught = [x.requires_grad_() for x in teacher_codes(10)]
    loss = value(soft_shares(*taught, first, 1.3), first, second, 3.0)
    assert golden.close(loss, soft_oracle(first, second, *taught, 3.0, 1.3))
    larger = [7.5 * x for x in taught]
    torch.testing.assert_close(value(soft_shares(*larger, first, 1.3), first, second, 3.0), loss)
    loss.backward()
    assert all(x.grad is None for x in taught)
    assert all(x.grad is not None and x.grad.any() for x in (first, second))


def test_a_teacher_that_is_certain_says_what_the_labels_do() -> None:
    first, second = codes(11)
    labels = torch.tensor([0, 2, 1, 1, 2, 0, 1])
    corners = torch.tensor([[1.0, 1, 1, 1], [-1, -1, 1, 1], [1, 1, -1, -1]]).double()[labels]
    loss = value(soft_shares(corners, corners, first, 1.3), first, second, 3.0)
    expected = mm_hashing_loss(first, second, labels, margin=3.0, negative_weight=1.3, **ALONE)
    # Its unlike corners, √8 or 4 apart, are no nearer than d̄.
    torch.testing.assert_close(loss, expected)


def test_a_teacher_that_tells_nothing_apart_and_a_lone_sample() -> None:
    first, second = codes(12)
    constant = torch.full((7, 9), 0.3)
    like, unlike = soft_shares(constant, constant, first, 1.0)
    assert (like == like[0, 0]).all()
    assert not unlike.any()
    shares = soft_shares(*teacher_codes(13, 1), first[:1], 1.0)
    loss = value(shares, first[:1], second[:1], 3.0, EVERYONE[:1])
    torch.testing.assert_close(loss, (first - second)[0].square().sum() / 2)


def test_a_teacher_that_says_nan_is_told() -> None:
    taught = teacher_codes(14)
    taught[1][3, 2] = torch.nan
    with pytest.raises(NonFiniteLossError, match="NaN for sample 3 of 7"):
        soft_shares(*taught, codes(0)[0], 1.0)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_saturated_and_equal_codes_stay_finite(kind: torch.dtype) -> None:
    raw = torch.tensor([[50.0, -50, 50], [50, -50, 50], [-50, -50, 50]]).repeat(3, 1)
    labels = torch.arange(9)
    for scale in (1.0, 0.0):
        logits = (scale * raw).to(kind).requires_grad_()
        code = logits.tanh()
        loss = mm_hashing_loss(code, code, labels, first_weight=1.0, second_weight=1.0)
        soft = soft_shares(code, code, code.float(), 1.0)
        (loss + pair_rows(code.float(), code.float(), soft, margin=2.0).mean()).backward()
        assert loss.isfinite()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


SIZES = (5, 2)


def of_ranks(own: slice) -> list[Tensor]:
    """Each kind of pairs on a part of the batch: the values, and the gradients of the codes."""
    first, second = (x[own].requires_grad_() for x in codes(15))
    taught = [x[own] for x in teacher_codes(16)]
    tags, mask = TAGS[own].clone().to(torch.int8), ~NONE[own]
    tags[NONE[own]] = -100
    kinds: dict[str, Any] = {
        "soft": (soft_shares(*taught, first, 1.3), EVERYONE[own]),
        "listed": (listed_shares(tags, DRAWS[own], first, 1.3, mask), mask),
        "bool": (labelled_shares(TAGS[own].bool(), first, 1.3, EVERYONE[own]), EVERYONE[own]),
    }
    values = [value(shares, first, second, 3.0, kept) for shares, kept in kinds.values()]
    values.append(mm_hashing_loss(first, second, tags, margin=3.0))
    torch.stack(values).sum().backward()
    assert first.grad is not None
    assert second.grad is not None
    return [*(x.detach() for x in values), first.grad, second.grad]


def rank_work(rank: int) -> list[Tensor]:
    torch.distributed.init_process_group("gloo")
    return of_ranks(slice(sum(SIZES[:rank]), sum(SIZES[: rank + 1])))


def test_two_ragged_processes_are_one(tmp_path: Path) -> None:
    *values, first, second = of_ranks(slice(None))
    one, two = in_two_processes(tmp_path, rank_work)
    torch.testing.assert_close(one[:-2], values)
    torch.testing.assert_close(two[:-2], values)
    for mine, theirs, whole in zip(one[-2:], two[-2:], (first, second), strict=True):
        # Each rank's gradient is that of the sum of the ranks' equal losses.
        torch.testing.assert_close(torch.cat((mine, theirs)) / 2, whole)
