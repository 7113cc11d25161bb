"""SP: what it is, and what leaves it unchanged."""

import pytest
import torch
from tests.losses import golden, oracles
from torch import Tensor

from congener.conformance.table.case import features, logits
from congener.losses import SPLoss, cskd_batch_loss, sp_loss
from congener.losses.sp import Normalize
from congener.ops.collectives import lone_sample_expected


def orthogonal(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("normalize", ["gram_rows", "features"])
@lone_sample_expected()
def test_oracle(batch: int, normalize: str) -> None:
    student, teacher = features(0, batch)
    expected = oracles.sp(
        student.flatten(1).tolist(),
        teacher.flatten(1).tolist(),
        normalize_features=normalize == "features",
    )
    assert golden.close(SPLoss(normalize)(student, teacher), expected)  # type: ignore[arg-type]


def test_golden_values() -> None:
    student, teacher = golden.features()
    assert golden.close(sp_loss(student, teacher), 0.1859099836915271)
    assert golden.close(sp_loss(student, teacher, normalize="features"), 0.3394140145142396)


@pytest.mark.parametrize("axes", [(12,), (4, 3), (3, 2, 2), (3, 2, 2, 1)])
def test_any_axes(axes: tuple[int, ...]) -> None:
    student, teacher = features(1)
    expected = sp_loss(student, teacher)
    torch.testing.assert_close(sp_loss(student.reshape(7, *axes), teacher), expected)
    torch.testing.assert_close(
        sp_loss(student.to(memory_format=torch.channels_last), teacher), expected
    )


def test_rotations_change_nothing() -> None:
    student, teacher = (x.flatten(1) for x in features(2))
    expected = sp_loss(student, teacher)
    rotated = student @ orthogonal(12)
    assert (rotated - student).abs().max() > 0.1
    torch.testing.assert_close(sp_loss(rotated, teacher), expected)
    torch.testing.assert_close(sp_loss(student, teacher @ orthogonal(18)), expected)
    stretched = rotated * torch.linspace(1, 2, 12, dtype=torch.float64)
    assert not torch.isclose(sp_loss(stretched, teacher), expected, rtol=1e-3)


@pytest.mark.parametrize("factor", [-3.0, 0.01, 250.0])
def test_scale_changes_nothing(factor: float) -> None:
    student, teacher = features(3)
    torch.testing.assert_close(sp_loss(factor * student, teacher), sp_loss(student, teacher))


def test_scale_of_each_sample_tells_the_variants_apart() -> None:
    student, teacher = features(4)
    scaled = student * torch.linspace(0.5, 3, 7, dtype=torch.float64).reshape(-1, 1, 1, 1)
    assert not torch.isclose(sp_loss(scaled, teacher), sp_loss(student, teacher), rtol=1e-3)
    torch.testing.assert_close(
        sp_loss(scaled, teacher, normalize="features"),
        sp_loss(student, teacher, normalize="features"),
    )


def test_shift_changes_it() -> None:
    student, teacher = features(5)
    assert not torch.isclose(sp_loss(student + 1, teacher), sp_loss(student, teacher), rtol=1e-3)


def test_it_is_a_mean_of_cosines_of_gram_rows() -> None:
    student, teacher = (x.flatten(1) for x in features(6))
    cosines = torch.cosine_similarity(student @ student.T, teacher @ teacher.T, dim=1)
    torch.testing.assert_close(sp_loss(student, teacher), 2 / 7 * (1 - cosines).mean())


@pytest.mark.parametrize("batch", [2, 5, 16])
def test_bounds(batch: int) -> None:
    for seed in range(5):
        student, teacher = features(seed, batch)
        assert 0 <= sp_loss(student, teacher) <= 4 / batch
        assert 0 <= sp_loss(student.relu(), teacher.relu()) <= 2 / batch
    one_hot, same = torch.eye(batch), torch.ones(batch, 1)
    bound = 2 / batch
    assert 0.25 * bound < sp_loss(one_hot, same) < bound


def test_it_falls_with_the_batch() -> None:
    """L_SP = Θ(1/b): of random non-negative features b · L_SP stays about constant."""
    scaled = []
    for batch in (16, 64):
        student, teacher = (x.flatten(1).relu() for x in features(7, batch))
        scaled.append(batch * sp_loss(student, teacher).item())
    assert 0.6 < scaled[0] / scaled[1] < 1.6


def test_large_features_do_not_overflow_in_half_precision() -> None:
    student = torch.full((4, 256, 8, 8), 3.0, dtype=torch.float16)
    student[2:, :128] = 0
    own = student.clone().requires_grad_()
    loss = sp_loss(own, torch.eye(4))
    loss.backward()
    assert own.grad is not None
    assert own.grad.isfinite().all()
    torch.testing.assert_close(loss, sp_loss(student.float(), torch.eye(4)))
    assert loss > 0


def test_dead_sample_counts_as_unlike_all() -> None:
    student, teacher = (x.flatten(1) for x in features(8))
    rows = sp_loss(student, teacher, reduction="none")
    student[3] = 0
    assert golden.close(sp_loss(student, teacher, reduction="none")[3], 1 / 7)
    assert not golden.close(rows[3], 1 / 7, 1e-3)


def test_sp_of_probabilities_is_batch_correlation() -> None:
    student, teacher = logits(9)
    probabilities = [torch.softmax(z / 4, dim=1) for z in (student, teacher)]
    torch.testing.assert_close(
        sp_loss(*probabilities),
        2 / 7 * cskd_batch_loss(student, teacher, temperature=4.0),
        rtol=1e-5,
        atol=1e-7,
    )


def by_definition(student: Tensor, teacher: Tensor, normalize: str) -> Tensor:
    """The whole matrices, in which no form of the loss holds a large batch."""
    if normalize == "features":
        student, teacher = (x / x.norm(dim=1, keepdim=True) for x in (student, teacher))
    grams = [x @ x.T for x in (student, teacher)]
    if normalize == "gram_rows":
        grams = [x / x.norm(dim=1, keepdim=True) for x in grams]
    return (grams[0] - grams[1]).square().mean()


@pytest.mark.parametrize("normalize", ["gram_rows", "features"])
@pytest.mark.parametrize("width", [5, 400])
def test_large_batches(normalize: Normalize, width: int) -> None:
    generator = torch.Generator().manual_seed(10)
    student = torch.randn(320, width, generator=generator, dtype=torch.float64)
    teacher = torch.randn(320, 7, generator=generator, dtype=torch.float64)
    kept = torch.arange(320) % 5 != 1
    student.requires_grad_()
    expected = by_definition(student[kept], teacher[kept], normalize)
    (expected_gradient,) = torch.autograd.grad(expected, student)
    spoilt = teacher.masked_fill(~kept.unsqueeze(1), torch.nan)
    found = sp_loss(student, spoilt, normalize=normalize, mask=kept)
    (gradient,) = torch.autograd.grad(found, student)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-15)
    each = sp_loss(student, spoilt, normalize=normalize, mask=kept, reduction="none")
    torch.testing.assert_close(each.sum() / kept.sum(), expected)
    assert (each[~kept] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_batches_in_half_precision(dtype: torch.dtype) -> None:
    student, teacher = (x.flatten(1).to(dtype) for x in features(11, 400))
    own = student.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sp_loss(own, teacher)
        loss.backward()
    wide = student.float().requires_grad_()
    expected = sp_loss(wide, teacher.float())
    expected.backward()
    torch.testing.assert_close(loss, expected)
    assert own.grad is not None
    assert wide.grad is not None
    torch.testing.assert_close(own.grad, wide.grad.to(dtype))
