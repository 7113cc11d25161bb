"""OFD: where errors count, the margins, and the weights of the levels."""

import math

import pytest
import torch
from tests.losses import golden
from torch import Tensor

from congener.errors import ShapeError
from congener.losses import OFDLoss, ofd_loss, ofd_margin, partial_l2_loss

MASK = torch.tensor([True, False, True, True])


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def partial_l2(student: Tensor, teacher: Tensor, margin: Tensor) -> float:
    total = 0.0
    for row_s, row_t in zip(student.flatten(2), teacher.flatten(2), strict=True):
        for s_map, t_map, m in zip(row_s.tolist(), row_t.tolist(), margin.tolist(), strict=True):
            for s, t in zip(s_map, t_map, strict=True):
                target = max(t, m)
                if not s <= target <= 0:
                    total += (s - target) ** 2
    return total


def conditional_mean(deviation: float, mean: float, steps: int = 20000) -> float:
    """E[x | x < 0] by the midpoint rule over ten deviations below the smaller of 0 and the mean."""
    upper, lower = 0.0, min(mean, 0.0) - 10 * deviation
    width = (upper - lower) / steps
    mass, moment = 0.0, 0.0
    for k in range(steps):
        x = lower + (k + 0.5) * width
        density = math.exp(-(((x - mean) / deviation) ** 2) / 2)
        mass, moment = mass + density, moment + density * x
    return moment / mass


@pytest.mark.parametrize("shape", [(3, 2, 4, 5), (2, 3, 6)])
def test_oracle(shape: tuple[int, ...]) -> None:
    student, teacher = random(*shape), random(*shape, seed=1)
    margin = -random(shape[1], seed=2).abs() / 2
    expected = partial_l2(student, teacher, margin)
    assert golden.close(partial_l2_loss(student, teacher, margin, reduction="sum"), expected)
    assert golden.close(partial_l2_loss(student, teacher, margin), expected / shape[0])


def test_levels_are_weighed_by_depth() -> None:
    students = [random(3, c, 2, 2, seed=c) for c in (2, 4, 3)]
    teachers = [random(3, c, 2, 2, seed=9 + c) for c in (2, 4, 3)]
    margins = [-random(c, seed=20 + c).abs() for c in (2, 4, 3)]
    parts = [partial_l2(*level) for level in zip(students, teachers, margins, strict=True)]
    expected = parts[0] / 4 + parts[1] / 2 + parts[2]
    assert golden.close(ofd_loss(students, teachers, margins), expected / 3 / 1000)
    total = ofd_loss(students, teachers, margins, divisor=1.0, reduction="sum")
    assert golden.close(total, expected)


@pytest.mark.parametrize(
    ("student", "teacher", "error"),
    [
        (-3.0, -1.0, 0.0),  # below a negative teacher: both are dropped by the ReLU
        (-1.0, -1.0, 0.0),
        (-0.5, -1.0, 0.5),  # above it
        (-0.5, -9.0, 1.5),  # the teacher is taken for the margin, -2
        (-2.5, -9.0, 0.0),
        (1.0, -9.0, 3.0),
        (-2.0, 1.0, 3.0),  # a positive teacher counts from both sides
        (3.0, 1.0, 2.0),
        (0.0, 0.0, 0.0),
        (-1.0, 0.0, 0.0),  # at 0 the ReLU drops it too
    ],
)
def test_where_errors_count(student: float, teacher: float, error: float) -> None:
    own = tensor(student).reshape(1, 1).requires_grad_()
    value = partial_l2_loss(own, tensor(teacher).reshape(1, 1), tensor(-2.0))
    (gradient,) = torch.autograd.grad(value, own)
    assert golden.close(value, error**2)
    sign = 1 if student > max(teacher, -2) else -1
    assert golden.close(gradient, 2 * sign * error)


@pytest.mark.parametrize("deviation", [0.01, 0.7, 2.0])
@pytest.mark.parametrize("ratio", [-30.0, -2.0, -0.3, 0.0, 0.5, 2.0, 3.0])
def test_margin_is_the_mean_of_what_is_negative(deviation: float, ratio: float) -> None:
    mean = ratio * deviation
    expected = conditional_mean(deviation, mean)
    for sign in (1, -1):
        margin = ofd_margin(tensor(sign * deviation), tensor(mean))
        assert math.isclose(margin.item(), expected, rel_tol=1e-6)


def test_margin_of_what_is_hardly_ever_negative() -> None:
    """Φ(-3.09) = 0.0010008 is still the mean; Φ(-3.1) = 0.00097 is three deviations below 0."""
    margins = ofd_margin(tensor(0.5, 0.5, -0.5, 0.5), tensor(3.09, 3.1, 3.1, 1e6) / 2)
    assert -0.2 < margins[0] < -0.1
    assert margins[1:].tolist() == [-1.5] * 3


