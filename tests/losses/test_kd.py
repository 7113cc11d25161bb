"""KD, its cross-entropy form and its hard-label control."""

import math

import pytest
import torch
from tests.losses import golden, oracles

from congener.conformance.table.case import logits
from congener.errors import ShapeError
from congener.losses import hard_label_loss, kd_loss, soft_cross_entropy_loss


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("shape", [(1, 2), (3, 5), (6, 4)])
def test_oracle(temperature: float, shape: tuple[int, int]) -> None:
    student, teacher = logits(0, shape[0], shape[1:])
    lists = (student.tolist(), teacher.tolist())
    assert golden.close(
        kd_loss(student, teacher, temperature=temperature), oracles.kd(*lists, temperature), 1e-11
    )
    assert golden.close(
        soft_cross_entropy_loss(student, teacher, temperature=temperature),
        oracles.soft_cross_entropy(*lists, temperature),
    )
    assert golden.close(hard_label_loss(student, teacher), oracles.hard_label(*lists))


def test_golden_values() -> None:
    student, teacher = golden.logits()
    assert golden.close(kd_loss(student, teacher, temperature=4.0), 2.6988564334544627)
    assert golden.close(kd_loss(student, teacher, temperature=1.0), 1.5470618939580891)
    student, teacher = 3 * golden.wave((4, 5), 0.1), 3 * golden.wave((4, 5), 0.9)
    assert golden.close(kd_loss(student, teacher, temperature=4.0), 1.1796722303, 1e-10)
    assert golden.close(kd_loss(student, teacher, temperature=1.0), 0.7150031976, 1e-10)


def test_default_temperature() -> None:
    student, teacher = golden.logits()
    assert golden.close(kd_loss(student, teacher), 2.6988564334544627)


def test_limit_of_a_high_temperature() -> None:
    """τ² KL tends to the mean over samples and classes of (z̃_s − z̃_t)² / 2, z̃ centred logits."""
    student, teacher = logits(1)
    centred = [z - z.mean(dim=1, keepdim=True) for z in (student, teacher)]
    limit = (centred[0] - centred[1]).square().mean() / 2
    errors = [
        abs(kd_loss(student, teacher, temperature=t).item() / limit.item() - 1) for t in (1e2, 1e3)
    ]
    assert errors[1] < 0.2 * errors[0] < 0.02


def test_gradient_is_the_difference_of_probabilities() -> None:
    student, teacher = logits(2)
    student.requires_grad_()
    kd_loss(student, teacher, temperature=3.0).backward()
    p_s, p_t = ([oracles.softmax(row, 3.0) for row in z.tolist()] for z in (student, teacher))
    expected = 3.0 / 7 * (torch.tensor(p_s) - torch.tensor(p_t)).double()
    torch.testing.assert_close(student.grad, expected, rtol=1e-6, atol=1e-7)


def test_cross_entropy_is_divergence_and_entropy() -> None:
    student, teacher = logits(3)
    probabilities = torch.softmax(teacher / 2, dim=1)
    entropy = -(probabilities * probabilities.log()).sum(dim=1).mean()
    divergence = kd_loss(student, teacher, temperature=2.0) / 4
    cross_entropy = soft_cross_entropy_loss(student, teacher, temperature=2.0)
    torch.testing.assert_close(cross_entropy, divergence + entropy)
    torch.testing.assert_close(soft_cross_entropy_loss(teacher, teacher, temperature=2.0), entropy)


@pytest.mark.parametrize("loss", [kd_loss, soft_cross_entropy_loss, hard_label_loss])
def test_shift_of_a_samples_logits_changes_nothing(loss: object) -> None:
    assert callable(loss)
    student, teacher = logits(4)
    shift = torch.arange(7.0, dtype=torch.float64).unsqueeze(1)
    expected = loss(student, teacher)
    torch.testing.assert_close(loss(student + shift, teacher - 2 * shift), expected)


def test_excluded_classes_count_nothing() -> None:
    student, teacher = logits(5, shape=(6,))
    kept = [0, 2, 3, 5]
    for closed in (teacher, student):
        closed[:, [1, 4]] = -torch.inf
        for loss in (kd_loss, soft_cross_entropy_loss):
            own = student.clone().requires_grad_()
            value = loss(own, teacher)
            value.backward()
            assert own.grad is not None
            assert own.grad.isfinite().all()
            if closed is student:
                torch.testing.assert_close(value, loss(student[:, kept], teacher[:, kept]))
    both = kd_loss(student, teacher, reduction="none")
    assert both.isfinite().all()


def test_huge_logits_keep_their_value() -> None:
    student, teacher = torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]])
    assert kd_loss(student, teacher, temperature=1.0) == 1e4
    assert kd_loss(student, teacher, temperature=4.0) == 4e4
    assert hard_label_loss(student, teacher) == 1e4


def test_tied_teacher_takes_the_first_class() -> None:
    student, teacher = torch.tensor([[0.0, math.log(3.0)]]), torch.zeros(1, 2)
    torch.testing.assert_close(hard_label_loss(student, teacher), torch.tensor(math.log(4.0)))


def test_the_way_out_fits_the_shapes() -> None:
    student, teacher = logits(9)
    with pytest.raises(ShapeError, match=r"\(7, 5\) and .* \(7, 4\) .* the same classes\."):
        kd_loss(student, teacher[:, :4])
    with pytest.raises(ShapeError, match=r"lay other axes, such as tokens, out as rows\."):
        kd_loss(student.unsqueeze(1), teacher.unsqueeze(1))
