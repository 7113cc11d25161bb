"""RKD: distances of pairs and angles of triplets, and what leaves them unchanged."""

import math

import pytest
import torch
from tests.losses import golden
from tests.losses.oracles import Matrix, dot, norm
from torch import Tensor

from congener.conformance.table.case import features
from congener.losses import RKDLoss, rkd_angle_loss, rkd_distance_loss, rkd_loss
from congener.ops import relations

PARTS = {"distance": rkd_distance_loss, "angle": rkd_angle_loss}
each_part = pytest.mark.parametrize("loss", PARTS.values(), ids=PARTS)


def huber(x: float) -> float:
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def distance_oracle(student: Matrix, teacher: Matrix) -> float:
    size = len(student)

    def ratios(points: Matrix) -> list[float]:
        found = {
            (i, j): math.sqrt(max(1e-12, sum((a - b) ** 2 for a, b in zip(p, q, strict=True))))
            for i, p in enumerate(points)
            for j, q in enumerate(points)
            if i != j
        }
        mean = sum(found.values()) / len(found)
        return [value / mean for value in found.values()]

    pairs = zip(ratios(student), ratios(teacher), strict=True)
    return sum(huber(s - t) for s, t in pairs) / size**2


def angle_oracle(student: Matrix, teacher: Matrix) -> float:
    size = len(student)

    def cosine(points: Matrix, j: int, i: int, k: int) -> float:
        first = [a - b for a, b in zip(points[j], points[i], strict=True)]
        second = [a - b for a, b in zip(points[k], points[i], strict=True)]
        length = norm(first) * norm(second)
        return dot(first, second) / length if length > 0 else 0.0

    total = 0.0
    for i in range(size):
        for j in range(size):
            for k in range(size):
                total += huber(cosine(student, j, i, k) - cosine(teacher, j, i, k))
    return total / size**3


def rows(x: Tensor) -> Matrix:
    return x.flatten(1).tolist()  # type: ignore[no-any-return]


def gradient(loss, student: Tensor, teacher: Tensor, **options) -> Tensor:
    student = student.detach().requires_grad_()
    (found,) = torch.autograd.grad(loss(student, teacher, **options), student)
    return found


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_oracle(batch: int) -> None:
    student, teacher = features(0, batch)
    student[0] *= 9  # far enough for the linear part of the Huber loss
    distance = distance_oracle(rows(student), rows(teacher))
    angle = angle_oracle(rows(student), rows(teacher))
    assert golden.close(rkd_distance_loss(student, teacher), distance)
    assert golden.close(rkd_angle_loss(student, teacher), angle)
    assert golden.close(RKDLoss()(student, teacher), 25 * distance + 50 * angle)
    assert golden.close(rkd_loss(student, teacher, distance_weight=0.5, angle_weight=3.0),
                        distance / 2 + 3 * angle)  # fmt: skip


def test_golden_values() -> None:
    student, teacher = golden.features()
    assert golden.close(rkd_distance_loss(student, teacher), 0.19970075184891384)
    assert golden.close(rkd_angle_loss(student, teacher), 0.08905054651692415)


@each_part
def test_contributions_are_by_first_index_and_by_vertex(loss) -> None:
    student, teacher = features(1, 5)
    student, teacher = student.flatten(1), teacher.flatten(1)
    per_sample = loss(student, teacher, reduction="none")
    if loss is rkd_distance_loss:
        ratios = []
        for points in (student, teacher):
            found = (points.unsqueeze(1) - points).norm(dim=2)
            ratios.append(found / (found.sum() / 20))
        expected = torch.nn.functional.smooth_l1_loss(*ratios, reduction="none").mean(dim=1)
    else:
        cosines = []
        for points in (student, teacher):
            directions = torch.nn.functional.normalize(points - points.unsqueeze(1), dim=2)
            cosines.append(directions @ directions.mT)
        expected = torch.nn.functional.smooth_l1_loss(*cosines, reduction="none").mean(dim=(1, 2))
    torch.testing.assert_close(per_sample, expected)


@each_part
def test_similarities_of_the_plane_change_nothing(loss) -> None:
    student, teacher = (x.flatten(1) for x in features(2))
    turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0),
                                       dtype=torch.float64))[0]  # fmt: skip
    expected = loss(student, teacher)
    torch.testing.assert_close(loss(5 + 3 * student @ turn, 7 - 0.1 * teacher), expected)
    assert not torch.isclose(loss(student * torch.linspace(1, 3, 12), teacher), expected, rtol=1e-3)


def test_two_samples_have_one_distance_and_one_angle() -> None:
    student, teacher = features(3, 2)
    assert golden.close(rkd_loss(student, teacher), 0.0)


