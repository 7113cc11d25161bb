"""SRRL: the pooled feature, and what the frozen classifier reads in it."""

import math

import pytest
import torch
from tests.losses import golden
from torch import Tensor

from congener.errors import ShapeError
from congener.losses import SRRLLoss, srrl_feature_loss, srrl_logit_loss, srrl_loss

MASK = torch.tensor([True, False, True, True])


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def inputs() -> tuple[Tensor, ...]:
    """Features of 5 channels, the teacher's logits of 3 classes, and its classifier."""
    features = random(4, 5, 2, 3), random(4, 5, 4, 1, seed=1)
    return *features, random(4, 3, seed=2), random(3, 5, seed=3), random(3, seed=4)


def pooled(feature: Tensor) -> list[list[float]]:
    return [
        [sum(channel) / len(channel) for channel in sample]
        for sample in feature.flatten(2).tolist()
    ]


def mean_square(a: list[list[float]], b: list[list[float]]) -> float:
    squares = [(x - y) ** 2 for u, v in zip(a, b, strict=True) for x, y in zip(u, v, strict=True)]
    return sum(squares) / len(squares)


def read(rows: list[list[float]], weight: Tensor, bias: Tensor) -> list[list[float]]:
    layer = list(zip(weight.tolist(), bias.tolist(), strict=True))
    return [
        [sum(w * h for w, h in zip(line, row, strict=True)) + b for line, b in layer]
        for row in rows
    ]


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_oracle(weight: float) -> None:
    student, teacher, logits, *classifier = inputs()
    feature = mean_square(pooled(student), pooled(teacher))
    logit = mean_square(read(pooled(student), *classifier), logits.tolist())
    assert golden.close(srrl_feature_loss(student, teacher), feature)
    assert golden.close(srrl_logit_loss(student, logits, *classifier), logit)
    total = srrl_loss(student, teacher, logits, *classifier, weight=weight)
    assert golden.close(total, feature + weight * logit)


def test_a_classifier_without_bias() -> None:
    student, _, logits, weight, bias = inputs()
    expected = srrl_logit_loss(student, logits, weight, torch.zeros_like(bias))
    torch.testing.assert_close(srrl_logit_loss(student, logits, weight), expected)


def test_only_the_student_learns() -> None:
    tensors = [x.requires_grad_() for x in inputs()]
    srrl_loss(*tensors).backward()
    assert tensors[0].grad is not None
    assert [x.grad for x in tensors[1:]] == [None] * 4


def test_positions_do_not_matter() -> None:
    student, *others = inputs()
    order = torch.tensor([4, 0, 5, 1, 3, 2])
    moved = student.flatten(2)[..., order]
    torch.testing.assert_close(srrl_loss(moved, *others), srrl_loss(student, *others))
    means = student.mean(dim=(2, 3))
    torch.testing.assert_close(srrl_loss(means, *others), srrl_loss(student, *others))


def test_the_classifier_weighs_directions() -> None:
    """Of two equal errors of the feature, the one that the classifier cannot see costs less."""
    teacher = random(1, 2)
    weight = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    known = (teacher, teacher @ weight.T, weight)
    seen, hidden = (teacher + e for e in torch.eye(2, dtype=torch.float64))
    assert golden.close(srrl_loss(seen, *known), 0.5 + 1)
    assert golden.close(srrl_loss(hidden, *known), 0.5)


def build() -> SRRLLoss:
    torch.manual_seed(0)
    return SRRLLoss(6, 5, 0.5).double()


def test_module() -> None:
    _, teacher, logits, *classifier = inputs()
    student, module = random(4, 6, 2, 2), build().eval()
    expected = srrl_loss(module.projector(student), teacher, logits, *classifier, weight=0.5)
    torch.testing.assert_close(module(student, teacher, logits, *classifier), expected)
    assert module.projector(student).min() == 0
    pooled_student = module(student.mean(dim=(2, 3)), teacher, logits, *classifier)
    assert not torch.isclose(pooled_student, expected, rtol=1e-3)


def test_the_projector_starts_as_published() -> None:
    torch.manual_seed(0)
    convolution = SRRLLoss(200, 50).projector.conv
    assert convolution.bias is None
    assert math.isclose(convolution.weight.std().item(), math.sqrt(2 / 50), rel_tol=0.02)


@pytest.mark.parametrize("training", [True, False])
def test_masked_samples_are_absent_from_the_projector_too(training: bool) -> None:
    _, teacher, logits, *classifier = inputs()
    student = random(4, 6, 2, 2)
    module = build().train(training)
    expected = module(student[MASK], teacher[MASK], logits[MASK], *classifier)
    student[~MASK], logits[~MASK] = torch.nan, torch.inf
    found = build().train(training)(student, teacher, logits, *classifier, mask=MASK)
    torch.testing.assert_close(found, expected)


def test_errors() -> None:
    student, teacher, logits, weight, bias = inputs()
    with pytest.raises(ShapeError, match=r"\(4, 4, 2, 3\).*\(4, 5, 4, 1\) must have as many"):
        srrl_loss(student[:, 1:], teacher, logits, weight, bias)
    with pytest.raises(ShapeError, match=r"classifier_weight \(3, 4\) must be"):
        srrl_loss(student, teacher, logits, weight[:, 1:], bias)
    with pytest.raises(ShapeError, match=r"classifier_bias \(2,\)"):
        srrl_loss(student, teacher, logits, weight, bias[1:])
    with pytest.raises(ShapeError, match=r"\(4, 3\) and teacher_logits \(4, 2\)"):
        srrl_loss(student, teacher, logits[:, 1:], weight, bias)
    with pytest.raises(ValueError, match="classifier_weight must be floating point"):
        srrl_loss(student, teacher, logits, weight.long(), bias)
