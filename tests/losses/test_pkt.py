"""PKT: whom each sample would pick as its neighbour."""

import math
from typing import Literal

import pytest
import torch
from tests.losses import golden
from tests.losses.oracles import Matrix, dot, norm
from torch import Tensor

from congener.conformance.table.case import features
from congener.losses import PKTLoss, pkt_loss
from congener.ops import relations

Variant = Literal["authors", "paper"]
each_variant = pytest.mark.parametrize("variant", ["authors", "paper"])


def oracle(student: Matrix, teacher: Matrix, variant: str, eps: float = 1e-7) -> list[float]:
    """The contribution of each sample."""
    size, authors = len(student), variant == "authors"

    def choice(points: Matrix, i: int) -> list[float]:
        def likeness(j: int) -> float:
            if not authors and i == j:
                return 0.0
            added = eps if authors else 0.0
            lengths = (norm(points[i]) + added) * (norm(points[j]) + added)
            return (dot(points[i], points[j]) / lengths + 1) / 2 if lengths else 0.5

        values = [likeness(j) for j in range(size)]
        return [value / sum(values) for value in values]

    result = []
    for i in range(size):
        total = 0.0
        for t, s in zip(choice(teacher, i), choice(student, i), strict=True):
            if authors:
                total += t * math.log((t + eps) / (s + eps)) / size
            elif t > 0:
                total += size * t * math.log(t / s)
        result.append(total)
    return result


def rows(x: Tensor) -> Matrix:
    return x.flatten(1).tolist()  # type: ignore[no-any-return]


def gradient(student: Tensor, teacher: Tensor, **options) -> Tensor:
    student = student.detach().requires_grad_()
    (found,) = torch.autograd.grad(pkt_loss(student, teacher, **options), student)
    return found


@each_variant
@pytest.mark.parametrize("batch", [2, 3, 8])
def test_oracle(variant: Variant, batch: int) -> None:
    student, teacher = features(0, batch)
    expected = oracle(rows(student), rows(teacher), variant)
    found = pkt_loss(student, teacher, variant=variant, reduction="none")
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    mean = PKTLoss(variant=variant)(student, teacher)
    assert golden.close(mean, sum(expected) / batch)


def test_another_eps() -> None:
    student, teacher = features(1, 4)
    expected = oracle(rows(student), rows(teacher), "authors", 0.1)
    assert golden.close(pkt_loss(student, teacher, eps=0.1), sum(expected) / 4)
    assert not golden.close(pkt_loss(student, teacher), sum(expected) / 4, 1e-3)


def test_golden_value() -> None:
    assert golden.close(pkt_loss(*golden.features()), 0.01888924071548104)


@each_variant
def test_not_symmetric(variant: Variant) -> None:
    """The teacher's distribution is the reference; a toolkit once had them swapped."""
    student, teacher = features(2)
    swapped = pkt_loss(teacher, student, variant=variant)
    assert not torch.isclose(pkt_loss(student, teacher, variant=variant), swapped, rtol=1e-3)


@each_variant
def test_scale_and_rotation_of_samples_change_nothing(variant: Variant) -> None:
    student, teacher = (x.flatten(1) for x in features(3))
    scale = torch.linspace(0.5, 3, 7, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(
        pkt_loss(scale * student.flip(1), teacher, variant=variant),
        pkt_loss(student, teacher, variant=variant),
        rtol=1e-5,
        atol=0,
    )


@each_variant
def test_a_sample_of_zeros(variant: Variant) -> None:
    student, teacher = (x.flatten(1) for x in features(4))
    student[2] = 0
    expected = oracle(rows(student), rows(teacher), variant)
    assert golden.close(pkt_loss(student, teacher, variant=variant), sum(expected) / 7)
    found = gradient(student, teacher, variant=variant)
    assert found.isfinite().all()
    assert (found[2] == 0).all()
    assert (found[0] != 0).any()


def test_opposite_samples_stay_finite() -> None:
    student = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    teacher = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    for variant in ("authors", "paper"):
        assert pkt_loss(student, teacher, variant=variant).isfinite()
        assert gradient(student, teacher, variant=variant).isfinite().all()
    assert pkt_loss(student[:2], teacher[:2], variant="paper").isfinite()


@each_variant
def test_blocks_change_nothing(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = features(5, 13)
    mask = torch.arange(13) % 4 != 1
    options = {"variant": variant, "mask": mask}
    whole = pkt_loss(student, teacher, **options), gradient(student, teacher, **options)
    for entries in (1, 30, 80):
        monkeypatch.setattr(relations, "_CPU_ENTRIES", entries)
        torch.testing.assert_close(pkt_loss(student, teacher, **options), whole[0])
        torch.testing.assert_close(gradient(student, teacher, **options), whole[1])


@pytest.mark.parametrize("eps", [0.0, -1.0, 1.0, math.nan])
def test_eps_must_be_small_and_positive(eps: float) -> None:
    student, teacher = features(6)
    with pytest.raises(ValueError, match="eps must lie between 0 and 1"):
        pkt_loss(student, teacher, eps=eps)
    with pytest.raises(ValueError, match="eps must lie between 0 and 1"):
        PKTLoss(eps)
