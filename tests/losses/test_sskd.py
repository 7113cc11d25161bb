"""SSKD: the match of copies, the selective transfer, and the terms."""

from math import exp, log, sqrt
from typing import Any

import pytest
import torch
from tests.losses import golden, oracles
from torch import Tensor

from congener.conformance.table.case import logits
from congener.errors import NonFiniteLossError, ShapeError
from congener.losses import (
    SSKDLoss,
    SSKDTransformedLoss,
    kd_loss,
    sskd_head_loss,
    sskd_loss,
    sskd_transformed_loss,
)
from congener.losses.sskd_selection import copies_of, match, transferred
from congener.ops.collectives import lone_sample_expected

Rows = list[list[float]]


def features(seed: int, samples: int = 7, views: int = 4) -> tuple[Tensor, Tensor]:
    """Of other widths, (samples · views, 6) and (samples · views, 9)."""
    student, _ = logits(seed, samples * views, (6,))
    teacher, _ = logits(seed + 100, samples * views, (9,))
    return student, teacher


def cosines(rows: Rows, views: int) -> tuple[Rows, list[int]]:
    scores, targets = [], []
    for i, row in enumerate(rows):
        if i % views:
            scores.append([oracles.cosine(row, other, 0.0) for other in rows[::views]])
            targets.append(i // views)
    return scores, targets


def kept_rows(scores: Rows, targets: list[int], ratio: float) -> list[int]:
    """All that are right and the best of the wrong; ties by the lag, then by the place."""
    right, wrong = [], []
    for m, (row, target) in enumerate(zip(scores, targets, strict=True)):
        level = sum(score > row[target] for score in row)
        if level:
            wrong.append((level, max(row) - row[target], m))
        else:
            right.append(m)
    chosen = [m for _, _, m in sorted(wrong)[: int(ratio * len(wrong))]]
    return sorted(right + chosen)


def mean_kl(student: Rows, teacher: Rows, rows: list[int], tau: float) -> float:
    total = 0.0
    for m in rows:
        p_s, p_t = oracles.softmax(student[m], tau), oracles.softmax(teacher[m], tau)
        total += sum(t * log(t / s) for s, t in zip(p_s, p_t, strict=True))
    return tau**2 * total / max(len(rows), 1)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.75, 1.0])
@pytest.mark.parametrize(("samples", "views"), [(7, 4), (5, 2), (2, 3)])
def test_oracle_of_the_matches(samples: int, views: int, ratio: float) -> None:
    student, teacher = features(0, samples, views)
    of_teacher, targets = cosines(teacher.tolist(), views)
    rows = kept_rows(of_teacher, targets, ratio)
    expected = mean_kl(cosines(student.tolist(), views)[0], of_teacher, rows, 0.5)
    loss = SSKDLoss(views, 0.5, ratio)(student, teacher)
    assert golden.close(loss, expected)
    scores, columns = match(teacher, views, None, "global")
    found = transferred(scores, columns, ratio, None, "global")
    assert found.nonzero().flatten().tolist() == rows


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_oracle_of_the_classes(ratio: float) -> None:
    student, teacher = logits(1, 28)
    labels = torch.tensor([0, 3, 1, 4, 2, 2, 0])
    copies = [[row for i, row in enumerate(z.tolist()) if i % 4] for z in (student, teacher)]
    rows = kept_rows(copies[1], [y for y in labels.tolist() for _ in range(3)], ratio)
    expected = mean_kl(*copies, rows, 4.0)
    assert golden.close(SSKDTransformedLoss(ratio=ratio)(student, teacher, labels), expected)


def test_golden_values() -> None:
    student, teacher = golden.wave((12, 4), 0.2), golden.wave((12, 6), 0.5)
    assert golden.close(sskd_head_loss(teacher), 1.2251483702, 1e-9)
    scores, targets = match(teacher, 4, None, "global")
    levels = (scores > scores.gather(1, targets.unsqueeze(1))).sum(dim=1)
    assert levels.tolist() == [2, 0, 1, 2, 1, 0, 1, 1, 0]
    kept = transferred(scores, targets, 0.75, None, "global")
    assert kept.nonzero().flatten().tolist() == [1, 2, 4, 5, 6, 7, 8]
    assert golden.close(sskd_loss(student, teacher), 0.2943777438, 1e-9)
    assert golden.close(sskd_loss(student, teacher, ratio=1.0), 0.3223565781, 1e-9)


def test_oracle_of_the_head() -> None:
    feature, _ = features(2)
    for tau in (1.0, 0.5):
        scores, targets = cosines(feature.tolist(), 4)
        expected = -sum(
            log(oracles.softmax(row, tau)[i]) for row, i in zip(scores, targets, strict=True)
        ) / len(scores)
        assert golden.close(sskd_head_loss(feature, temperature=tau), expected)


