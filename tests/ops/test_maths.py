"""The maths that belongs to no paper, against plain numbers and library equivalents."""

import math

import pytest
import torch
import torch.nn.functional as F

from congener.ops.checks import check_choice, check_temperature
from congener.ops.collectives import all_sum, batch_size, gather_rows, global_mean
from congener.ops.divergence import kl_rows, soften
from congener.ops.precision import upcast
from congener.ops.reduction import blank_rows, reduce_samples
from congener.ops.similarity import (
    column_correlations,
    column_cosines,
    cosine_shares,
    gram,
    row_correlations,
)
from congener.ops.spatial import pixels_as_rows


def pair(rows: int = 6, columns: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, rows, columns, generator=generator, dtype=torch.float64)
    return first, second


MASK = torch.tensor([True, False, True, True, False, True])


def test_global_mean_in_one_process() -> None:
    values = torch.tensor([1.0, 2.0, torch.nan, 6.0], requires_grad=True)
    mask = torch.tensor([True, True, False, True])
    mean = global_mean(values, mask)
    mean.backward()
    assert mean == 3
    assert values.grad is not None
    torch.testing.assert_close(values.grad, torch.tensor([1.0, 1, 0, 1]) / 3)
    assert global_mean(values.detach()[:2]) == 1.5


@pytest.mark.parametrize("scope", ["global", "local"])
def test_global_mean_of_nothing(scope: str) -> None:
    for values in (torch.ones(3, requires_grad=True), torch.ones(0, requires_grad=True)):
        mean = global_mean(values, torch.zeros(len(values), dtype=torch.bool), scope=scope)  # type: ignore[arg-type]
        mean.backward()
        assert mean == 0
        assert values.grad is not None
        assert (values.grad == 0).all()


def test_global_mean_of_many_half_precision_values() -> None:
    values = torch.ones(70_000, dtype=torch.float16)
    assert global_mean(values).dtype == torch.float32
    assert global_mean(values) == 1


def test_global_mean_refuses() -> None:
    with pytest.raises(ValueError, match="scope must be one of 'global', 'local'"):
        global_mean(torch.ones(2), scope="world")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mask"):
        global_mean(torch.ones(2), torch.ones(3, dtype=torch.bool))


def test_collectives_of_one_process_are_the_tensor_itself() -> None:
    x = torch.ones(3, 2)
    assert all_sum(x) is x
    assert gather_rows(x) == (x, slice(0, 3))
    assert batch_size(x) == 3
    assert batch_size(x, torch.tensor([True, False, True])) == 2
    assert batch_size(x[:0]) == 1


def test_collectives_compile() -> None:
    torch.compiler.reset()
    compiled = torch.compile(global_mean, fullgraph=True, backend="aot_eager")
    values = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    mask = torch.tensor([True, True, False])
    compiled(values, mask).backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, torch.tensor([0.5, 0.5, 0]))


@pytest.mark.parametrize("dim", [0, 1])
def test_cosine_shares_add_up(dim: int) -> None:
    first, second = pair()
    expected = F.cosine_similarity(first, second, dim=dim)
    clamped = cosine_shares(first, second, dim=dim, mode="clamp").sum(dim)
    torch.testing.assert_close(clamped, expected, rtol=1e-12, atol=0)
    norms = first.norm(dim=dim) * second.norm(dim=dim)
    added = cosine_shares(first, second, dim=dim, eps=0.5).sum(dim)
    torch.testing.assert_close(added, expected * norms / (norms + 0.5), rtol=1e-12, atol=0)


def test_clamp_raises_each_norm_and_add_their_product() -> None:
    first, second = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.01]])
    clamped = cosine_shares(first, second, dim=1, eps=0.1, mode="clamp").sum()
    added = cosine_shares(first, second, dim=1, eps=0.1, mode="add").sum()
    torch.testing.assert_close(clamped, torch.tensor(0.04 / (5 * 0.1)))
    torch.testing.assert_close(added, torch.tensor(0.04 / (0.05 + 0.1)))
    with pytest.raises(ValueError, match="mode must be one of 'add', 'clamp', not 'max'"):
        cosine_shares(first, second, dim=1, mode="max")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["add", "clamp"])
def test_zero_vectors_have_cosine_zero_and_a_finite_gradient(mode: str) -> None:
    first, second = torch.zeros(2, 3, requires_grad=True), torch.ones(2, 3)
    cosine = cosine_shares(first, second, dim=1, mode=mode).sum(1)  # type: ignore[arg-type]
    cosine.sum().backward()
    assert (cosine == 0).all()
    assert first.grad is not None
    assert first.grad.isfinite().all()
    # as of a norm whose gradient at 0 is 0: second / eps, over its norm where that is clamped, too
    scale = 1e8 if mode == "add" else 1e8 / math.sqrt(3)
    torch.testing.assert_close(first.grad, torch.full((2, 3), scale))


