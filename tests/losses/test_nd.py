"""ND: direction and length, and the class means."""

from math import sqrt

import pytest
import torch
from tests.losses import golden
from torch import Tensor

from congener.conformance.table.case import pooled
from congener.errors import ShapeError
from congener.losses import NDLoss, class_means, nd_loss

LABELS = torch.tensor([0, 2, 1, 1, 2, 0, 1])


def means() -> Tensor:
    return golden.wave((3, 6), 0.7)


def oracle(
    student: list[list[float]], teacher: list[list[float]], labels: list[int], c: list[list[float]]
) -> list[float]:
    def norm(u: list[float]) -> float:
        return sqrt(sum(a * a for a in u))

    rows = []
    for s, t, y in zip(student, teacher, labels, strict=True):
        along = sum(a * b for a, b in zip(s, c[y], strict=True)) / norm(c[y])
        rows.append(1 - along / max(norm(s), norm(t)))
    return rows


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_oracle(scale: float) -> None:
    student, teacher = pooled(0)
    expected = oracle(
        (scale * student).tolist(), teacher.tolist(), LABELS.tolist(), means().tolist()
    )
    rows = nd_loss(scale * student, teacher, LABELS, means(), reduction="none")
    torch.testing.assert_close(rows, torch.tensor(expected, dtype=torch.float64))
    assert golden.close(NDLoss()(scale * student, teacher, LABELS, means()), sum(expected) / 7)


def test_golden_values() -> None:
    student = golden.wave((5, 4), 0.7) * torch.tensor([[0.2], [0.5], [1.0], [2.0], [4.0]])
    student.requires_grad_()
    inputs = (student, golden.wave((5, 4), 1.1), torch.tensor([0, 1, 2, 1, 0]))
    rows = nd_loss(*inputs, golden.wave((3, 4), 0.3), reduction="none")
    expected = [0.825456, 0.567121, 0.090244, 0.824588, 1.767932]
    torch.testing.assert_close(rows, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)
    assert golden.close(rows.mean(), 0.8150681439, 1e-7)
    (gradient,) = torch.autograd.grad(rows.mean(), student)
    assert golden.close(gradient.norm(), 0.2508211354, 1e-7)


def gradient_of(student: Tensor, teacher: Tensor, labels: Tensor = LABELS) -> Tensor:
    student = student.clone().requires_grad_()
    rows = nd_loss(student, teacher, labels, means(), reduction="none")
    return torch.autograd.grad(rows.sum(), student)[0]


def test_gradient_turns_the_long_and_pushes_the_short() -> None:
    student, teacher = pooled(1)
    directions = (means() / means().norm(dim=1, keepdim=True))[LABELS]
    long = 100 * student
    s = long / long.norm(dim=1, keepdim=True)
    turn = -(directions - (directions * s).sum(1, keepdim=True) * s) / long.norm(
        dim=1, keepdim=True
    )
    torch.testing.assert_close(gradient_of(long, teacher), turn)
    push = -directions / teacher.norm(dim=1, keepdim=True)
    torch.testing.assert_close(gradient_of(student / 100, teacher), push)
    torch.testing.assert_close(gradient_of(torch.zeros_like(student), teacher), push)


def test_of_equal_lengths_the_students_counts() -> None:
    _, teacher = pooled(2)
    gradient = gradient_of(teacher, teacher)
    assert (gradient * teacher).sum(dim=1).abs().max() < 1e-14
    assert gradient.abs().max() > 1e-2


def test_value_is_continuous_where_the_lengths_meet() -> None:
    _, teacher = pooled(3)
    student = teacher.flip(1)
    below, above = (nd_loss(student * f, teacher, LABELS, means()) for f in (1 - 1e-9, 1 + 1e-9))
    torch.testing.assert_close(below, above, rtol=0, atol=1e-8)


def test_bounds() -> None:
    _, teacher = pooled(4)
    on_target = means()[LABELS]
    for factor, least in ((1e3, 0.0), (-1e3, 2.0)):
        assert golden.close(nd_loss(factor * on_target, teacher, LABELS, means()), least)
    short = 1e-3 * on_target
    assert 0.9 < nd_loss(short, teacher, LABELS, means()) < 1
    student = pooled(4)[0].abs()
    assert 0 <= nd_loss(student, teacher.abs(), LABELS, means().abs()) <= 1


