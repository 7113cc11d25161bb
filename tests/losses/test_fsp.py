"""FSP: what a flow is, and what leaves it unchanged."""

import pytest
import torch
from tests.losses import golden, map_oracles
from tests.losses.oracles import dot
from torch import Tensor

from congener.errors import ShapeError
from congener.losses import FSPLoss, fsp_loss

STAGES = [
    [(3, 4, 4), (2, 4, 4)],
    [(3, 8, 8), (4, 4, 4), (2, 2, 2)],
    [(3, 5, 3), (4, 2, 4), (2, 3, 3)],
]


def stages(seed: int, shapes: list[tuple[int, ...]], batch: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, *s, generator=generator, dtype=torch.float64) for s in shapes]


def oracle(mine: list[Tensor], theirs: list[Tensor], variant: str) -> float:
    def flow(shallow: list, deep: list) -> list[float]:
        size, largest = map_oracles.smaller(shallow, deep), variant == "paper"
        below = map_oracles.channels(shallow, *size, largest=largest)
        above = map_oracles.channels(deep, *size, largest=largest)
        return [dot(a, b) / len(a) for a in above for b in below]

    total = 0.0
    for k in range(len(mine) - 1):
        for i in range(len(mine[0])):
            student = flow(mine[k][i].tolist(), mine[k + 1][i].tolist())
            teacher = flow(theirs[k][i].tolist(), theirs[k + 1][i].tolist())
            squares = [(a - b) ** 2 for a, b in zip(student, teacher, strict=True)]
            total += sum(squares) if variant == "paper" else map_oracles.mean(squares)
    return total / len(mine[0])


@pytest.mark.parametrize("shapes", STAGES)
@pytest.mark.parametrize("variant", ["repdistiller", "paper"])
def test_oracle(shapes, variant) -> None:
    student, teacher = stages(0, shapes), stages(1, shapes)
    expected = oracle(student, teacher, variant)
    assert golden.close(FSPLoss(variant)(student, teacher), expected)
    assert golden.close(fsp_loss(tuple(student), teacher, variant=variant), expected)


@pytest.mark.parametrize("variant", ["repdistiller", "paper"])
def test_sizes_of_the_teacher_are_its_own(variant) -> None:
    student = stages(2, [(3, 4, 4), (2, 2, 2)])
    teacher = stages(3, [(3, 7, 5), (2, 3, 6)])
    expected = oracle(student, teacher, variant)
    assert golden.close(fsp_loss(student, teacher, variant=variant), expected)


@pytest.mark.parametrize("variant", ["repdistiller", "paper"])
def test_pairs_add_up(variant) -> None:
    student, teacher = stages(4, STAGES[1]), stages(5, STAGES[1])
    parts = [fsp_loss(student[k : k + 2], teacher[k : k + 2], variant=variant) for k in (0, 1)]
    torch.testing.assert_close(fsp_loss(student, teacher, variant=variant), parts[0] + parts[1])


def test_without_pooling_the_variants_differ_by_the_entries() -> None:
    student, teacher = stages(6, STAGES[0]), stages(7, STAGES[0])
    paper = fsp_loss(student, teacher, variant="paper")
    torch.testing.assert_close(paper, 6 * fsp_loss(student, teacher))


def test_places_in_any_order_and_scale() -> None:
    student, teacher = stages(8, STAGES[0]), stages(9, STAGES[0])
    expected = fsp_loss(student, teacher)
    flipped = [x.flip(2) for x in student]
    torch.testing.assert_close(fsp_loss(flipped, teacher), expected)
    assert not torch.isclose(fsp_loss([flipped[0], student[1]], teacher), expected, rtol=1e-3)
    assert not torch.isclose(fsp_loss([x.flip(1) for x in student], teacher), expected, rtol=1e-3)
    torch.testing.assert_close(fsp_loss([3 * student[0], student[1] / 3], teacher), expected)
    doubled = fsp_loss([2 * x for x in student], [-2 * x for x in teacher])
    torch.testing.assert_close(doubled, 16 * expected)


def test_errors() -> None:
    student, teacher = stages(10, STAGES[0]), stages(11, STAGES[0])
    with pytest.raises(ShapeError, match="one stage; a flow needs two"):
        fsp_loss(student[:1], teacher[:1])
    with pytest.raises(ShapeError, match=r"of 2 levels and teacher_features of 1"):
        fsp_loss(student, teacher[:1])
    with pytest.raises(ShapeError, match=r"\(4, 3, 4, 4\) .* \(4, 2, 4, 4\) .* as many channels"):
        fsp_loss(student, teacher[::-1])
    with pytest.raises(
        ShapeError, match=r"\(4, 3, 4, 4\) at level 0 and \(3, 2, 4, 4\) at level 1"
    ):
        fsp_loss([student[0], student[1][:3]], [teacher[0], teacher[1][:3]])
    with pytest.raises(ShapeError, match=r"\(4, 3, 16\) .* must be maps"):
        fsp_loss([x.flatten(2) for x in student], teacher)
    with pytest.raises(ValueError, match="variant must be one of 'repdistiller', 'paper'"):
        fsp_loss(student, teacher, variant="authors")  # type: ignore[arg-type]
