"""AT: what it is, and what leaves it unchanged."""

import math

import pytest
import torch
from tests.losses import golden, map_oracles
from torch import Tensor

from congener.errors import ShapeError
from congener.losses import ATLoss, at_loss

SHAPES = [((3, 4, 4), (3, 4, 4)), ((2, 5, 3), (4, 2, 3)), ((3, 4, 2), (2, 3, 6)), ((1, 1, 1),) * 2]


def maps(seed: int, *shapes: tuple[int, ...], batch: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(batch, *s, generator=generator, dtype=torch.float64) for s in shapes]
    return made if len(made) > 1 else [made[0], made[0].flip(0)]


def oracle(student: Tensor, teacher: Tensor, power: int, variant: str) -> float:
    def attention(sample: list, size: tuple[int, int]) -> list[float]:
        planes = map_oracles.channels(sample, *size)
        answers = [
            map_oracles.mean([x**power for x in place]) for place in zip(*planes, strict=True)
        ]
        norm = math.sqrt(sum(a * a for a in answers))
        return [a / norm for a in answers]

    values = []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        size = map_oracles.smaller(s, t)
        squares = [
            (a - b) ** 2 for a, b in zip(attention(s, size), attention(t, size), strict=True)
        ]
        values.append(math.sqrt(sum(squares)) if variant == "paper" else map_oracles.mean(squares))
    return map_oracles.mean(values)


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("power", [1, 2, 3, 4])
@pytest.mark.parametrize("variant", ["authors", "paper"])
def test_oracle(shapes, power: int, variant: str) -> None:
    student, teacher = maps(0, *shapes)
    expected = oracle(student, teacher, power, variant)
    assert golden.close(ATLoss(power, variant=variant)(student, teacher), expected)  # type: ignore[arg-type]


def test_a_number_by_hand() -> None:
    """Answers (9+16)/2 = 12.5 and 0 against 1 and 1: q = (1, 0) and (1, 1)/√2."""
    student = torch.tensor([[[[3.0, 0.0]], [[4.0, 0.0]]]], dtype=torch.float64)
    teacher = torch.ones(1, 1, 1, 2, dtype=torch.float64)
    squares = (1 - 1 / math.sqrt(2)) ** 2 + 0.5
    assert golden.close(at_loss(student, teacher), squares / 2)
    assert golden.close(at_loss(student, teacher, variant="paper"), math.sqrt(squares))


def test_the_variants_differ_by_a_square_and_the_places() -> None:
    student, teacher = maps(1, (3, 4, 5), (2, 4, 5))
    paper = at_loss(student, teacher, variant="paper", reduction="none")
    authors = at_loss(student, teacher, reduction="none")
    torch.testing.assert_close(authors, paper.square() / 20)


@pytest.mark.parametrize("variant", ["authors", "paper"])
def test_scale_and_order_of_channels_change_nothing(variant) -> None:
    student, teacher = maps(2, (3, 4, 5), (2, 4, 5))
    expected = at_loss(student, teacher, variant=variant)
    scales = torch.tensor([0.1, -3.0, 50.0, 1.0], dtype=torch.float64).reshape(4, 1, 1, 1)
    torch.testing.assert_close(at_loss(scales * student, teacher, variant=variant), expected)
    torch.testing.assert_close(at_loss(student, scales * teacher, variant=variant), expected)
    torch.testing.assert_close(at_loss(student.flip(1), teacher, variant=variant), expected)
    torch.testing.assert_close(at_loss(student.flip(3), teacher.flip(3), variant=variant), expected)
    assert not torch.isclose(at_loss(student.flip(3), teacher, variant=variant), expected)


def test_an_odd_power_keeps_the_sign_and_an_even_one_drops_it() -> None:
    (student, _) = maps(3, (3, 2, 2))
    assert golden.close(at_loss(-student, student, power=3), 4 / 4)
    assert golden.close(at_loss(-student, student, power=3, variant="paper"), 2)
    assert at_loss(-student, student, power=2) == 0


@pytest.mark.parametrize("power", [1, 2, 3])
def test_bounds(power: int) -> None:
    widest = 4 if power % 2 else 2  # even powers answer with non-negative numbers
    for seed in range(5):
        student, teacher = maps(seed, (2, 3, 2), (4, 3, 2))
        values = at_loss(student, teacher, power=power, reduction="none")
        assert (values >= 0).all()
        assert (values <= widest / 6).all()


@pytest.mark.parametrize("variant", ["authors", "paper"])
def test_a_map_of_zeros_attends_nowhere(variant) -> None:
    teacher, _ = maps(4, (3, 2, 2))
    student = torch.zeros_like(teacher).requires_grad_()
    loss = at_loss(student, teacher, variant=variant)
    assert golden.close(loss, 1 if variant == "paper" else 1 / 4)
    loss.backward()
    assert student.grad is not None
    assert (student.grad == 0).all()
    both = at_loss(student, torch.zeros_like(teacher), variant=variant)
    assert both == 0
    assert (torch.autograd.grad(both, student)[0] == 0).all()


@pytest.mark.parametrize("variant", ["authors", "paper"])
def test_no_value_or_gradient_at_equal_maps(variant) -> None:
    student = maps(5, (3, 4, 4))[0].float().requires_grad_()
    loss = at_loss(student, student.detach(), variant=variant)
    loss.backward()
    assert loss == 0
    assert student.grad is not None
    assert (student.grad == 0).all()


@pytest.mark.parametrize(("power", "size"), [(2, 1e15), (3, 1e10), (5, 1e6)])
def test_large_answers_do_not_overflow(power: int, size: float) -> None:
    student, teacher = (x.float() for x in maps(6, (3, 4, 4)))
    large = (size * student).requires_grad_()
    loss = at_loss(large, teacher, power=power)
    torch.testing.assert_close(loss, at_loss(student, teacher, power=power))
    loss.backward()
    assert large.grad is not None
    assert large.grad.isfinite().all()
    assert large.grad.any()


def test_errors() -> None:
    student, teacher = maps(7, (3, 4, 4))
    for power in (0, -1, 2.5, 2.0):
        with pytest.raises(ValueError, match="power must be a whole number from 1, not"):
            at_loss(student, teacher, power=power)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="power must be a whole number"):
            ATLoss(power)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="variant must be one of 'authors', 'paper', not 'code'"):
        at_loss(student, teacher, variant="code")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"\(4, 3, 16\) .* must be maps, .* reshape tokens"):
        at_loss(student.flatten(2), teacher)