def test_bounds_of_the_head() -> None:
    """Of orthogonal samples at least ln(1 + (B − 1)/e); knowing nothing it is ln B."""
    perfect = torch.eye(64, dtype=torch.float64).repeat_interleave(4, dim=0)
    assert golden.close(sskd_head_loss(perfect), log(1 + 63 / exp(1)))
    assert abs(sskd_head_loss(perfect).item() - 3.185) < 1e-3
    assert golden.close(sskd_head_loss(torch.ones_like(perfect)), log(64))


def test_the_head_is_trained_through_all_its_rows() -> None:
    feature, _ = features(3)
    feature.requires_grad_()
    sskd_head_loss(feature).backward()
    assert feature.grad is not None
    assert (feature.grad.abs().amax(dim=1) > 1e-6).all()


def test_student_learns_through_originals_and_copies() -> None:
    student, teacher = features(4)
    student.requires_grad_()
    sskd_loss(student, teacher, ratio=1.0).backward()
    assert student.grad is not None
    assert (student.grad.abs().amax(dim=1) > 1e-6).all()


def test_layout_is_sample_by_sample() -> None:
    rows = torch.arange(12.0).reshape(12, 1)
    assert copies_of(rows, 4).flatten().tolist() == [1, 2, 3, 5, 6, 7, 9, 10, 11]
    _, targets = match(rows.double() + 1, 4, None, "global")
    assert targets.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("count", [0, 1, 5, 9])
def test_counts_of_the_selection(count: int) -> None:
    """All right rows, ⌊ratio · W⌋ of the W wrong; a larger ratio keeps what a smaller does."""
    scores, _ = logits(count, 30)
    targets = torch.arange(30) % 5
    wrong = scores.argmax(dim=1) != targets
    before = ~wrong
    for ratio in torch.linspace(0, 1, 12).tolist():
        kept = transferred(scores, targets, ratio, None, "global")
        assert (kept & ~wrong).sum() == (~wrong).sum()
        assert (kept & wrong).sum() == int(ratio * int(wrong.sum()))
        assert not (before & ~kept).any()
        before = kept
    assert before.all()


def test_of_equal_ranks_the_nearer_miss_is_kept() -> None:
    scores = torch.tensor([[0.0, 9.0], [0.0, 1.0], [0.0, 4.0], [0.0, 1.0]])
    targets = torch.zeros(4, dtype=torch.int64)
    for ratio, expected in ((0.25, [1]), (0.5, [1, 3]), (0.75, [1, 2, 3])):
        kept = transferred(scores, targets, ratio, None, "global")
        assert kept.nonzero().flatten().tolist() == expected


def test_rank_comes_before_the_miss() -> None:
    scores = torch.tensor([[0.0, 9.0, -1.0], [0.0, 0.1, 0.1]])
    kept = transferred(scores, torch.zeros(2, dtype=torch.int64), 0.5, None, "global")
    assert kept.tolist() == [True, False]


@pytest.mark.parametrize("terms", ["matches", "classes"])
def test_an_empty_selection_gives_zero(terms: str) -> None:
    if terms == "matches":
        # each copy lies on the other sample, so that nothing is right
        teacher = torch.eye(2, dtype=torch.float64)[[0, 1, 1, 0]]
        student = logits(5, 4)[0].requires_grad_()
        loss = sskd_loss(student, teacher, views=2, ratio=0.0)
    else:
        student, teacher = logits(6, 8)
        student.requires_grad_()
        labels = teacher.reshape(2, 4, 5)[:, 1:].sum(dim=1).argmin(dim=1)
        teacher = teacher - 100 * torch.eye(5, dtype=torch.float64)[labels.repeat_interleave(4)]
        loss = sskd_transformed_loss(student, teacher, labels, ratio=0.0)
    loss.backward()
    assert loss == 0
    assert student.grad is not None
    assert not student.grad.any()


def test_selection_is_the_teachers_alone() -> None:
    student, teacher = logits(7, 28)
    labels = torch.arange(7) % 5
    rows = sskd_transformed_loss(student, teacher, labels, ratio=0.5, reduction="none")
    other = sskd_transformed_loss(-student, teacher, labels, ratio=0.5, reduction="none")
    assert ((rows == 0) == (other == 0)).all()


@pytest.mark.parametrize("which", ["scale", "rotation"])
def test_scale_of_each_row_and_rotations_change_nothing(which: str) -> None:
    student, teacher = features(9)
    expected = sskd_loss(student, teacher)
    scale = torch.linspace(0.1, 20, 28, dtype=torch.float64).unsqueeze(1)
    turns = [torch.linalg.qr(golden.wave((n, n), 0.3))[0] for n in (6, 9)]
    moved = (
        (student * scale, teacher * scale.flip(0))
        if which == "scale"
        else (student @ turns[0], teacher @ turns[1])
    )
    torch.testing.assert_close(sskd_loss(*moved), expected)
    assert not torch.isclose(sskd_loss(student + 1, teacher), expected, rtol=1e-3)


