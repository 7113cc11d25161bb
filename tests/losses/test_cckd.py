"""CCKD: kernels of pairs of samples; and the neighbours' products that go by the same name."""

import math
from typing import Literal

import pytest
import torch
from tests.losses import golden
from tests.losses.oracles import Matrix, dot, norm
from torch import Tensor

from congener.conformance.table.case import features, pooled
from congener.errors import ShapeError
from congener.losses import (
    CCKDLoss,
    NeighbourCorrelationLoss,
    cckd_loss,
    neighbour_correlation_loss,
)
from congener.losses.cckd_parts import kernel_values
from congener.ops import relations
from congener.ops.collectives import lone_sample_expected

Kernel = Literal["rbf", "bilinear", "mmd"]


def oracle(
    student: Matrix, teacher: Matrix, kernel: str = "rbf", gamma: float = 0.4, order: int = 2,
    normalize: bool = True,
) -> float:  # fmt: skip
    def phi(x: list[float], y: list[float]) -> float:
        if normalize:
            x, y = [a / norm(x) for a in x], [a / norm(y) for a in y]
        if kernel == "mmd":
            return abs(sum(x) / len(x) - sum(y) / len(y))
        if kernel == "bilinear":
            return dot(x, y)
        terms = [(2 * gamma * dot(x, y)) ** p / math.factorial(p) for p in range(order + 1)]
        return math.exp(-2 * gamma) * sum(terms)

    total = 0.0
    for i in range(len(student)):
        for j in range(len(student)):
            total += (phi(student[i], student[j]) - phi(teacher[i], teacher[j])) ** 2
    return total / len(student) ** 2


def neighbours_oracle(student: Matrix, teacher: Matrix) -> float:
    deltas = [
        [abs(a - b) for a, b in zip(s, t, strict=True)]
        for s, t in zip(student, teacher, strict=True)
    ]
    return sum(dot(deltas[i], deltas[i + 1]) for i in range(len(deltas) - 1)) / (len(deltas) - 1)


def rows(x: Tensor) -> Matrix:
    return x.flatten(1).tolist()  # type: ignore[no-any-return]


def gradient(loss, student: Tensor, teacher: Tensor, **options) -> Tensor:
    student = student.detach().requires_grad_()
    (found,) = torch.autograd.grad(loss(student, teacher, **options), student)
    return found