def test_margin_of_a_constant_channel() -> None:
    assert ofd_margin(tensor(0, 0, 0, -0.0), tensor(-2, 0, 3, -1)).tolist() == [-2, 0, 0, -1]
    assert ofd_margin(tensor(1e-200, 1e-200), tensor(-2, 3)).tolist() == [-2, -3e-200]


def test_margin_type_and_sign() -> None:
    weight, bias = random(500), 4 * random(500, seed=1)
    assert (ofd_margin(weight, bias) <= 0).all()
    assert ofd_margin(weight.half(), bias.half()).dtype == torch.float32
    single = weight.float(), bias.float()
    double = ofd_margin(*(x.double() for x in single))
    torch.testing.assert_close(ofd_margin(*single).double(), double, rtol=1e-6, atol=0)
    assert not ofd_margin(weight.requires_grad_(), bias).requires_grad


def test_margin_is_no_part_of_the_graph() -> None:
    margin = tensor(-1.0, -2.0).requires_grad_()
    student, teacher = random(3, 2, 4).requires_grad_(), random(3, 2, 4, seed=1).requires_grad_()
    partial_l2_loss(student, teacher, margin).backward()
    assert margin.grad is None
    assert teacher.grad is None


def test_published_margin_rule_is_continued_by_masks_and_types() -> None:
    """The float16 features of a network beside margins in float64."""
    student, teacher = random(2, 3, 4).half(), random(2, 3, 4, seed=1).half()
    margin = tensor(-0.1, -0.2, -0.3)
    value = partial_l2_loss(student, teacher, margin, reduction="sum")
    assert value.dtype == torch.float32
    expected = partial_l2(student.double(), teacher.double(), margin)
    assert golden.close(value, expected, 1e-5)


def build() -> OFDLoss:
    torch.manual_seed(0)
    return OFDLoss((3, 5), (4, 6), 10.0).double()


def levels() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    student, teacher = [random(4, 3, 4, 4), random(4, 5)], [random(4, 4, 4, 4), random(4, 6)]
    return student, teacher, [-random(4).abs(), -random(6).abs()]


def test_module() -> None:
    student, teacher, margins = levels()
    module = build()
    projected = module.projector(student, teacher)
    assert [x.shape for x in projected] == [x.shape for x in teacher]
    assert projected[0].min() < 0  # no ReLU
    expected = ofd_loss(projected, teacher, margins, divisor=10.0)
    torch.testing.assert_close(module(student, teacher, margins), expected)


def test_projectors_start_as_published() -> None:
    torch.manual_seed(0)
    level = OFDLoss((300,), (50,)).projector.levels[0]
    assert level.conv.bias is None
    assert level.conv.kernel_size == (1, 1)
    assert math.isclose(level.conv.weight.std().item(), math.sqrt(2 / 50), rel_tol=0.02)


@pytest.mark.parametrize("training", [True, False])
def test_masked_samples_are_absent_from_the_projector_too(training: bool) -> None:
    student, teacher, margins = levels()
    expected = build().train(training)(
        [x[MASK] for x in student], [x[MASK] for x in teacher], margins
    )
    for x in (*student, *teacher):
        x[~MASK] = torch.nan
    found = build().train(training)(student, teacher, margins, MASK)
    torch.testing.assert_close(found, expected)


def test_errors() -> None:
    student, teacher, margins = levels()
    with pytest.raises(ShapeError, match="margins of 1 levels must be 2"):
        ofd_loss(teacher, teacher, margins[:1])
    with pytest.raises(ShapeError, match=r"margin \(6,\) must be .* \(4, 4, 4, 4\)"):
        ofd_loss(teacher, teacher, margins[::-1])
    with pytest.raises(ShapeError, match=r"of 2 levels .* of 1"):
        ofd_loss(student, teacher[:1], margins)
    with pytest.raises(ShapeError, match=r"of 1 levels .* levels, 2;"):
        build()(student[:1], teacher[:1], margins[:1])
    with pytest.raises(ShapeError, match=r"weight \(2,\) and bias \(3,\)"):
        ofd_margin(torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match="weight must be floating point"):
        ofd_margin(torch.ones(2).long(), torch.ones(2))
    with pytest.raises(ValueError, match="margin must be floating point"):
        partial_l2_loss(student[1], student[1], torch.ones(5).long())
    for divisor in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="divisor must be positive"):
            ofd_loss(teacher, teacher, margins, divisor=divisor)
        with pytest.raises(ValueError, match="divisor must be positive"):
            OFDLoss((3,), (4,), divisor)
    with pytest.raises(ValueError, match="as many levels"):
        OFDLoss((3, 5), (4,))
