"""Several processes compute what one does on the whole batch: values and gradients."""

from typing import Any

import pytest
import torch
from tests.contract import distributed, projectors
from tests.trajectory.processes import in_processes
from torch import Tensor, nn

from congener import losses
from congener.conformance.table import LOSSES
from congener.ops.collectives import lone_sample_expected

Results = list[dict[str, Any]]

SPLITS = {"two ragged": (5, 2), "four, one of them empty": (3, 0, 1, 3)}


@pytest.fixture(scope="module", params=SPLITS.values(), ids=SPLITS)
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The sizes of the ranks' batches, and what each rank computed."""
    sizes = request.param
    folder = tmp_path_factory.mktemp("ranks")
    return sizes, in_processes(len(sizes), folder, distributed.work, sizes)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def mean_over_ranks(results: Results, key: str, part: int = 1) -> Tensor:
    """What DDP makes of the ranks' gradients: each row is on one rank, zero on the others."""
    return torch.cat([result[key][part] for result in results]) / len(results)


def one_process(
    name: str, dtype: torch.dtype, masked: bool, reduction: str
) -> tuple[Tensor, Tensor]:
    mask = distributed.mask_of() if masked else None
    student, teacher = distributed.inputs_of(LOSSES[name], dtype)
    student.requires_grad_()
    value = LOSSES[name].call(student, teacher, mask=mask, reduction=reduction)
    (gradient,) = torch.autograd.grad(distributed.weighed(value), student)
    return value.detach(), gradient


def off(actual: Tensor, expected: Tensor) -> float:
    """The largest error, relative to the largest entry."""
    assert actual.shape == expected.shape
    size = expected.abs().max().clamp(min=1e-3) if expected.numel() else 1
    return float(((actual - expected).abs() / size).max())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_processes_equal_one(name: str, masked: bool, ranks: tuple[Any, Results]) -> None:
    """To 1e-10 in float64; in float32 to 1e-6, or to a few times its own distance from float64."""
    sizes, results = ranks
    for dtype, reductions in distributed.TYPES.items():
        for reduction in reductions:
            exact = one_process(name, torch.float64, masked, reduction)
            key = f"{name}/{dtype}/{masked}/{reduction}"
            value, gradient = expected = one_process(name, dtype, masked, reduction)
            floor = 1e-10 if dtype == torch.float64 else 1e-6
            limits = [max(floor, 4 * off(a, b)) for a, b in zip(expected, exact, strict=True)]
            if reduction == "none":
                assert off(torch.cat([result[key][0] for result in results]), value) <= limits[0]
                gradient = gradient / len(sizes)  # what DDP's mean makes of a sum over rows
            else:
                for result in results:
                    assert off(result[key][0], value) <= limits[0]
            assert off(mean_over_ranks(results, key), gradient) <= limits[1]


def test_a_loss_of_the_own_rows_would_be_seen(ranks: tuple[Any, Results]) -> None:
    """The control: what every rank computes alone is not the loss of all."""
    _, results = ranks
    for name in (name for name, case in LOSSES.items() if case.batch_coupled):
        value, _ = one_process(name, torch.float64, False, "mean")
        local = torch.stack([result[f"{name}/local"] for result in results]).mean()
        assert off(local, value) > 1e-6, name


@pytest.mark.parametrize("name", LOSSES)
@lone_sample_expected()
def test_local_scope_is_the_own_batch(name: str, ranks: tuple[Any, Results]) -> None:
    sizes, results = ranks
    student, teacher = LOSSES[name].make(21, batch=distributed.ROWS)
    for rank, result in enumerate(results):
        own = distributed.own_rows(sizes, rank)
        assert_close(result[f"{name}/local"], LOSSES[name].call(student[own], teacher[own]))


@pytest.mark.parametrize("name", projectors.modules())
def test_projectors_normalise_the_global_batch(name: str, ranks: tuple[Any, Results]) -> None:
    _, results = ranks
    value, gradients, buffers = projectors.run_modules(slice(None))[f"module {name}"]
    found = [result[f"module {name}"] for result in results]
    for rank in found:
        assert_close(rank[0], value)
        assert rank[2].keys() == buffers.keys()
        for key, buffer in buffers.items():
            assert_close(rank[2][key], buffer)
    for number, gradient in enumerate(gradients):
        assert_close(torch.stack([rank[1][number] for rank in found]).mean(dim=0), gradient)