@each_part
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_change_nothing(loss, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = (x.to(dtype) for x in features(4, 13))
    mask = torch.arange(13) % 4 != 1
    weights = torch.linspace(1, 2, 13, dtype=dtype)

    def weighted(s: Tensor, t: Tensor) -> Tensor:
        return (loss(s, t, mask=mask, reduction="none") * weights).sum()

    whole = weighted(student, teacher), gradient(weighted, student, teacher)
    for entries in (1, 30, 400):
        monkeypatch.setattr(relations, "_CPU_ENTRIES", entries)
        torch.testing.assert_close(weighted(student, teacher), whole[0])
        torch.testing.assert_close(gradient(weighted, student, teacher), whole[1])


@each_part
def test_gradient_is_that_of_differences(loss) -> None:
    """In float32, of clusters far from zero, against float64: no cancellation."""
    student, teacher = (x.flatten(1).float() for x in features(5, 12))
    student = 100 + student[torch.arange(12) % 3] + 1e-3 * student
    expected = gradient(loss, student.double(), teacher.double())
    torch.testing.assert_close(
        loss(student, teacher).double(), loss(student.double(), teacher.double()),
        rtol=1e-5, atol=0,
    )  # fmt: skip
    error = (gradient(loss, student, teacher) - expected).abs().max()
    assert error < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9])
def test_close_points(gap: float) -> None:
    student, teacher = features(6, 6)
    student, teacher = student.flatten(1), teacher.flatten(1)
    student[1] = student[0] + gap * student[2]
    expected = angle_oracle(rows(student), rows(teacher))
    assert golden.close(rkd_angle_loss(student, teacher), expected, 1e-6)
    expected = distance_oracle(rows(student), rows(teacher))
    assert golden.close(rkd_distance_loss(student, teacher), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_that_coincide(dtype: torch.dtype) -> None:
    student, teacher = (x.flatten(1).to(dtype) for x in features(7, 6))
    student[3] = student[1]
    for loss, oracle in ((rkd_distance_loss, distance_oracle), (rkd_angle_loss, angle_oracle)):
        tolerance = 1e-12 if dtype == torch.float64 else 1e-6
        expected = oracle(rows(student), rows(teacher))
        assert golden.close(loss(student, teacher), expected, tolerance)
        assert gradient(loss, student, teacher).abs().max() < 1


@each_part
def test_all_points_in_one(loss) -> None:
    _, teacher = features(8, 5)
    student = torch.ones(5, 3, dtype=torch.float64)
    oracle = distance_oracle if loss is rkd_distance_loss else angle_oracle
    assert golden.close(loss(student, teacher), oracle(rows(student), rows(teacher)))
    assert (gradient(loss, student, teacher) == 0).all()


@each_part
def test_half_precision_gives_numbers(loss) -> None:
    student, teacher = (x.half() for x in features(9, 6))
    student[2] = student[4]
    value = loss(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), loss(student.double(), teacher.double()),
                               rtol=1e-5, atol=0)  # fmt: skip
    assert gradient(loss, student, teacher).isfinite().all()


def test_no_angle_is_computed_at_weight_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("congener.losses.rkd.rkd_angle_loss", None)
    student, teacher = features(10)
    assert rkd_loss(student, teacher, angle_weight=0.0) > 0


@each_part
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_in_closed_form(loss, masked: bool) -> None:
    student, teacher = (x.flatten(1) for x in features(11, 6))
    student = 10 + student
    mask = torch.arange(6) != 2 if masked else None
    expected = loss(student[mask], teacher[mask]) if masked else loss(student, teacher)
    torch.testing.assert_close(loss(student, teacher, mask=mask), expected)
    assert torch.autograd.gradcheck(
        lambda x: loss(x, teacher, mask=mask, reduction="none"), student.requires_grad_()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [0.0, 1e-4])
def test_gradient_of_close_points(gap: float, dtype: torch.dtype) -> None:
    def reference(s: Tensor, t: Tensor) -> Tensor:
        ratios = []
        for points in (s, t):
            squares = (points.unsqueeze(1) - points).square().sum(dim=2)
            found = squares.clamp(min=1e-12).sqrt()[~torch.eye(6, dtype=torch.bool)]
            ratios.append(found / found.mean())
        return torch.nn.functional.smooth_l1_loss(*ratios, reduction="sum") / 36

    student, teacher = (x.flatten(1).to(dtype) for x in features(12, 6))
    student[1] = student[0] + gap * student[2]
    found = gradient(rkd_distance_loss, student, teacher).double()
    expected = gradient(reference, student.double(), teacher.double())
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4 if gap else 1e-6
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@each_part
def test_gradient_in_the_linear_part(loss) -> None:
    student, teacher = (x.flatten(1)[:, :2].contiguous() for x in features(13, 8))
    student[0] *= 9
    assert torch.autograd.gradcheck(
        lambda x: loss(x, teacher, reduction="none"), student.requires_grad_()
    )