def test_hot_it_is_a_squared_distance_of_centred_matches() -> None:
    student, teacher = features(10)
    a_s, a_t = (match(x, 4, None, "global")[0] for x in (student, teacher))
    centred = (a_s - a_s.mean(1, keepdim=True)) - (a_t - a_t.mean(1, keepdim=True))
    expected = centred.square().sum(dim=1).mean() / (2 * 7)
    loss = sskd_loss(student, teacher, temperature=1e4, ratio=1.0)
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=0)


def test_of_untransformed_copies_the_class_term_is_kd() -> None:
    student, teacher = logits(11)
    labels = torch.arange(7) % 5
    rows = [z.repeat_interleave(4, dim=0) for z in (student, teacher)]
    torch.testing.assert_close(
        sskd_transformed_loss(rows[0], rows[1], labels), kd_loss(student, teacher)
    )


def test_unlabelled_samples_are_as_if_masked() -> None:
    student, teacher = logits(12, 28)
    labels = torch.tensor([0, 3, -1, 4, -100, 2, 0])
    rows = (labels >= 0).repeat_interleave(4)
    expected = sskd_transformed_loss(student[rows], teacher[rows], labels[labels >= 0], ratio=0.5)
    found = sskd_transformed_loss(student, teacher, labels, ratio=0.5)
    torch.testing.assert_close(found, expected)


@lone_sample_expected()
def test_lone_sample_has_no_one_to_be_mistaken_for() -> None:
    student, teacher = features(13, 1)
    student.requires_grad_()
    loss = sskd_loss(student, teacher) + sskd_head_loss(student)
    loss.backward()
    assert loss == 0
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-15


def test_the_share_is_rounded_down_as_python_does() -> None:
    scores = torch.tensor([[0.0, 1.0]]).repeat(100, 1)
    kept = transferred(scores, torch.zeros(100, dtype=torch.int64), 0.29, None, "global")
    assert kept.sum() == int(0.29 * 100) == 28


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_zero_feature_has_no_gradient(dtype: torch.dtype) -> None:
    student, teacher = (x.to(dtype) for x in features(14))
    student[5] = 0
    student.requires_grad_()
    (sskd_loss(student, teacher) + sskd_head_loss(student)).backward()
    assert student.grad is not None
    assert not student.grad[5].any()
    assert student.grad.isfinite().all()


def test_a_zero_feature_is_no_error() -> None:
    student, teacher = features(14)
    student[5], teacher[8] = 0, 0
    student.requires_grad_()
    loss = sskd_loss(student, teacher)
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    of_teacher, targets = cosines_safe(teacher.tolist())
    rows = kept_rows(of_teacher, targets, 0.75)
    expected = mean_kl(cosines_safe(student.tolist())[0], of_teacher, rows, 0.5)
    assert golden.close(loss, expected, 1e-7)


def cosines_safe(rows: Rows) -> tuple[Rows, list[int]]:
    units = [[a / (sqrt(sum(b * b for b in row)) or 1.0) for a in row] for row in rows]
    scores = [
        [oracles.dot(row, other) for other in units[::4]] for i, row in enumerate(units) if i % 4
    ]
    return scores, [m // 3 for m in range(len(scores))]


def test_what_does_not_fit_is_told() -> None:
    student, teacher = features(15)
    mask: Any = torch.ones(7, dtype=torch.bool)
    with pytest.raises(ShapeError, match=r"\(27, 6\) must be \(batch · views, channels\)"):
        sskd_loss(student[:27], teacher[:27])
    with pytest.raises(ShapeError, match=r"\(28, 6\) .* \(24, 9\)"):
        sskd_loss(student, teacher[:24])
    with pytest.raises(ShapeError, match=r"teacher_feature \(28, 3, 3\)"):
        sskd_loss(student, teacher.reshape(28, 3, 3))
    with pytest.raises(ShapeError, match=r"mask \(6,\) must be \(batch,\) = \(7,\)"):
        sskd_loss(student, teacher, mask=mask[:6])
    with pytest.raises(ShapeError, match=r"labels \(28,\) must be \(batch,\) = \(7,\)"):
        sskd_transformed_loss(student, student, torch.zeros(28, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"\(28, 6\) and teacher_logits \(28, 9\)"):
        sskd_transformed_loss(student, teacher, torch.zeros(7, dtype=torch.int64))
    with pytest.raises(ValueError, match="labels must lie in 0…5, not 6"):
        sskd_transformed_loss(student, student, torch.full((7,), 6))
    with pytest.raises(ShapeError, match="feature"):
        sskd_head_loss(student.flatten())
    for build in (SSKDLoss, SSKDTransformedLoss):
        with pytest.raises(ValueError, match="views must be at least 2"):
            build(1)
        with pytest.raises(ValueError, match="ratio must lie between 0 and 1, not 75"):
            build(4, ratio=75)
    with pytest.raises(ValueError, match="floating point"):
        sskd_head_loss(student.long())


def test_the_head_refuses_nan() -> None:
    rows = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    rows[5, 1] = torch.nan
    with pytest.raises(NonFiniteLossError, match="is NaN for sample 5"):
        sskd_head_loss(rows)
