"""AB: what it is, and what of the teacher it reads."""

import pytest
import torch
from tests.losses import golden
from torch import Tensor

from congener.errors import ShapeError
from congener.losses import ABLoss, ab_loss


def maps(seed: int, *shapes: tuple[int, ...], batch: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(batch, *s, generator=generator, dtype=torch.float64) for s in shapes]


def oracle(student: Tensor, teacher: Tensor, margin: float) -> float:
    total = 0.0
    for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        if t <= 0 and s > -margin:
            total += (s + margin) ** 2
        if t > 0 and s <= margin:
            total += (s - margin) ** 2
    return total / len(student)


@pytest.mark.parametrize("margin", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("shape", [(6,), (3, 4, 2)])
def test_oracle(margin: float, shape: tuple[int, ...]) -> None:
    student, teacher = maps(0, shape, shape)
    teacher[0] = 0  # a neuron at 0 is off
    expected = oracle(student, teacher, margin)
    assert golden.close(ABLoss(margin=margin)(student, teacher), expected)
    total = ab_loss(student, teacher, margin=margin, reduction="sum")
    assert golden.close(total, 4 * expected)


def test_only_the_sign_of_the_teacher_counts() -> None:
    student, teacher = maps(1, (3, 4, 2), (3, 4, 2))
    expected = ab_loss(student, teacher)
    torch.testing.assert_close(ab_loss(student, teacher.sign() * 1e-3), expected)
    torch.testing.assert_close(ab_loss(-student, -teacher), expected)
    assert not torch.isclose(ab_loss(student, -teacher), expected)


def test_past_the_margin_there_is_neither_value_nor_gradient() -> None:
    (teacher,) = maps(2, (3, 4, 2))
    student = (1.5 * teacher.sign()).requires_grad_()
    loss = ab_loss(student, teacher)
    assert loss == 0
    assert (torch.autograd.grad(loss, student)[0] == 0).all()
    assert ab_loss(student, teacher, margin=2.0) > 0
    assert golden.close(ab_loss(0.5 * teacher.sign(), teacher), 24 * 0.25)


def test_margin_and_features_scale_together() -> None:
    student, teacher = maps(3, (3, 4, 2), (3, 4, 2))
    tripled = ab_loss(3 * student, teacher, margin=3.0)
    torch.testing.assert_close(tripled, 9 * ab_loss(student, teacher))


def test_projector_has_no_relu() -> None:
    student, teacher = maps(4, (3, 4, 4), (2, 2, 2))
    module = ABLoss((3, 4, 4), (2, 2, 2)).double()
    assert module.projector is not None
    projected = module.projector.bn(module.projector.conv(student))
    assert projected.min() < 0
    torch.testing.assert_close(module(student, teacher), ab_loss(projected, teacher))
    mask = torch.tensor([True, False, True, True])
    expected = module(student[mask], teacher[mask])
    student[1] = torch.nan
    torch.testing.assert_close(module(student, teacher, mask), expected)


def test_errors() -> None:
    student, teacher = maps(5, (3, 4, 4), (2, 4, 4))
    with pytest.raises(ShapeError, match=r"\(4, 2, 4, 4\) must have one shape; .*ABLoss\(student"):
        ABLoss()(student, teacher)
    for margin in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="margin must be finite and not negative"):
            ab_loss(student, student, margin=margin)
        with pytest.raises(ValueError, match="margin must be finite and not negative"):
            ABLoss(margin=margin)
    with pytest.raises(ValueError, match="needs both student_shape and teacher_shape"):
        ABLoss(teacher_shape=(3, 4, 4))