@pytest.mark.parametrize("kernel", ["rbf", "bilinear", "mmd"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("batch", [2, 6])
def test_oracle(kernel: Kernel, normalize: bool, batch: int) -> None:
    student, teacher = features(0, batch)
    expected = oracle(rows(student), rows(teacher), kernel, normalize=normalize)
    assert golden.close(CCKDLoss(kernel, normalize=normalize)(student, teacher), expected)


@pytest.mark.parametrize(("gamma", "order"), [(0.4, 0), (0.4, 1), (0.7, 4), (1.3, 5)])
def test_oracle_of_any_order(gamma: float, order: int) -> None:
    student, teacher = features(1)
    expected = oracle(rows(student), rows(teacher), gamma=gamma, order=order)
    assert golden.close(cckd_loss(student, teacher, gamma=gamma, order=order), expected)


def test_golden_values() -> None:
    wanted = {1: 0.043856964920967946, 2: 0.08409051428105889, 3: 0.09648331453691036}
    for order, value in wanted.items():
        assert golden.close(cckd_loss(*golden.features(), order=order), value)


def test_of_high_order_it_is_the_gaussian_kernel() -> None:
    grid = torch.linspace(0, math.pi, 200, dtype=torch.float64)
    points = torch.stack((grid.cos(), grid.sin()), dim=1)
    exact = (-0.4 * (points.unsqueeze(1) - points).square().sum(dim=2)).exp()
    for order, error in {1: 0.191, 2: 0.0474, 3: 0.0091, 4: 0.0014}.items():
        found = kernel_values(points, points, kernel="rbf", gamma=0.4, order=order)
        assert 0.9 * error < (found - exact).abs().max() < 1.1 * error
    found = kernel_values(points, points, kernel="rbf", gamma=0.4, order=20)
    torch.testing.assert_close(found, exact)


def test_of_order_1_it_compares_cosines() -> None:
    student, teacher = (x.flatten(1) for x in features(2))
    cosines = [torch.cosine_similarity(x.unsqueeze(1), x, dim=2) for x in (student, teacher)]
    expected = (0.8 * math.exp(-0.8)) ** 2 * (cosines[0] - cosines[1]).square().mean()
    torch.testing.assert_close(cckd_loss(student, teacher, order=1), expected)
    assert golden.close(cckd_loss(student, teacher, order=0), 0.0)


def test_what_changes_nothing_and_what_does() -> None:
    student, teacher = (x.flatten(1) for x in features(3))
    scale = torch.linspace(0.5, 3, 7, dtype=torch.float64).unsqueeze(1)
    expected = cckd_loss(student, teacher)
    torch.testing.assert_close(cckd_loss(scale * student.flip(1), teacher / scale), expected)
    assert not torch.isclose(cckd_loss(student + 1, teacher), expected, rtol=1e-3)
    assert not torch.isclose(
        cckd_loss(scale * student, teacher, normalize=False),
        cckd_loss(student, teacher, normalize=False), rtol=1e-3,
    )  # fmt: skip


def test_it_is_bounded() -> None:
    low, high = 0.234, 0.953
    for seed in range(5):
        assert 0 < cckd_loss(*features(seed, 9)) < (high - low) ** 2


@pytest.mark.parametrize(
    ("gamma", "order", "falls"),
    [
        (0.5, 2, False),
        (0.51, 2, True),
        (0.7, 4, False),
        (0.9, 4, True),
        (3.0, 3, False),
        (2.0, 1, False),
    ],
)
def test_kernels_that_fall_with_the_cosine_are_told(gamma: float, order: int, falls: bool) -> None:
    angle = torch.linspace(0, math.pi, 999, dtype=torch.float64)
    circle = torch.stack((angle.cos(), angle.sin()), dim=1)
    values = kernel_values(circle[:1], circle, kernel="rbf", gamma=gamma, order=order)
    assert bool((values.diff() > 1e-12).any()) is falls
    if falls:
        with pytest.warns(UserWarning, match=f"order {order} is not monotone for gamma {gamma}"):
            CCKDLoss(gamma=gamma, order=order)
    else:
        CCKDLoss(gamma=gamma, order=order)
    CCKDLoss("bilinear", gamma, order)


@pytest.mark.parametrize("kernel", ["rbf", "bilinear", "mmd"])
def test_blocks_change_nothing(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = features(4, 13)
    options = {"kernel": kernel, "mask": torch.arange(13) % 4 != 1}
    whole = cckd_loss(student, teacher, **options), gradient(cckd_loss, student, teacher, **options)
    for entries in (1, 30, 80):
        monkeypatch.setattr(relations, "_CPU_ENTRIES", entries)
        torch.testing.assert_close(cckd_loss(student, teacher, **options), whole[0])
        found = gradient(cckd_loss, student, teacher, **options)
        torch.testing.assert_close(found, whole[1])


def test_masked_samples_have_no_mean() -> None:
    student, teacher = (x.flatten(1) + 1 for x in features(4))
    mask = torch.arange(7) % 3 != 1
    found = cckd_loss(student, teacher, kernel="mmd", normalize=False, mask=mask)
    expected = oracle(rows(student[mask]), rows(teacher[mask]), "mmd", normalize=False)
    assert golden.close(found, expected)


def test_a_sample_of_zeros_has_no_direction() -> None:
    student, teacher = (x.flatten(1) for x in features(5))
    student[2] = 0
    found = gradient(cckd_loss, student, teacher)
    assert (found[2] == 0).all()
    assert found.isfinite().all()
    assert found.abs().max() < 1


@pytest.mark.parametrize(
    "wrong", [{"gamma": 0.0}, {"gamma": math.nan}, {"order": -1}, {"order": 1.5}]
)
def test_wrong_kernels_are_told(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="gamma must be positive and order 0, 1, 2, …"):
        cckd_loss(*features(6), **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kernel must be one of"):
        CCKDLoss("cubic")  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_neighbours_oracle(batch: int) -> None:
    student, teacher = pooled(7, batch)
    expected = neighbours_oracle(rows(student), rows(teacher))
    assert golden.close(neighbour_correlation_loss(student, teacher), expected)


def test_neighbours_golden_value() -> None:
    student, _ = golden.features()
    teacher = torch.tensor([[max(0, math.cos(0.5 + 2 * i + 0.9 * j)) for j in range(6)]
                            for i in range(4)], dtype=torch.float64)  # fmt: skip
    assert golden.close(neighbour_correlation_loss(student, teacher), 1.6704703064332858)


def test_neighbours_depend_on_the_order_of_the_batch() -> None:
    student, teacher = pooled(8)
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    expected = neighbour_correlation_loss(student, teacher)
    shuffled = neighbour_correlation_loss(student[order], teacher[order])
    assert not torch.isclose(shuffled, expected, rtol=1e-3)
    backwards = neighbour_correlation_loss(student.flip(0), teacher.flip(0))
    torch.testing.assert_close(backwards, expected)


def test_neighbours_are_found_after_masked_samples_are_left_out() -> None:
    student, teacher = pooled(9)
    mask = torch.tensor([True, False, True, True, False, False, True])
    per_sample = neighbour_correlation_loss(student, teacher, mask=mask, reduction="none")
    delta = (student - teacher).abs()
    expected = torch.zeros(7, dtype=torch.float64)
    for i, j in ((0, 2), (2, 3), (3, 6)):
        expected[i] = 4 / 3 * (delta[i] * delta[j]).sum()
    torch.testing.assert_close(per_sample, expected)


@lone_sample_expected()
def test_neighbours_of_a_lone_sample() -> None:
    student, teacher = pooled(10, batch=1)
    assert neighbour_correlation_loss(student, teacher) == 0
    assert (gradient(neighbour_correlation_loss, student, teacher) == 0).all()


def test_every_second_difference_zero_is_enough() -> None:
    student, teacher = pooled(11)
    student[1::2] = teacher[1::2]
    assert neighbour_correlation_loss(student, teacher) == 0


def test_both_embeddings_are_trained_and_the_teacher_is_not() -> None:
    student, teacher = features(12)
    student.requires_grad_()
    teacher.requires_grad_()
    torch.manual_seed(0)
    module = NeighbourCorrelationLoss(12, 18, 5)
    module(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    for parameter in module.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0
    embedded = (module.student_embedding(student.flatten(1).float()),
                module.teacher_embedding(teacher.flatten(1).float()))  # fmt: skip
    expected = neighbour_correlation_loss(*embedded)
    torch.testing.assert_close(module(student, teacher).float(), expected)


def test_embeddings_need_the_width_they_were_built_for() -> None:
    student, teacher = features(13)
    module = NeighbourCorrelationLoss(12, 12)
    with pytest.raises(ShapeError, match=r"teacher_feature \(7, 18\).* 12"):
        module(student, teacher)
    with pytest.raises(ShapeError, match="NeighbourCorrelationLoss"):
        neighbour_correlation_loss(student, teacher)
