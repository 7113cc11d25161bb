"""MLLD: what it is, its limits, and what leaves it unchanged."""

from typing import Any

import pytest
import torch
from tests.losses import golden, oracles

from congener.conformance.table.case import logits
from congener.losses import (
    MLLDLoss,
    kd_loss,
    lskd_loss,
    mlld_batch_loss,
    mlld_class_loss,
    mlld_loss,
)


def gram_distance(first: oracles.Matrix, second: oracles.Matrix) -> float:
    """Sum of squared differences of all inner products between rows."""
    total = 0.0
    for i in range(len(first)):
        for j in range(len(first)):
            a, b = oracles.dot(first[i], first[j]), oracles.dot(second[i], second[j])
            total += (a - b) ** 2
    return total


def terms(student: oracles.Matrix, teacher: oracles.Matrix, tau: float) -> tuple[float, float]:
    """The class and the batch term in plain Python."""
    p_s, p_t = ([oracles.softmax(row, tau) for row in z] for z in (student, teacher))
    columns = [[oracles.column(p, j) for j in range(len(p[0]))] for p in (p_s, p_t)]
    return gram_distance(*columns) / len(columns[0]), gram_distance(p_s, p_t) / len(p_s)


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_oracle(batch: int, tau: float) -> None:
    student, teacher = logits(0, batch)
    class_term, batch_term = terms(student.tolist(), teacher.tolist(), tau)
    assert golden.close(mlld_class_loss(student, teacher, temperature=tau), class_term)
    assert golden.close(mlld_batch_loss(student, teacher, temperature=tau), batch_term)


@pytest.mark.parametrize("standardize", [False, True])
def test_sum_over_temperatures(standardize: bool) -> None:
    student, teacher = logits(1)
    instance = lskd_loss if standardize else kd_loss
    expected = 0.0
    for tau in (2.0, 3.0, 4.0, 5.0, 6.0):
        expected += sum(terms(student.tolist(), teacher.tolist(), tau))
        expected += instance(student, teacher, temperature=tau).item()
    assert golden.close(MLLDLoss(standardize=standardize)(student, teacher), expected)


def test_one_temperature_may_be_a_number() -> None:
    pair = logits(2)
    parts = [part(*pair, temperature=3.0) for part in (kd_loss, mlld_class_loss, mlld_batch_loss)]
    for temperatures in (3.0, (3.0,), [3.0]):
        torch.testing.assert_close(mlld_loss(*pair, temperatures=temperatures), sum(parts))


def test_of_one_sample() -> None:
    """‖p_t p_tᵀ − p_s p_sᵀ‖² / C, and (‖p_t‖² − ‖p_s‖²)²."""
    student, teacher = logits(3, 1)
    p_s, p_t = (torch.softmax(z / 4, dim=1)[0] for z in (student, teacher))
    outer = (torch.outer(p_t, p_t) - torch.outer(p_s, p_s)).square().sum() / 5
    torch.testing.assert_close(mlld_class_loss(student, teacher), outer)
    torch.testing.assert_close(mlld_batch_loss(student, teacher), (p_t @ p_t - p_s @ p_s) ** 2)


def test_order_of_the_classes() -> None:
    """The batch term sees which samples agree: permuted classes of one network change nothing."""
    student, teacher = logits(4)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(
        mlld_batch_loss(student[:, order], teacher), mlld_batch_loss(student, teacher)
    )
    changed = mlld_class_loss(student[:, order], teacher)
    assert not torch.isclose(changed, mlld_class_loss(student, teacher), rtol=1e-3)
    torch.testing.assert_close(
        mlld_class_loss(student[:, order], teacher[:, order]), mlld_class_loss(student, teacher)
    )


def test_order_of_one_networks_samples() -> None:
    """The class term sees which classes go together, not in which sample."""
    student, teacher = logits(5)
    torch.testing.assert_close(
        mlld_class_loss(student.flip(0), teacher), mlld_class_loss(student, teacher)
    )
    changed = mlld_batch_loss(student.flip(0), teacher)
    assert not torch.isclose(changed, mlld_batch_loss(student, teacher), rtol=1e-3)


@pytest.mark.parametrize("times", [2, 5])
def test_they_grow_with_the_batch(times: int) -> None:
    """A batch repeated k times: the class term grows k²-fold, the batch term k-fold."""
    student, teacher = logits(6)
    repeated = [z.repeat(times, 1) for z in (student, teacher)]
    torch.testing.assert_close(
        mlld_class_loss(*repeated), times**2 * mlld_class_loss(student, teacher)
    )
    torch.testing.assert_close(
        mlld_batch_loss(*repeated), times * mlld_batch_loss(student, teacher)
    )


def test_bounds() -> None:
    """Entries of the Gram matrices lie in 0…1, those of PᵀP sum to B."""
    for seed in range(5):
        student, teacher = (10 * z for z in logits(seed))
        assert 0 <= mlld_batch_loss(student, teacher, temperature=1.0) <= 7
        assert 0 <= mlld_class_loss(student, teacher, temperature=1.0) <= 2 * 7**2 / 5


def test_near_a_match_nothing_is_lost() -> None:
    """In float32 a difference of 1e-4 is still told to three digits: no squares cancel."""
    teacher = logits(7)[1].float()
    student = teacher + 1e-4 * logits(8)[0].float()
    for loss in (mlld_class_loss, mlld_batch_loss):
        exact = loss(student.double(), teacher.double())
        assert 0 < exact < 1e-7
        torch.testing.assert_close(loss(student, teacher).double(), exact, rtol=3e-3, atol=0)


def test_standardised_terms_are_of_raw_logits() -> None:
    """Only the KL divergence is standardised: stretched students change the other terms."""
    student, teacher = logits(9)
    raw, stretched = (
        mlld_loss(z, teacher, temperatures=2.0, standardize=True) for z in (student, 3 * student)
    )
    change = sum(
        part(3 * student, teacher, temperature=2.0) - part(student, teacher, temperature=2.0)
        for part in (mlld_class_loss, mlld_batch_loss)
    )
    torch.testing.assert_close(stretched - raw, change, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("temperatures", "words"),
    [((), "one at least"), ((4.0, 0.0), "must be positive"), (-1.0, "must be positive")],
)
def test_bad_temperatures_are_told(temperatures: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MLLDLoss(temperatures)
    with pytest.raises(ValueError, match=words):
        mlld_loss(*logits(10), temperatures=temperatures)
