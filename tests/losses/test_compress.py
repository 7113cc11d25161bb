"""CompRess: to which other samples of the batch each is similar, softened."""

import math

import pytest
import torch
from tests.losses import golden
from tests.losses.oracles import Matrix, dot, norm
from torch import Tensor

from congener.conformance.table.case import features
from congener.losses import CompRessLoss, compress_loss
from congener.ops import relations


def oracle(student: Matrix, teacher: Matrix, temperature: float) -> list[float]:
    """The divergence of each sample."""
    size = len(student)

    def choice(points: Matrix, i: int) -> list[float]:
        def likeness(j: int) -> float:
            lengths = norm(points[i]) * norm(points[j])
            return math.exp(dot(points[i], points[j]) / lengths / temperature) if lengths else 1.0

        values = [likeness(j) for j in range(size) if j != i]
        return [value / sum(values) for value in values]

    pairs = [zip(choice(teacher, i), choice(student, i), strict=True) for i in range(size)]
    return [sum(t * math.log(t / s) for t, s in pair) for pair in pairs]


def rows(x: Tensor) -> Matrix:
    return x.flatten(1).tolist()  # type: ignore[no-any-return]


def gradient(student: Tensor, teacher: Tensor, **options) -> Tensor:
    student = student.detach().requires_grad_()
    (found,) = torch.autograd.grad(compress_loss(student, teacher, **options), student)
    return found


@pytest.mark.parametrize("temperature", [0.04, 0.1, 2.0])
@pytest.mark.parametrize("batch", [2, 3, 8])
def test_oracle(temperature: float, batch: int) -> None:
    student, teacher = features(0, batch)
    expected = oracle(rows(student), rows(teacher), temperature)
    found = compress_loss(student, teacher, temperature=temperature, reduction="none")
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    mean = CompRessLoss(temperature)(student, teacher)
    assert golden.close(mean, sum(expected) / batch)


def test_the_default_is_the_authors_temperature() -> None:
    student, teacher = features(1, 5)
    assert golden.close(
        compress_loss(student, teacher), sum(oracle(rows(student), rows(teacher), 0.04)) / 5
    )
    assert CompRessLoss().temperature == 0.04


def test_not_symmetric() -> None:
    student, teacher = features(2)
    assert not torch.isclose(
        compress_loss(student, teacher), compress_loss(teacher, student), rtol=1e-3
    )


def test_scale_of_each_sample_and_rotation_change_nothing() -> None:
    student, teacher = (x.flatten(1) for x in features(3))
    scale = torch.linspace(0.5, 3, 7, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(
        compress_loss(scale * student.flip(1), teacher), compress_loss(student, teacher)
    )


def test_hot_and_cold() -> None:
    """Hot: half the variance of the differences of cosines. Cold: whose nearest neighbour it is."""
    student, teacher = features(4, 6)
    cosines = [torch.nn.functional.normalize(x.flatten(1), dim=1) for x in (student, teacher)]
    difference = cosines[0] @ cosines[0].T - cosines[1] @ cosines[1].T
    others = difference[~torch.eye(6, dtype=torch.bool)].view(6, 5)
    expected = others.var(1, correction=0).mean() / 2
    found = compress_loss(student, teacher, temperature=1e3) * 1e6
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)
    cold = compress_loss(teacher[:, :2], teacher, temperature=1e-3)
    assert cold.isfinite()


def test_a_sample_of_zeros() -> None:
    student, teacher = (x.flatten(1) for x in features(5))
    student[2] = 0
    expected = oracle(rows(student), rows(teacher), 0.5)
    assert golden.close(compress_loss(student, teacher, temperature=0.5), sum(expected) / 7)
    found = gradient(student, teacher, temperature=0.5)
    assert found.isfinite().all()
    assert (found[2] == 0).all()
    assert (found[0] != 0).any()


def test_anchors_learn_too() -> None:
    """Every sample is compared, and every sample is what others are compared with."""
    student, teacher = (x.flatten(1) for x in features(6, 3))
    student.requires_grad_()
    first = compress_loss(student, teacher, temperature=0.5, reduction="none")[0]
    (found,) = torch.autograd.grad(first, student)
    assert (found.abs().sum(1) > 0).all()


def test_two_samples_have_nothing_to_choose() -> None:
    student, teacher = features(7, 2)
    assert compress_loss(student, teacher) == 0
    mask = torch.tensor([True, False, True, False])
    assert compress_loss(*features(7, 4), mask=mask) == 0


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = features(8, 13)
    options = {"mask": torch.arange(13) % 4 != 1, "temperature": 0.2}
    whole = compress_loss(student, teacher, **options), gradient(student, teacher, **options)
    for entries in (1, 30, 80):
        monkeypatch.setattr(relations, "_CPU_ENTRIES", entries)
        torch.testing.assert_close(compress_loss(student, teacher, **options), whole[0])
        torch.testing.assert_close(gradient(student, teacher, **options), whole[1])
