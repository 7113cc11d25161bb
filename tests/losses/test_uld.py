"""ULD: sorted probabilities, position by position of two answers."""

import pytest
import torch
from tests.losses import golden, oracles
from torch import Tensor

from congener.conformance.table.tokens import foreign_texts, texts
from congener.errors import ShapeError
from congener.losses import ULDLoss, total_variation_loss, uld_loss

Rows = list[list[float]]


def distance(z_s: list[float], z_t: list[float], tau: float) -> float:
    q = sorted(oracles.softmax(z_s, tau), reverse=True)
    p = sorted(oracles.softmax(z_t, tau), reverse=True)
    size = max(len(q), len(p))
    q, p = q + [0.0] * (size - len(q)), p + [0.0] * (size - len(p))
    return sum(abs(a - b) for a, b in zip(p, q, strict=True))


def oracle(student: list[Rows], teacher: list[Rows], tau: float = 1.0) -> float:
    """Of answers that are already cut out of their texts."""
    per_text = []
    for z_s, z_t in zip(student, teacher, strict=True):
        pairs = min(len(z_s), len(z_t))
        if pairs:
            per_text.append(sum(distance(z_s[k], z_t[k], tau) for k in range(pairs)) / pairs)
    return sum(per_text) / len(per_text)


def probabilities(*rows: list[float]) -> Tensor:
    return torch.tensor([rows], dtype=torch.float64).log()


def test_golden_value() -> None:
    student, teacher = (probabilities([0.3, 0.3, 0.3, 0.1]), probabilities([0.6, 0.25, 0.1, 0.05]))
    assert golden.close(uld_loss(student, teacher), 0.6)
    shuffled = teacher[..., [2, 0, 3, 1]]
    assert golden.close(uld_loss(student, shuffled), 0.6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_oracle(temperature: float) -> None:
    student, teacher = foreign_texts(0)
    expected = oracle(student.tolist(), teacher.tolist(), temperature)
    assert golden.close(ULDLoss(temperature)(student, teacher), expected)
    # and the other way round: the student has the larger vocabulary and fewer tokens
    assert golden.close(ULDLoss(temperature)(teacher, student), expected)


def test_answers_are_cut_out_of_their_texts() -> None:
    student, teacher = foreign_texts(1, 5)
    student_mask = torch.tensor(
        [[0, 1, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1]]
    ).bool()
    teacher_mask = torch.tensor([[0, 1, 1], [1, 1, 1], [0, 0, 1], [1, 1, 1], [1, 0, 1]]).bool()
    answers = [
        [z[kept].tolist() for z, kept in zip(logits, masks, strict=True)]
        for logits, masks in ((student, student_mask), (teacher, teacher_mask))
    ]
    expected = oracle(*answers)
    options = {"student_mask": student_mask, "teacher_mask": teacher_mask}
    assert golden.close(uld_loss(student, teacher, **options), expected)
    assert golden.close(ULDLoss()(student, teacher, **options), expected)
    per_text = uld_loss(student, teacher, reduction="none", **options)
    assert per_text[3] == 0
    assert golden.close(per_text[[0, 1, 2, 4]].mean(), expected)
    one_sided = [[z.tolist() for z in student], answers[1]]
    assert golden.close(uld_loss(student, teacher, teacher_mask=teacher_mask), oracle(*one_sided))
    # what is no answer may hold anything
    student[~student_mask], teacher[~teacher_mask] = torch.nan, torch.nan
    student.requires_grad_()
    loss = uld_loss(student, teacher, **options)
    loss.backward()
    assert golden.close(loss, expected)
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert (student.grad[~student_mask] == 0).all()
    assert (student.grad[2, 1:] == 0).all()  # its teacher has one position
    assert (student.grad[2, 0] != 0).any()


def test_masked_texts_are_as_if_absent() -> None:
    student, teacher = foreign_texts(2)
    mask = torch.tensor([1, 0, 1, 1, 0, 0, 1]).bool()
    answers = torch.rand(7, 4, generator=torch.Generator().manual_seed(0)) < 0.7
    torch.testing.assert_close(
        uld_loss(student, teacher, mask=mask, student_mask=answers),
        uld_loss(student[mask], teacher[mask], student_mask=answers[mask]),
    )


def test_permutations_of_the_vocabularies_change_nothing() -> None:
    student, teacher = foreign_texts(3)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    expected = uld_loss(student, teacher)
    torch.testing.assert_close(uld_loss(student, teacher[..., order]), expected)
    torch.testing.assert_close(uld_loss(student.flip(-1), teacher), expected)
    torch.testing.assert_close(uld_loss(student[..., :5], student.flip(-1)), 0 * expected)


def test_bounds() -> None:
    for seed in range(5):
        student, teacher = texts(seed)
        loss = uld_loss(student, teacher, reduction="none")
        plain = 2 * total_variation_loss(student, teacher, reduction="none").mean(dim=1)
        assert (loss >= 0).all()
        assert (loss <= plain + 1e-12).all()
        assert (loss < plain - 1e-3).any()
    spread, peak = torch.zeros(1, 1, 10_000), torch.zeros(1, 1, 3)
    peak[..., 1] = 1e4
    assert 1.99 < uld_loss(spread, peak) < 2


def test_a_larger_vocabulary_of_excluded_tokens_changes_nothing() -> None:
    student, teacher = texts(4)
    padded = torch.nn.functional.pad(teacher, (0, 4), value=-torch.inf)
    torch.testing.assert_close(uld_loss(student, padded), uld_loss(student, teacher))


def test_ties_have_a_finite_gradient() -> None:
    student = torch.zeros(2, 3, 4, requires_grad=True)
    uld_loss(student, torch.zeros(2, 3, 6)).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_no_positions_at_all() -> None:
    student = torch.randn(2, 0, 4, requires_grad=True)
    loss = uld_loss(student, torch.randn(2, 3, 5))
    loss.backward()
    assert loss == 0


def test_what_is_wrong_is_told() -> None:
    student, teacher = foreign_texts(5)
    with pytest.raises(ShapeError, match=r"\(7, 4, 5\).*\(4, 3, 6\).*same texts"):
        uld_loss(student, teacher[:4])
    with pytest.raises(ShapeError, match=r"\(7, 5\).*\(batch, tokens, vocab\)"):
        uld_loss(student[:, 0], teacher)
    with pytest.raises(ShapeError, match=r"student_mask \(7, 3\) must be .* = \(7, 4\)"):
        uld_loss(student, teacher, student_mask=torch.ones(7, 3, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"teacher_mask \(7, 4\) must be .* = \(7, 3\)"):
        uld_loss(student, teacher, teacher_mask=torch.ones(7, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="teacher_mask must be boolean"):
        uld_loss(student, teacher, teacher_mask=torch.ones(7, 3))