def test_column_cosines_ignore_masked_rows() -> None:
    first, second = (blank_rows(x, MASK) for x in pair())
    expected = F.cosine_similarity(first[MASK], second[MASK], dim=0).mean()
    shares = column_cosines(first, second, MASK)
    torch.testing.assert_close(shares.sum() / 4, expected, rtol=1e-7, atol=0)
    assert (shares[~MASK] == 0).all()


def test_correlations_are_pearsons() -> None:
    first, second = pair()
    rows = [torch.corrcoef(torch.stack(both))[0, 1] for both in zip(first, second, strict=True)]
    torch.testing.assert_close(row_correlations(first, second), torch.stack(rows))
    columns = [
        torch.corrcoef(torch.stack(both))[0, 1]
        for both in zip(first[MASK].T, second[MASK].T, strict=True)
    ]
    shares = column_correlations(blank_rows(first, MASK), blank_rows(second, MASK), MASK)
    torch.testing.assert_close(shares.sum() / 4, torch.stack(columns).mean())


def test_gram() -> None:
    first, _ = pair(3, 2)
    for i in range(3):
        for j in range(3):
            torch.testing.assert_close(gram(first)[i, j], (first[i] * first[j]).sum())


def test_soften_leaves_masked_rows_zero() -> None:
    first, _ = pair()
    first[~MASK] = torch.nan
    temperature = torch.linspace(1, 2, 6, dtype=torch.float64)
    temperature[~MASK] = 0
    first.requires_grad_()
    probabilities = soften(first, temperature, MASK)
    probabilities.square().sum().backward()
    torch.testing.assert_close(probabilities.sum(dim=1), MASK.double())
    assert first.grad is not None
    assert first.grad.isfinite().all()
    expected = torch.softmax(first[3] / temperature[3], dim=0)
    torch.testing.assert_close(probabilities[3], expected)
    assert soften(first.detach()[MASK].half()).dtype == torch.float32


def test_divergence_of_rows() -> None:
    first, second = pair()
    expected = F.kl_div(
        F.log_softmax(first / 2, dim=1), F.softmax(second / 2, dim=1), reduction="none"
    ).sum(dim=1)
    torch.testing.assert_close(kl_rows(first, second, 2.0), expected)


def test_reduce_samples() -> None:
    values = torch.tensor([1.0, 5.0, torch.nan])
    mask = torch.tensor([True, True, False])
    options = {"scope": "global"}
    assert reduce_samples(values, mask, reduction="mean", **options) == 3  # type: ignore[arg-type]
    assert reduce_samples(values, mask, reduction="sum", **options) == 6  # type: ignore[arg-type]
    none = reduce_samples(values, mask, reduction="none", **options)  # type: ignore[arg-type]
    assert none.tolist() == [1, 5, 0]


@pytest.mark.parametrize("mask", [torch.tensor([True, True, False]), None])
def test_reduce_samples_of_pairs(mask: torch.Tensor | None) -> None:
    """As if each were divided by the size of the batch."""
    values = torch.tensor([1.0, 5.0, 3.0])
    size = 3 if mask is None else 2
    for reduction in ("mean", "sum", "none"):
        options = {"reduction": reduction, "scope": "local"}
        found = reduce_samples(values, mask, of_pairs=True, **options)  # type: ignore[arg-type]
        expected = reduce_samples(values / size, mask, **options)  # type: ignore[arg-type]
        torch.testing.assert_close(found, expected)


def test_blank_rows_of_any_shape() -> None:
    x = torch.ones(2, 3, 4)
    assert blank_rows(x, None) is x
    blank = blank_rows(x, torch.tensor([True, False]))
    assert blank[0].sum() == 12
    assert blank[1].sum() == 0


def test_upcast_never_goes_down() -> None:
    half, single, double = (
        torch.zeros(1, dtype=d) for d in (torch.half, torch.float, torch.double)
    )
    assert [x.dtype for x in upcast(half, half)] == [torch.float32] * 2
    assert [x.dtype for x in upcast(half, double)] == [torch.float64] * 2
    assert upcast(single)[0] is single


def test_pixels_as_rows() -> None:
    x = torch.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    rows = pixels_as_rows(x)
    assert rows.shape == (8, 3)
    assert rows[5].tolist() == x[1, :, 0, 1].tolist()
    assert pixels_as_rows(rows) is rows


def test_checks_speak_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"^margin must be one of 'a', 'b', not 'c'\.$"):
        check_choice("margin", "c", ("a", "b"))
    with pytest.raises(ValueError, match=r"^temperature must be positive and finite, not 0\.$"):
        check_temperature(0)