def test_projectors_may_normalise_the_own_batch(ranks: tuple[Any, Results]) -> None:
    sizes, results = ranks
    for rank, result in enumerate(results):
        own = projectors.maps(7, 3, 2, 2)[distributed.own_rows(sizes, rank)]
        norm = nn.BatchNorm2d(3).double()
        if len(own):
            norm(own)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        for found, wanted in zip(
            result["local statistics"], (norm.running_mean, norm.running_var), strict=True
        ):
            assert_close(found, wanted)


def test_temperatures(ranks: tuple[Any, Results]) -> None:
    sizes, results = ranks
    student, teacher = LOSSES["cskd"].make(22, batch=distributed.ROWS)
    together = torch.cat([result["temperatures"] for result in results])
    assert_close(together, losses.cswt_temperatures(student, teacher))
    mask = distributed.mask_of()
    masked = torch.cat([result["masked temperatures"] for result in results])
    assert_close(masked, losses.cswt_temperatures(student, teacher, mask=mask))
    own = distributed.own_rows(sizes, 0)
    assert_close(
        results[0]["local temperatures"], losses.cswt_temperatures(student[own], teacher[own])
    )


def test_global_mean(ranks: tuple[Any, Results]) -> None:
    sizes, results = ranks
    mask = distributed.mask_of()
    for result in results:
        assert result["mean"][0] == 4
        assert_close(result["masked mean"][0], torch.tensor(21 / 5, dtype=torch.float64))
        assert result["nothing"][0] == 0
        assert (result["nothing"][1] == 0).all()
        assert result["count"] == 5
    # d(mean²) = 2 · mean · 1/7, whichever rank holds the row
    assert_close(mean_over_ranks(results, "mean"), torch.full((7,), 8 / 7, dtype=torch.float64))
    assert_close(mean_over_ranks(results, "masked mean"), mask.double() / 5)
    assert_close(results[0]["lone"], torch.full((sizes[0],), len(sizes) / 7, dtype=torch.float64))
    assert all(result["lone"] is None for result in results[1:])
    own = torch.arange(1.0, 8.0, dtype=torch.float64)[distributed.own_rows(sizes, 0)]
    assert_close(results[0]["local mean"], own.mean())


def test_gather_rows(ranks: tuple[Any, Results]) -> None:
    sizes, results = ranks
    expected = torch.arange(14.0, dtype=torch.float64).reshape(7, 2)
    for rank, result in enumerate(results):
        assert_close(result["gathered"][0], expected)
        assert result["gathered"][1] == distributed.own_rows(sizes, rank)
        assert result["flags"].dtype == torch.bool
        assert (result["flags"] == distributed.mask_of()).all()
    # every rank's use of a row counts: 1 + 2 + … over ranks
    uses = sum(range(1, len(sizes) + 1))
    gradient = torch.cat([result["gathered"][2] for result in results])
    assert_close(gradient, uses * distributed.weights_of().unsqueeze(1).expand(7, 2))


def test_all_sum_differentiates_twice(ranks: tuple[Any, Results]) -> None:
    sizes, results = ranks
    total, world = 2.0 * len(sizes), len(sizes)
    for result in results:
        assert result["derivatives"][0] == world * 3 * total**2
        assert result["derivatives"][1] == world**2 * 6 * total


def test_ddp_leaves_the_gradient_of_one_process(ranks: tuple[Any, Results]) -> None:
    sizes, results = ranks
    inputs, _ = LOSSES["kd"].make(23, batch=distributed.ROWS)
    _, teacher = LOSSES["kd"].make(24, batch=distributed.ROWS)
    for name in ("kd", "sp", "cskd", "dist") if len(sizes) == 2 else ():
        student = distributed.small_network()
        LOSSES[name].call(student(inputs), teacher).backward()
        for result in results:
            for actual, parameter in zip(result[f"ddp {name}"], student.parameters(), strict=True):
                assert parameter.grad is not None
                assert_close(actual, parameter.grad)
