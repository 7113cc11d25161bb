"""Distances of Gram rows: every form gives the same, near the teacher too, and holds no matrix."""

import math
from operator import mul
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.trajectory.processes import in_processes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from congener.ops import gram
from congener.ops.gram import cheapest_form, gram_distances

FORMS = ("dense", "tiled", "moments")
SHAPES = [(1, 3, 4), (2, 3, 5), (41, 7, 5), (300, 9, 30), (130, 150, 20)]


def features(rows: int, width: int, teacher_width: int, *leading: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    student = torch.randn(*leading, rows, width, generator=generator, dtype=torch.float64)
    teacher = torch.randn(*leading, rows, teacher_width, generator=generator, dtype=torch.float64)
    return student, teacher.relu()


def near(rows: int, width: int, noise: float) -> tuple[Tensor, Tensor]:
    """Features in float32, the student's a scaled copy of the teacher's but for noise."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(rows, width, generator=generator).relu()
    return 3 * (teacher + noise * torch.randn(rows, width, generator=generator)), teacher


def run(student: Tensor, teacher: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The distances, and the gradient of a sum of them with weights of its own for each."""
    student = student.detach().requires_grad_()
    distances = gram_distances(student, teacher, **options)
    weights = torch.linspace(1, 2, distances.numel(), dtype=distances.dtype).view_as(distances)
    (gradient,) = torch.autograd.grad((weights * distances).sum(), student)
    return distances.detach(), gradient


def off(actual: Tensor, expected: Tensor) -> float:
    """The error's length relative to that of what is expected."""
    return float((actual.double() - expected).norm() / expected.norm().clamp(min=1e-30))


def hold(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let blocks be small, so that small inputs have several."""
    monkeypatch.setattr(gram, "_ENTRIES", entries)
    monkeypatch.setattr(gram, "_CACHED", entries)


def by_hand(student: list[list[float]], teacher: list[list[float]], rows: bool) -> list[float]:
    def matrix(features: list[list[float]]) -> list[list[float]]:
        products = [[sum(map(mul, u, v)) for v in features] for u in features]
        norms = [max(math.hypot(*row), 1e-12) if rows else 1.0 for row in products]
        return [[x / n for x in row] for row, n in zip(products, norms, strict=True)]

    pairs = zip(matrix(student), matrix(teacher), strict=True)
    return [sum((a - b) ** 2 for a, b in zip(g, h, strict=True)) for g, h in pairs]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("normalize_rows", [True, False])
def test_oracle(form: Any, normalize_rows: bool) -> None:
    student, teacher = features(7, 3, 4)
    student[2], teacher[4] = 0, 0
    expected = by_hand(student.tolist(), teacher.tolist(), normalize_rows)
    actual = gram_distances(student, teacher, normalize_rows=normalize_rows, form=form)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("normalize_rows", [True, False])
@pytest.mark.parametrize("entries", [2**20, 3000])
def test_forms_are_equal(
    shape: tuple[int, ...], normalize_rows: bool, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(entries, monkeypatch)
    student, teacher = features(*shape)
    if shape[0] > 2:
        student[1], teacher[2] = 0, 0
    expected = run(student, teacher, normalize_rows=normalize_rows, form="dense")
    for form in ("tiled", "moments"):
        found = run(student, teacher, normalize_rows=normalize_rows, form=form)
        for actual, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-13 * max(1, wanted.max()))
            assert wanted.abs().max() < 1e6


@pytest.mark.parametrize("form", FORMS)
def test_a_row_of_zeros_has_no_gradient_of_its_own(form: Any) -> None:
    student, teacher = features(41, 7, 5)
    student[[3, 8]] = 0
    student.requires_grad_()
    distances = gram_distances(student, teacher, normalize_rows=True, form=form)
    zeros, others = distances[[3, 8]].sum(), distances.sum()
    (own,) = torch.autograd.grad(zeros, student, retain_graph=True)
    (all_rows,) = torch.autograd.grad(others, student)
    torch.testing.assert_close(zeros.detach(), torch.tensor(2.0, dtype=torch.float64))
    assert not own.any()
    assert 1e-3 < all_rows[3].abs().max() < 10  # as a column of the others'


@pytest.mark.parametrize("form", ["tiled", "moments"])
def test_rows_below_the_smallest_norm(form: Any) -> None:
    """Their divisor is a constant, so that nothing is projected out of the gradient."""
    student, teacher = features(41, 7, 5)
    expected = run(3e-8 * student, teacher, normalize_rows=True, form="dense")
    found = run(3e-8 * student, teacher, normalize_rows=True, form=form)
    assert 0 < gram_distances(3e-8 * student, 0 * teacher, normalize_rows=True).max() < 1
    assert max(off(a, e) for a, e in zip(found, expected, strict=True)) < 1e-12


@pytest.mark.parametrize("form", ["tiled", "moments"])
def test_matrices_side_by_side(form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(500, monkeypatch)
    student, teacher = features(20, 4, 6, 3)
    expected = run(student, teacher, normalize_rows=True, form="dense")
    found = run(student, teacher, normalize_rows=True, form=form)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    single = gram_distances(student[1], teacher[1], normalize_rows=True)
    torch.testing.assert_close(found[0][1], single)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("normalize_rows", [True, False])
def test_gradcheck(form: Any, normalize_rows: bool) -> None:
    student, teacher = features(6, 3, 4)
    student.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: gram_distances(x, teacher, normalize_rows=normalize_rows, form=form), student
    )


@pytest.mark.parametrize("normalize_rows", [True, False])
def test_dense_differentiates_twice(normalize_rows: bool) -> None:
    student, teacher = features(6, 3, 4, 2)
    student.requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda x: gram_distances(x, teacher, normalize_rows=normalize_rows), student
    )
    distances = gram_distances(student, teacher, normalize_rows=normalize_rows).square().sum()
    (once,) = torch.autograd.grad(distances, student, retain_graph=True)
    (graphed,) = torch.autograd.grad(distances, student, create_graph=True)
    torch.testing.assert_close(graphed, once)


@pytest.mark.parametrize("noise", [0.1, 3e-2, 1e-2, 1e-3, 1e-4])
def test_near_the_teacher(noise: float) -> None:
    """1 - cos from 3e-3 to 3e-9 in float32; never worse than the definition's own rounding."""
    student, teacher = near(600, 64, noise)
    exact = run(student.double(), teacher.double(), normalize_rows=True, form="dense")
    agreement = float(exact[0].mean()) / 2
    errors = {form: run(student, teacher, normalize_rows=True, form=form) for form in FORMS}
    dense, tiled, moments = (
        [off(a, e) for a, e in zip(errors[form], exact, strict=True)] for form in FORMS
    )
    if agreement >= 1e-3:
        assert moments[0] < 1e-4
        assert moments[1] < 2e-5
    else:
        assert max(moments) < 1e-6
    assert tiled[0] < 2 * dense[0] + 1e-7
    assert tiled[1] < 4 * dense[1] + 1e-6


def test_moments_lose_the_difference_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = near(600, 64, 1e-4)
    exact = run(student.double(), teacher.double(), normalize_rows=True, form="dense")
    monkeypatch.setattr(gram, "_NEAR", -1.0)
    lost = run(student, teacher, normalize_rows=True, form="moments")
    assert off(lost[1], exact[1]) > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_equal_networks_and_silence(form: Any) -> None:
    student, teacher = (x.float() for x in features(300, 8, 8))
    value, gradient = run(teacher, teacher, normalize_rows=True, form=form)
    assert value.abs().max() < 1e-6
    assert gradient.abs().max() < 1e-5
    zero = torch.zeros_like(student)
    for a, b in ((zero, zero), (zero, teacher), (student, zero), (1e-20 * student, teacher)):
        value, gradient = run(a, b, normalize_rows=True, form=form)
        expected = run(a.double(), b.double(), normalize_rows=True, form="dense")[0]
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)
        assert gradient.isfinite().all()
    value, gradient = run(1e9 * student, teacher, normalize_rows=True, form="moments")
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    for rows in (0, 1):
        value, gradient = run(student[:rows], teacher[:rows], normalize_rows=True, form=form)
        assert value.abs().sum() < 1e-6
        assert gradient.abs().sum() < 1e-5


def test_autocast_around_backward_changes_nothing() -> None:
    student, teacher = (x.float() for x in features(300, 8, 8))
    for form in ("tiled", "moments"):
        expected = run(student, teacher, normalize_rows=True, form=form)
        own = student.clone().requires_grad_()
        distances = gram_distances(own, teacher, normalize_rows=True, form=form)  # type: ignore[arg-type]
        loss = (torch.linspace(1, 2, 300) * distances).sum()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (gradient,) = torch.autograd.grad(loss, own)
        torch.testing.assert_close(gradient, expected[1], rtol=0, atol=0)


def test_the_form_follows_the_shape() -> None:
    assert cheapest_form(64, 16384) == "dense"
    assert cheapest_form(256, 4) == "dense"
    assert cheapest_form(1024, 512) == "tiled"
    assert cheapest_form(2048, 512) == "moments"
    assert cheapest_form(4096, 16384) == "tiled"
    assert cheapest_form(64, 4096, spans_ranks=True) == "dense"
    assert cheapest_form(256, 128, spans_ranks=True) == "tiled"
    assert cheapest_form(65536, 512, spans_ranks=True) == "moments"


class Largest(TorchDispatchMode):
    """Notes the most entries that any tensor had."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, Tensor):
                self.entries = max(self.entries, x.numel())
        return result


def test_no_matrix_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(2**13, monkeypatch)
    for width in (250, 16):
        student, teacher = (x.float() for x in features(400, width, width))
        with Largest() as seen:
            run(student, teacher, normalize_rows=True)
        assert seen.entries <= max(400 * width, 4 * 2**13) < 400 * 400
        with Largest() as seen:
            run(student, teacher, normalize_rows=True, form="dense")
        assert seen.entries == 400 * 400


@pytest.mark.parametrize("normalize_rows", [True, False])
def test_it_compiles_whole(normalize_rows: bool) -> None:
    torch.compiler.reset()
    # in float32 the moments look at their own values
    student, teacher = (x.float() for x in features(300, 4, 5))
    compiled = torch.compile(
        lambda x, y: gram_distances(x, y, normalize_rows=normalize_rows),
        fullgraph=True,
        backend="aot_eager",
    )
    expected = gram_distances(student, teacher, normalize_rows=normalize_rows)
    torch.testing.assert_close(compiled(student, teacher), expected)


SPLITS = [(170, 130), (120, 0, 50, 130)]


def work(rank: int, sizes: tuple[int, ...]) -> dict[Any, tuple[Tensor, Tensor]]:
    dist.init_process_group("gloo")
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    results = {}
    for form in FORMS:
        for dtype in (torch.float64, torch.float32):
            for normalize_rows in (True, False):
                student, teacher = (x[own].to(dtype) for x in features(300, 9, 30))
                student.requires_grad_()
                distances = gram_distances(
                    student, teacher, normalize_rows=normalize_rows, scope="global", form=form
                )
                weights = torch.linspace(1, 2, 300, dtype=dtype)[own]
                loss = (weights * distances).sum()
                twice = form == "dense"
                (gradient,) = torch.autograd.grad(loss, student, create_graph=twice)
                if twice:  # a gradient that can be differentiated again is the same
                    (again,) = torch.autograd.grad(loss, student)
                    assert off(gradient.detach(), again.double()) < 1e-5
                    gradient = again
                results[form, dtype, normalize_rows] = distances.detach(), gradient
    return results


@pytest.mark.parametrize("sizes", SPLITS, ids=str)
def test_processes_equal_one(sizes: tuple[int, ...], tmp_path: Path) -> None:
    ranks = in_processes(len(sizes), tmp_path, work, sizes)
    for key in ranks[0]:
        form, dtype, normalize_rows = key
        exact = run(*features(300, 9, 30), normalize_rows=normalize_rows, form="dense")
        for part in (0, 1):
            found = torch.cat([rank[key][part] for rank in ranks])
            limit = 1e-12 if dtype == torch.float64 else 5e-6 if form == "moments" else 1e-6
            assert off(found, exact[part]) < limit, key
