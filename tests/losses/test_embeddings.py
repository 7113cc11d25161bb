"""Losses of sentence embeddings and of ranking scores."""

import pytest
import torch
from tests.losses import golden, oracles
from torch import Tensor

from congener.conformance.table.case import logits, pooled
from congener.errors import ShapeError
from congener.losses import (
    EmbeddingMSELoss,
    MarginMSELoss,
    ScoreKLLoss,
    embedding_mse_loss,
    margin_mse_loss,
    score_kl_loss,
)


def test_embedding_mse_oracle() -> None:
    student, teacher = pooled(0)
    squares = [
        (a - b) ** 2
        for u, v in zip(student.tolist(), teacher.tolist(), strict=True)
        for a, b in zip(u, v, strict=True)
    ]
    assert golden.close(EmbeddingMSELoss()(student, teacher), sum(squares) / len(squares))


def test_embedding_mse_of_two_languages_is_one_batch() -> None:
    """Sentence and translation have the sentence's embedding as target."""
    (english, teacher), (french, _) = pooled(1), pooled(2)
    together = embedding_mse_loss(torch.cat([english, french]), teacher.repeat(2, 1))
    apart = embedding_mse_loss(english, teacher) + embedding_mse_loss(french, teacher)
    torch.testing.assert_close(together, apart / 2)


def test_embedding_mse_falls_with_the_width_of_unit_embeddings() -> None:
    """Orthogonal unit vectors are √2 apart: the loss is 2 / d."""
    for width in (2, 10):
        student, teacher = torch.eye(width)[:1], torch.eye(width)[1:2]
        assert golden.close(embedding_mse_loss(student, teacher), 2 / width, 1e-6)


def test_embedding_mse_is_not_blind_to_rotations() -> None:
    student, teacher = pooled(3)
    turned = embedding_mse_loss(student.flip(1), teacher)
    assert not torch.isclose(turned, embedding_mse_loss(student, teacher), rtol=1e-3)
    torch.testing.assert_close(
        embedding_mse_loss(student.flip(1), teacher.flip(1)), embedding_mse_loss(student, teacher)
    )


def test_embedding_widths_must_agree() -> None:
    student, teacher = pooled(4)
    with pytest.raises(ShapeError, match=r"\(7, 6\).*\(7, 4\).*PCA.*projector"):
        embedding_mse_loss(student, teacher[:, :4])
    with pytest.raises(ShapeError, match="projector"):
        embedding_mse_loss(student.reshape(7, 2, 3), teacher.reshape(7, 2, 3))


def margins(rows: Tensor) -> list[list[float]]:
    return [[row[0] - negative for negative in row[1:]] for row in rows.tolist()]


def test_margin_mse_oracle() -> None:
    student, teacher = logits(5)
    squares = [
        (a - b) ** 2
        for u, v in zip(margins(student), margins(teacher), strict=True)
        for a, b in zip(u, v, strict=True)
    ]
    expected = sum(squares) / len(squares)
    assert golden.close(MarginMSELoss()(student, teacher), expected)
    labels = torch.tensor(margins(teacher), dtype=torch.float64)
    assert golden.close(margin_mse_loss(student, labels), expected)


def test_margin_mse_of_one_negative() -> None:
    student, teacher = (
        torch.tensor([[2.0, 1.0], [0.0, 5.0]]),
        torch.tensor([[4.0, 1.0], [3.0, 3.0]]),
    )
    assert margin_mse_loss(student, teacher) == ((1 - 3) ** 2 + (-5 - 0) ** 2) / 2
    assert margin_mse_loss(student, torch.tensor([[3.0], [0.0]])) == 14.5


def test_shifting_a_querys_scores_changes_nothing() -> None:
    student, teacher = logits(6)
    shift = torch.arange(7.0, dtype=torch.float64).unsqueeze(1)
    for loss in (margin_mse_loss, score_kl_loss):
        torch.testing.assert_close(
            loss(student + shift, teacher - 3 * shift), loss(student, teacher)
        )
    scaled = margin_mse_loss(3 * student, 3 * teacher)
    torch.testing.assert_close(scaled, 9 * margin_mse_loss(student, teacher))


def test_order_of_the_negatives_does_not_matter_but_the_positive_does() -> None:
    student, teacher = logits(7)
    expected = margin_mse_loss(student, teacher)
    order = [0, 3, 1, 4, 2]
    torch.testing.assert_close(margin_mse_loss(student[:, order], teacher[:, order]), expected)
    other = margin_mse_loss(student.flip(1), teacher.flip(1))
    assert not torch.isclose(other, expected, rtol=1e-3)


def test_margin_mse_refuses_scores_that_do_not_fit() -> None:
    student, teacher = logits(8)
    for wrong in (teacher[:, :3], teacher[:4], teacher.unsqueeze(2)):
        with pytest.raises(ShapeError, match="score the same passages"):
            margin_mse_loss(student, wrong)
    with pytest.raises(ShapeError, match="a negative at least"):
        margin_mse_loss(student[:, :1], teacher[:, :1])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_score_kl_oracle(temperature: float) -> None:
    student, teacher = logits(9)
    expected = oracles.kd(student.tolist(), teacher.tolist(), temperature)
    assert golden.close(ScoreKLLoss(temperature)(student, teacher), expected)


def test_score_kl_has_no_temperature_unless_asked() -> None:
    student, teacher = golden.logits()
    assert golden.close(score_kl_loss(student, teacher), 1.5470618939580891)
    assert golden.close(score_kl_loss(student, teacher, temperature=4.0), 2.6988564334544627)
