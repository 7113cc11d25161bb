"""The laws that tokens are drawn from, their draws, and the teacher's top K."""

import math

import pytest
import torch
from tests.generation import oracle

from congener.errors import NonFiniteLossError
from congener.generation import Sampling, accepted, draw, law

INF = math.inf
SAMPLINGS = [
    Sampling(), Sampling(0.5), Sampling(0.0), Sampling(1.0, 0.5), Sampling(2.0, 0.9, 3),
    Sampling(0.7, 1.0, 1), Sampling(1.0, 0.01), Sampling(1.0, 1.0, 100), Sampling(0.2, 0.5),
]  # fmt: skip
# Powers of two as probabilities are exact, so that sums can equal top_p.
ROWS = torch.tensor(
    [
        [0.1, -2.0, 0.1, 3.0, 0.1],
        [math.log(x) for x in (0.125, 0.25, 0.125, 0.25, 0.25)],
        [1.0, 1.0, 1.0, 1.0, 1.0],
        [-INF, 0.3, -INF, 0.2, -1.0],
        [-INF, -INF, 5.0, -INF, -INF],
    ],
    dtype=torch.float64,
)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_the_law_is_that_of_the_formula(sampling: Sampling) -> None:
    expected = torch.tensor([oracle.law(row, sampling) for row in ROWS.tolist()]).double()
    torch.testing.assert_close(law(ROWS, sampling), expected, rtol=1e-6, atol=1e-12)


def test_the_nucleus_is_the_smallest_set_that_reaches_its_mass() -> None:
    logits = torch.tensor([[0.125, 0.5, 0.25, 0.125]]).double().log()
    kept = [int((law(logits, Sampling(top_p=p)) > 0).sum()) for p in (0.4, 0.5, 0.51, 0.75, 0.8)]
    assert kept == [1, 1, 2, 2, 3]
    assert law(logits, Sampling(top_p=0.8))[0, 3] == 0  # of equal ones the first id counts


def test_top_k_comes_before_top_p() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25]]).double().log()
    assert law(logits, Sampling(top_p=0.6, top_k=2)).tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_draws_are_the_inverse_of_the_cumulative_law(sampling: Sampling) -> None:
    uniform = torch.linspace(0, 1, 258)[:-1] + 1e-4
    for logits in ROWS:
        drawn = draw(logits.expand(len(uniform), -1), sampling, uniform)
        probabilities = oracle.law(logits.tolist(), sampling)
        assert drawn.tolist() == [oracle.draw(probabilities, u) for u in uniform.tolist()]


def test_an_excluded_token_is_never_drawn_at_the_ends() -> None:
    ends = torch.tensor([0.0, 1 - 2.0**-24])
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert draw(ROWS[3].to(dtype).expand(2, -1), Sampling(), ends).tolist() == [1, 4]


def test_greedy_takes_the_first_of_equal_ones() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
    assert draw(logits, Sampling(0.0), torch.tensor([0.99, 0.99])).tolist() == [1, 0]


def test_accepted_are_the_first_of_the_ranking() -> None:
    for logits in ROWS:
        best = oracle.ranking(logits.tolist())
        for top_k in (0, 1, 2, 3, 5, 25):
            stand = accepted(logits.expand(5, -1), torch.arange(5), top_k)
            assert stand.tolist() == [token in best[:top_k] for token in range(5)]
    grid = accepted(ROWS[None], torch.tensor([[3, 0, 4, 1, 2]]), 1)
    assert grid.tolist() == [[True, False, False, True, True]]


@pytest.mark.parametrize("wrong", [[math.nan, 0.0], [INF, 0.0], [-INF, -INF]])
def test_logits_that_have_no_order_are_refused(wrong) -> None:
    logits = torch.tensor([[0.0, 0.0], wrong])
    for sampling in (Sampling(), Sampling(0.0)):
        with pytest.raises(NonFiniteLossError, match=r"no token can be drawn.*float32"):
            draw(logits, sampling, torch.zeros(2))
    with pytest.raises(NonFiniteLossError, match="NaN"):
        accepted(logits, torch.tensor([0, 1]), 1)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [({"temperature": -1.0}, "temperature"), ({"temperature": INF}, "temperature"),
     ({"top_p": 0.0}, "top_p"), ({"top_p": 1.1}, "top_p"), ({"top_k": 0}, "top_k")],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(wrong, match) -> None:
    with pytest.raises(ValueError, match=match):
        Sampling(**wrong)
