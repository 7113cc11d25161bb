"""KD of tags: its formula number by number, its limits, and logits that float32 would round."""

from math import exp, log, log1p

import pytest
import torch
from tests.losses import golden
from torch import Tensor

from congener.conformance.table.case import logits
from congener.losses import MultiLabelKDLoss, kd_loss, multilabel_kd_loss


def oracle(student: list[list[float]], teacher: list[list[float]], tau: float) -> float:
    """The cross-entropy of two sigmoids, tag by tag, as the peer writes it."""
    total, count = 0.0, 0
    for z_s, z_t in zip(student, teacher, strict=True):
        for s, t in zip(z_s, z_t, strict=True):
            p, q = 1 / (1 + exp(-t / tau)), 1 / (1 + exp(-s / tau))
            total -= p * log(q) + (1 - p) * log(1 - q)
            count += 1
    return total / count


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_oracle(tau: float) -> None:
    student, teacher = logits(0)
    expected = oracle(student.tolist(), teacher.tolist(), tau)
    assert golden.close(multilabel_kd_loss(student, teacher, temperature=tau), expected)
    assert golden.close(MultiLabelKDLoss(temperature=tau)(student, teacher), expected)
    if tau == 2.0:
        assert golden.close(MultiLabelKDLoss()(student, teacher), expected)


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_gradient_is_the_difference_of_probabilities(tau: float) -> None:
    """Over τ and the number of tags and samples: no factor τ² hides in it."""
    student, teacher = logits(1)
    student.requires_grad_()
    loss = multilabel_kd_loss(student, teacher, temperature=tau)
    (gradient,) = torch.autograd.grad(loss, student)
    expected = torch.sigmoid(student.detach() / tau) - torch.sigmoid(teacher / tau)
    torch.testing.assert_close(gradient, expected / (tau * student.numel()))


def test_at_match_it_is_the_teachers_entropy_and_flat() -> None:
    _, teacher = logits(2)
    student = teacher.clone().requires_grad_()
    loss = multilabel_kd_loss(student, teacher, temperature=1.0)
    (gradient,) = torch.autograd.grad(loss, student)
    p = torch.sigmoid(teacher)
    assert golden.close(loss, float(-(p * p.log() + (1 - p) * (1 - p).log()).mean()))
    assert gradient.abs().max() < 1e-15
    for other in (0.9 * teacher, 1.1 * teacher):
        assert multilabel_kd_loss(other, teacher, temperature=1.0) > loss


def test_a_tag_is_kd_between_yes_and_no() -> None:
    """The logit of yes against 0 for no: Hinton's loss, beside the entropy and τ²."""
    student, teacher = logits(3)

    def yes_and_no(x: Tensor) -> Tensor:
        return torch.stack((x, torch.zeros_like(x)), dim=2).flatten(0, 1)

    entropy = multilabel_kd_loss(teacher, teacher, temperature=3.0)
    excess = multilabel_kd_loss(student, teacher, temperature=3.0) - entropy
    hinton = kd_loss(yes_and_no(student), yes_and_no(teacher), temperature=3.0)
    torch.testing.assert_close(9 * excess, hinton)


def test_tags_stand_each_for_itself() -> None:
    student, teacher = logits(4)
    of_tags = torch.stack(
        [multilabel_kd_loss(student[:, j : j + 1], teacher[:, j : j + 1]) for j in range(5)]
    )
    torch.testing.assert_close(multilabel_kd_loss(student, teacher), of_tags.mean())
    # yes and no change places
    turned = multilabel_kd_loss(-student, -teacher)
    torch.testing.assert_close(turned, multilabel_kd_loss(student, teacher))
    shifted = multilabel_kd_loss(student + 1, teacher + 1)  # no softmax, so not the same
    assert not torch.isclose(shifted, turned, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_sure_and_wrong(dtype: torch.dtype) -> None:
    """Cross-entropy of sigmoids stops at a clamp; of logits, it is the logit, and still pulls."""
    student = torch.tensor([[1e4, -1e4, 1e4, 30.0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 1e4, -30.0]], dtype=dtype)
    loss = multilabel_kd_loss(student, teacher, temperature=1.0)
    (gradient,) = torch.autograd.grad(loss, student)
    assert golden.close(loss, (1e4 + 1e4 + 0 + 30 + log1p(exp(-30))) / 4, 1e-6)
    assert gradient.tolist() == [[0.25, -0.25, 0.0, 0.25]]
