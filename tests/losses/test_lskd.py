"""LSKD: what it is, its two forms, and what leaves it unchanged."""

from math import log, sqrt
from typing import Any, Literal

import pytest
import torch
from tests.losses import golden, oracles

from congener.conformance.table.case import logits
from congener.errors import ShapeError
from congener.losses import LSKDLoss, kd_loss, lskd_loss, standardize_logits

Variant = Literal["authors", "paper"]
both_variants = pytest.mark.parametrize("variant", ["authors", "paper"])


def z_score(row: oracles.Row, variant: str) -> list[float]:
    mean = sum(row) / len(row)
    squares = sum((value - mean) ** 2 for value in row)
    if variant == "authors":
        deviation = sqrt(squares / (len(row) - 1)) + 1e-7
    else:
        deviation = sqrt(squares / len(row))
    return [(value - mean) / deviation for value in row]


def lskd(student: oracles.Matrix, teacher: oracles.Matrix, tau: float, variant: str) -> float:
    total = 0.0
    for z_s, z_t in zip(student, teacher, strict=True):
        p_s = oracles.softmax(z_score(z_s, variant), tau)
        p_t = oracles.softmax(z_score(z_t, variant), tau)
        total += sum(b * log(b / a) for a, b in zip(p_s, p_t, strict=True))
    return tau**2 * total / len(student)


@both_variants
@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_oracle(tau: float, variant: Variant) -> None:
    student, teacher = logits(0)
    expected = lskd(student.tolist(), teacher.tolist(), tau, variant)
    assert golden.close(LSKDLoss(tau, variant=variant)(student, teacher), expected)


def test_golden_value() -> None:
    assert golden.close(lskd_loss(*golden.logits()), 0.656938346419337)


@both_variants
def test_it_is_kd_of_standardised_logits(variant: Variant) -> None:
    student, teacher = logits(1)
    standard = [standardize_logits(z, variant=variant) for z in (student, teacher)]
    torch.testing.assert_close(
        kd_loss(*standard, temperature=2.0), lskd_loss(student, teacher, variant=variant)
    )


@both_variants
def test_positive_affine_maps_change_nothing(variant: Variant) -> None:
    student, teacher = logits(2)
    factor = torch.logspace(-2, 3, 7, dtype=torch.float64).unsqueeze(1)
    expected = lskd_loss(student, teacher, variant=variant)
    for pair in ((factor * student - 7, teacher), (student, factor * teacher + 7)):
        torch.testing.assert_close(lskd_loss(*pair, variant=variant), expected, rtol=1e-4, atol=0)
    assert not torch.isclose(lskd_loss(-student, teacher, variant=variant), expected, rtol=1e-2)


@both_variants
def test_moments(variant: Variant) -> None:
    standard = standardize_logits(logits(3)[0], variant=variant)
    correction = 1 if variant == "authors" else 0
    ones = torch.ones(7, dtype=torch.float64)
    torch.testing.assert_close(standard.mean(dim=1), 0 * ones)
    torch.testing.assert_close(
        standard.std(dim=1, correction=correction), ones, rtol=1e-6, atol=1e-6
    )


@both_variants
def test_gradient_of_standardised_logits(variant: Variant) -> None:
    student = logits(3, 2)[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda z: standardize_logits(z, variant=variant), student)


def test_the_variants_differ_by_the_deviation() -> None:
    """Over C − 1 or over C: at C = 10 the losses are about a tenth apart."""
    student, teacher = (torch.cat(pair, dim=1) for pair in zip(logits(4), logits(5), strict=True))
    authors, paper = (lskd_loss(student, teacher, variant=v) for v in ("authors", "paper"))  # type: ignore[arg-type]
    assert 1.05 < (paper / authors).item() < 1.15
    ratio = standardize_logits(student, variant="paper") / standardize_logits(student)
    torch.testing.assert_close(ratio, torch.full_like(ratio, sqrt(10 / 9)), rtol=1e-6, atol=0)


@both_variants
def test_gradient_is_orthogonal_to_what_is_free(variant: Variant) -> None:
    """No gradient along a shift of the logits, nor along their deviation from the mean."""
    student, teacher = logits(6)
    student.requires_grad_()
    lskd_loss(student, teacher, variant=variant).backward()
    gradient, centred = student.grad, student.detach() - student.detach().mean(1, keepdim=True)
    assert gradient is not None
    assert gradient.sum(dim=1).abs().max() < 1e-12
    assert (gradient * centred).sum(dim=1).abs().max() < 1e-7
    assert gradient.abs().max() > 1e-3


@both_variants
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_logits_become_zero(variant: Variant, dtype: torch.dtype) -> None:
    row = torch.full((2, 4), 0.5, dtype=dtype, requires_grad=True)
    standard = standardize_logits(row, variant=variant)
    assert (standard == 0).all()
    _, teacher = (x.to(dtype)[:2, :4] for x in logits(7))
    loss = lskd_loss(row, teacher, variant=variant)
    loss.backward()
    torch.testing.assert_close(
        loss, kd_loss(0 * teacher, standardize_logits(teacher, variant=variant), temperature=2.0)
    )
    assert row.grad is not None
    assert row.grad.isfinite().all()
    if variant == "authors":  # through 1 / ε, as published
        p_t = torch.softmax(standardize_logits(teacher) / 2, dim=1)
        expected = 2 * (0.25 - p_t) / 2 / 1e-7
        torch.testing.assert_close(row.grad, expected, rtol=1e-4, atol=1)


@both_variants
def test_one_class_is_zero(variant: Variant) -> None:
    assert lskd_loss(torch.ones(2, 1), torch.zeros(2, 1), variant=variant) == 0


def test_masked_rows_give_no_gradient_whatever_they_hold() -> None:
    student, teacher = logits(8)
    student[2], teacher[4] = torch.nan, torch.inf
    mask = torch.tensor([True, True, False, True, False, True, True])
    student.requires_grad_()
    standard = standardize_logits(student, mask=mask)
    kd_loss(standard, standardize_logits(teacher, mask=mask), mask=mask).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert (student.grad[~mask] == 0).all()
    assert (student.grad[mask].abs().sum(dim=1) > 0).all()


def test_half_precision_becomes_float32() -> None:
    student = logits(9)[0].half()
    assert standardize_logits(student).dtype == torch.float32
    torch.testing.assert_close(standardize_logits(student), standardize_logits(student.float()))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"logits": torch.zeros(2, 3, 4)}, r"logits \(2, 3, 4\) must be \(batch, classes\)"),
        ({"logits": torch.zeros(2, 3).long()}, "must be floating point"),
        ({"variant": "unbiased"}, "variant must be one of 'authors', 'paper'"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, r"mask \(3,\) must be \(batch,\) = \(2,\)"),
    ],
)
def test_bad_input_is_told(wrong: dict[str, Any], words: str) -> None:
    arguments = {"logits": torch.zeros(2, 3), **wrong}
    with pytest.raises(ValueError, match=words) as error:
        standardize_logits(**arguments)
    assert isinstance(error.value, ShapeError) is ("(" in words and "variant" not in words)