@pytest.mark.parametrize("factor", [1e-3, 50.0])
def test_common_scale_and_scale_of_the_means_change_nothing(factor: float) -> None:
    student, teacher = pooled(5)
    expected = nd_loss(student, teacher, LABELS, means())
    scaled = nd_loss(factor * student, factor * teacher, LABELS, means())
    torch.testing.assert_close(scaled, expected)
    torch.testing.assert_close(nd_loss(student, teacher, LABELS, factor * means()), expected)
    assert not torch.isclose(nd_loss(student, factor * teacher, LABELS, means()), expected)


def test_longer_than_the_teacher_it_is_a_cosine() -> None:
    student, teacher = pooled(6)
    student = 100 * student
    cosines = torch.cosine_similarity(student, means()[LABELS], dim=1)
    torch.testing.assert_close(nd_loss(student, teacher, LABELS, means()), (1 - cosines).mean())


def test_zeros_give_one_and_stay_finite() -> None:
    zero = torch.zeros(7, 6, dtype=torch.float64)
    assert nd_loss(zero, zero, LABELS, means()) == 1
    assert not gradient_of(zero, zero).any()
    student, teacher = pooled(7)
    rows = nd_loss(student, teacher, LABELS, means() * torch.tensor([[1.0], [0], [1]]),
                   reduction="none")  # fmt: skip
    assert (rows[LABELS == 1] == 1).all()


def test_unlabelled_samples_are_as_if_masked() -> None:
    student, teacher = pooled(8)
    labels = LABELS.clone()
    labels[2:4] = -100
    known = labels >= 0
    expected = nd_loss(student[known], teacher[known], labels[known], means())
    torch.testing.assert_close(nd_loss(student, teacher, labels, means()), expected)
    both = torch.arange(7) != 2
    torch.testing.assert_close(nd_loss(student, teacher, labels, means(), mask=both), expected)
    labels[2] = 77  # whatever a masked sample's label is
    torch.testing.assert_close(nd_loss(student, teacher, labels, means(), mask=known), expected)


def test_what_does_not_fit_is_told() -> None:
    student, teacher = pooled(9)
    with pytest.raises(ValueError, match=r"labels must lie in 0…2, not 3; mark .* negative"):
        nd_loss(*pooled(9), LABELS + 1, means())
    with pytest.raises(ShapeError, match=r"\(7, 6\) .* \(7, 5\) .* projector"):
        nd_loss(student, teacher[:, :5], LABELS, means())
    with pytest.raises(ShapeError, match=r"class_means \(3, 5\)"):
        nd_loss(student, teacher, LABELS, means()[:, :5])
    with pytest.raises(ShapeError, match=r"labels \(6,\) .* \(7,\)"):
        nd_loss(student, teacher, LABELS[:6], means())
    with pytest.raises(ValueError, match="labels must be integers"):
        nd_loss(student, teacher, LABELS.double(), means())


def test_class_means_are_the_means_of_each_class() -> None:
    features, _ = pooled(10)
    labels = LABELS.clone()
    labels[6] = -1
    expected = [[0.0] * 6 for _ in range(3)]
    for k in range(3):
        rows = [features[i].tolist() for i in range(7) if labels[i] == k]
        expected[k] = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    found = class_means(features.requires_grad_(), labels, 3)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert not found.requires_grad
    order = torch.randperm(7)
    torch.testing.assert_close(class_means(features[order], labels[order], 3), found)
    assert class_means(features.half(), labels, 3).dtype == torch.float32


def test_class_means_add_up_in_float64() -> None:
    features = torch.full((100_001, 1), 0.1)
    features[0] = 1e8
    found = class_means(features, torch.zeros(100_001, dtype=torch.int64), 1)
    torch.testing.assert_close(found, features.double().mean(0, keepdim=True).float())


def test_class_means_refuse_a_class_without_samples() -> None:
    features, _ = pooled(11)
    with pytest.raises(ValueError, match=r"classes \[3, 4\] have no sample"):
        class_means(features, LABELS, 5)
    with pytest.raises(ValueError, match="labels must lie in 0…1, not 2"):
        class_means(features, LABELS, 2)
    with pytest.raises(ShapeError, match="features"):
        class_means(features.flatten(), LABELS, 3)
