"""What every public loss must do (DESIGN.md, section 9)."""

import copy
import inspect
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped
from torch import Tensor, nn

from congener import losses
from congener.conformance.table import LOSSES, NOT_LOSSES, LossCase
from congener.conformance.table.case import features
from congener.errors import ShapeError
from congener.types import Paper

VOCABULARY = {
    "student_logits",
    "teacher_logits",
    "student_feature",
    "teacher_feature",
    "student_features",
    "teacher_features",
    "labels",
    "mask",
}
MODULES = {name: case for name, case in LOSSES.items() if case.module is not None}
CLASSES = [
    loss
    for loss in map(losses.__dict__.get, losses.__all__)
    if isinstance(loss, type) and loss is not losses.Loss
]
FUNCTIONS = [
    getattr(losses, name) for name in losses.__all__ if not isinstance(getattr(losses, name), type)
]
FROZEN = {name: case for name, case in LOSSES.items() if case.frozen is not None}
MASK = torch.tensor([True, False, True, True, False, True, True])

each_loss = pytest.mark.parametrize("case", LOSSES.values(), ids=LOSSES)
each_module = pytest.mark.parametrize("case", MODULES.values(), ids=MODULES)
each_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


def value_and_gradient(
    call: Callable[..., Tensor], student: Tensor, teacher: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    student = student.detach().clone().requires_grad_()
    value = call(student, teacher, **options)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    return value.detach(), gradient


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_every_public_loss_is_listed() -> None:
    covered = {name for case in LOSSES.values() for name in case.covers} | set(NOT_LOSSES)
    assert set(losses.__all__) == covered


@each_loss
def test_finite_scalar_attached_to_the_student(case: LossCase) -> None:
    student, teacher = case.make(0)
    loss = case.call(student.requires_grad_(), teacher)
    assert loss.shape == ()
    assert loss.dtype == torch.float64
    assert loss.isfinite()
    assert loss > 0
    loss.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() > 1e-6


@each_loss
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_gradient_reaches_the_teacher(case: LossCase, reduction: str) -> None:
    student, teacher = case.make(0)
    student.requires_grad_()
    teacher.requires_grad_()
    case.call(student, teacher, reduction=reduction).sum().backward()
    assert teacher.grad is None


@each_loss
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(case: LossCase, masked: bool) -> None:
    student, teacher = case.make(1)
    call = case.call if case.frozen is None else case.frozen(student, teacher)
    if masked and case.frozen is None:
        call = partial(call, mask=MASK)
    student.requires_grad_()
    # A random weighting of the contributions tests each one, and their mean.
    assert torch.autograd.gradcheck(lambda x: call(x, teacher), student, atol=1e-7)
    if case.frozen is None:
        assert torch.autograd.gradcheck(lambda x: call(x, teacher, reduction="none"), student)


@pytest.mark.parametrize("case", FROZEN.values(), ids=FROZEN)
def test_constants_of_the_student_carry_no_gradient(case: LossCase) -> None:
    assert case.frozen is not None
    student, teacher = case.make(1)
    frozen = case.frozen(student, teacher)
    expected = value_and_gradient(frozen, student, teacher)
    for actual, wanted in zip(
        value_and_gradient(case.call, student, teacher), expected, strict=True
    ):
        assert_close(actual, wanted)


@each_loss
def test_zero_at_match(case: LossCase) -> None:
    other, teacher = case.make(2)
    value, gradient = value_and_gradient(case.call, teacher, teacher)
    if case.zero_at_match:
        assert abs(value.item()) <= case.match
        assert gradient.abs().max() <= case.match
    else:
        assert value > 1e-2
    away = value_and_gradient(case.call, other, teacher)
    assert away[0] > 10 * case.match
    assert away[1].abs().max() > 10 * case.match


@each_loss
def test_order_of_the_batch_does_not_matter(case: LossCase) -> None:
    student, teacher = case.make(3)
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    value, gradient = value_and_gradient(case.call, student, teacher)
    permuted_value, permuted_gradient = value_and_gradient(
        case.call, student[order], teacher[order]
    )
    assert_close(permuted_value, value)
    assert_close(permuted_gradient, gradient[order])
    per_sample = case.call(student, teacher, reduction="none")
    assert_close(case.call(student[order], teacher[order], reduction="none"), per_sample[order])


@each_loss
@pytest.mark.parametrize("masked", [False, True])
def test_reductions_agree(case: LossCase, masked: bool) -> None:
    student, teacher = case.make(4)
    mask, count = (MASK, 5) if masked else (None, 7)
    results = {
        reduction: value_and_gradient(case.call, student, teacher, mask=mask, reduction=reduction)
        for reduction in ("none", "mean", "sum")
    }
    assert results["none"][0].shape == (7,)
    for part in (0, 1):
        none, mean, total = (results[name][part] for name in ("none", "mean", "sum"))
        assert_close(total, count * mean)
        assert_close(none.sum() if part == 0 else none, total)
    assert results["none"][0].std() > 0


@each_loss
@pytest.mark.parametrize("garbage", [0.0, 1e30, torch.nan, torch.inf])
def test_masked_rows_are_as_if_absent(case: LossCase, garbage: float) -> None:
    student, teacher = case.make(5)
    expected, expected_gradient = value_and_gradient(case.call, student[MASK], teacher[MASK])
    student[~MASK], teacher[~MASK] = garbage, garbage
    for reduction in ("mean", "sum", "none"):
        value, gradient = value_and_gradient(
            case.call, student, teacher, mask=MASK, reduction=reduction
        )
        assert (gradient[~MASK] == 0).all()
        count = 1 if reduction == "mean" else 5
        assert_close(gradient[MASK], count * expected_gradient)
        assert_close(value.sum(), count * expected)
        if reduction == "none":
            assert (value[~MASK] == 0).all()


@each_loss
def test_full_mask_changes_nothing(case: LossCase) -> None:
    student, teacher = case.make(5)
    plain = value_and_gradient(case.call, student, teacher)
    full = value_and_gradient(case.call, student, teacher, mask=torch.ones(7, dtype=torch.bool))
    assert_close(full[0], plain[0])
    assert_close(full[1], plain[1])


@each_loss
@pytest.mark.parametrize("rows", [0, 7])
def test_nothing_left_gives_zero_that_back_propagates(case: LossCase, rows: int) -> None:
    student, teacher = case.make(6)
    mask = torch.zeros(rows, dtype=torch.bool)
    for reduction in ("mean", "sum", "none"):
        value, gradient = value_and_gradient(
            case.call, student[:rows], teacher[:rows], mask=mask, reduction=reduction
        )
        assert (value == 0).all()
        assert (gradient == 0).all()
        assert gradient.shape == student[:rows].shape
    value, _ = value_and_gradient(case.call, student[:0], teacher[:0])
    assert value == 0


@each_loss
def test_batch_of_one(case: LossCase) -> None:
    student, teacher = case.make(7, batch=1)
    value, gradient = value_and_gradient(case.call, student, teacher)
    assert value.isfinite()
    assert gradient.isfinite().all()
    if case.lone is not None:
        assert_close(value, torch.tensor(case.lone, dtype=torch.float64))
        assert gradient.abs().max() <= 1e-12


def extremes(case: LossCase) -> dict[str, Tensor]:
    """Inputs of the student's shape at which formulas break."""
    student, _ = (x.float() for x in case.make(8))
    signs = student.sign()
    one_hot = torch.zeros_like(student)
    one_hot[:, 0] = 1e4
    one_row = student.clone()
    one_row[2] = 0
    return {
        "huge": 1e4 * signs,
        "huge one way": one_hot,
        "huge everywhere": torch.full_like(student, 1e4),
        "zero": torch.zeros_like(student),
        "constant": torch.full_like(student, 0.3),
        "constant rows": student[:, :1].expand_as(student).clone(),
        "constant columns": student[:1].expand_as(student).clone(),
        "one zero row": one_row,
        "tiny": 1e-20 * student,
        "alternating": 1e4
        * signs.abs()
        * torch.tensor([1.0, -1, 1, -1, 1, -1, 1]).reshape(-1, *[1] * (student.dim() - 1)),
    }


@each_loss
@pytest.mark.parametrize("batch", ["student", "teacher", "both", "same"])
def test_finite_at_extremes(case: LossCase, batch: str) -> None:
    regular, regular_teacher = (x.float() for x in case.make(9))
    for name, extreme in extremes(case).items():
        student = regular if batch == "teacher" else extreme
        teacher = extreme if batch in ("teacher", "same") else regular_teacher
        if batch == "both":
            teacher = extreme.flip(0)
        value, gradient = value_and_gradient(case.call, student, teacher)
        assert value.isfinite(), name
        assert gradient.isfinite().all(), name
        assert case.floor is None or value >= case.floor - 1e-3, name


@each_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(case: LossCase, dtype: torch.dtype) -> None:
    student, teacher = (x.to(dtype) for x in case.make(10))
    value, gradient = value_and_gradient(case.call, student, teacher)
    expected, expected_gradient = value_and_gradient(case.call, student.double(), teacher.double())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-6)
    error = (gradient.double() - expected_gradient).abs().max()
    assert error <= 1e-2 * expected_gradient.abs().max()


@each_loss
def test_autocast_changes_nothing(case: LossCase) -> None:
    student, teacher = (x.float() for x in case.make(11))
    expected, expected_gradient = value_and_gradient(case.call, student, teacher)
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (student.flatten(1) @ student.flatten(1).T).dtype == torch.bfloat16
        value = case.call(student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    assert_close(value.detach(), expected, 0)
    assert_close(gradient, expected_gradient, 0)


@each_loss
def test_types_may_differ(case: LossCase) -> None:
    student, teacher = case.make(11)
    value, _ = value_and_gradient(case.call, student.float(), teacher.bfloat16())
    expected, _ = value_and_gradient(case.call, student.float(), teacher.bfloat16().float())
    assert value.dtype == torch.float32
    assert_close(value, expected)


@each_loss
def test_memory_layout_does_not_matter(case: LossCase) -> None:
    student, teacher = case.make(12)
    expected = case.call(student, teacher)
    strided = torch.empty(*student.shape[::-1], dtype=student.dtype).permute(
        *reversed(range(student.dim()))
    )
    strided.copy_(student)
    assert not strided.is_contiguous()
    assert_close(case.call(strided, teacher), expected)


@each_loss
def test_one_step_lowers_the_loss(case: LossCase) -> None:
    student, teacher = case.make(13)
    before, gradient = value_and_gradient(case.call, student, teacher)
    assert case.call(student - case.rate * gradient, teacher) < before


@each_loss
def test_coupling_is_declared(case: LossCase) -> None:
    student, teacher = case.make(14, batch=6)
    whole = case.call(student, teacher)
    halves = (case.call(student[:3], teacher[:3]) + case.call(student[3:], teacher[3:])) / 2
    assert torch.allclose(whole, halves, rtol=1e-9) is not case.batch_coupled


@each_loss
def test_scopes_agree_in_one_process(case: LossCase) -> None:
    student, teacher = case.make(15)
    for reduction in ("mean", "sum", "none"):
        call = partial(case.call, student, teacher, reduction=reduction)
        assert_close(call(scope="local"), call(scope="global"), 0)


@each_loss
def test_wrong_arguments_are_told(case: LossCase) -> None:
    student, teacher = case.make(16)
    with pytest.raises(ShapeError) as error:
        case.call(student, teacher[:5])
    assert str(tuple(student.shape)) in str(error.value)
    assert str(tuple(teacher[:5].shape)) in str(error.value)
    for wrong in (torch.ones(5, dtype=torch.bool), torch.ones(7, 1, dtype=torch.bool)):
        with pytest.raises(ShapeError) as error:
            case.call(student, teacher, mask=wrong)
        assert str(tuple(student.shape)) in str(error.value)
        assert str(tuple(wrong.shape)) in str(error.value)
    with pytest.raises(ShapeError):
        case.call(student.flatten(), teacher.flatten())
    if case.make is not features:
        with pytest.raises(ShapeError):
            case.call(student, teacher[:, :3])
    with pytest.raises(ValueError, match="floating point"):
        case.call(student.long(), teacher)
    with pytest.raises(ValueError, match="floating point"):
        case.call(student, teacher.long())
    with pytest.raises(ValueError, match="mask must be boolean"):
        case.call(student, teacher, mask=torch.ones(7))
    with pytest.raises(ValueError, match="reduction must be one of"):
        case.call(student, teacher, reduction="batchmean")
    with pytest.raises(ValueError, match="scope must be one of"):
        case.call(student, teacher, scope="world")


@pytest.mark.parametrize("value", [0.0, -1.0, torch.nan, torch.inf])
def test_temperatures_must_be_positive(value: float) -> None:
    student, teacher = LOSSES["kd"].make(16)
    for function in FUNCTIONS:
        for name in inspect.signature(function).parameters:
            if "temperature" in name:
                with pytest.raises(ValueError, match="must be positive"):
                    function(student, teacher, **{name: value})
    for cls in CLASSES:
        for name in inspect.signature(cls).parameters:
            if "temperature" in name:
                with pytest.raises(ValueError, match="must be positive"):
                    cls(**{name: value})


@each_class
def test_wrong_options_are_told_at_construction(cls: type[nn.Module]) -> None:
    for option in ("reduction", "scope", "normalize", "variant"):
        if option in inspect.signature(cls).parameters:
            with pytest.raises(ValueError, match=f"{option} must be one of"):
                cls(**{option: "batchmean"})


@each_module
def test_module_is_function(case: LossCase) -> None:
    assert case.module is not None
    student, teacher = case.make(17)
    for reduction in ("mean", "sum", "none"):
        for mask in (None, MASK):
            module = case.module(reduction=reduction)
            value, gradient = value_and_gradient(module, student, teacher, mask=mask)
            expected, expected_gradient = value_and_gradient(
                case.call, student, teacher, mask=mask, reduction=reduction
            )
            assert_close(value, expected)
            assert_close(gradient, expected_gradient)


@each_module
def test_module_is_stateless_and_copies(case: LossCase) -> None:
    assert case.module is not None
    student, teacher = case.make(18)
    module = case.module(reduction="sum")
    before = copy.deepcopy(module.state_dict())
    expected = module(student, teacher)
    assert module.state_dict() == before
    assert list(module.parameters()) == []
    assert_close(module.eval()(student, teacher), expected, 0)
    assert_close(copy.deepcopy(module)(student, teacher), expected, 0)
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    fresh = case.module(reduction="sum")
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert_close(fresh(student, teacher), expected, 0)
    assert_close(module(student, teacher), expected, 0)


@each_module
def test_compiled_is_eager(case: LossCase) -> None:
    assert case.module is not None
    torch.compiler.reset()
    student, teacher = case.make(19)
    compiled = torch.compile(case.module(), fullgraph=True, backend="aot_eager")
    value, gradient = value_and_gradient(compiled, student, teacher, mask=MASK)
    expected, expected_gradient = value_and_gradient(case.module(), student, teacher, mask=MASK)
    assert_close(value, expected)
    assert_close(gradient, expected_gradient)


@each_class
def test_facts_about_the_module(cls: Any) -> None:
    assert issubclass(cls, nn.Module)
    assert cls.__final__
    assert cls.__bases__ == (losses.Loss,)
    assert isinstance(cls.paper, Paper)
    assert cls.paper.url.startswith("https://")
    assert cls.equation.isprintable()
    assert "=" in cls.equation
    assert cls.family in ("response", "feature", "relation")
    assert cls.needs_labels is False
    case = LOSSES[cls.name]
    assert cls.__name__ in case.covers
    assert cls.zero_at_match is case.zero_at_match
    assert cls.batch_coupled is case.batch_coupled


@each_class
def test_every_default_has_a_source(cls: Any) -> None:
    parameters = inspect.signature(cls).parameters
    assert set(cls.sources) == set(parameters)
    assert all(text.strip() for text in cls.sources.values())
    module = cls()
    for name, parameter in parameters.items():
        assert parameter.default is not inspect.Parameter.empty
        assert getattr(module, name) == parameter.default
        assert f"{name}={parameter.default!r}" in repr(module)
    assert len(parameters) <= 8


def test_only_the_vocabulary() -> None:
    for cls in CLASSES:
        names = list(inspect.signature(cls.forward).parameters)[1:]
        assert set(names) <= VOCABULARY
        assert names[:2] in (
            ["student_logits", "teacher_logits"],
            ["student_feature", "teacher_feature"],
        )
    for function in FUNCTIONS:
        for name, parameter in inspect.signature(function).parameters.items():
            positional = parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
            assert positional is (name in VOCABULARY - {"mask"}), (function, name)


def test_defaults_of_function_and_module_agree() -> None:
    for cls in CLASSES:
        name = next(n for n in LOSSES[cls.name].covers + LOSSES["cskd_fixed"].covers if n.islower())
        function = inspect.signature(getattr(losses, name)).parameters
        for parameter in inspect.signature(cls).parameters.values():
            if parameter.name in function:
                assert function[parameter.name].default == parameter.default


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    return jaxtyped(inspect.unwrap(function), typechecker=beartype)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_shape_annotations_hold(function: Callable[..., Any]) -> None:
    cases = [case for case in LOSSES.values() if function.__name__ in case.covers]
    make = cases[0].make if cases else LOSSES["kd"].make
    student, teacher = make(20)
    typed = checked(function)
    typed(student, teacher)
    typed(student, teacher, mask=MASK)
    if "reduction" in inspect.signature(function).parameters:
        typed(student.float(), teacher.float(), mask=MASK, reduction="none")
    with pytest.raises(TypeCheckError):
        typed(student, teacher, mask=MASK.float())
    with pytest.raises(TypeCheckError):
        typed(student, teacher[:5])


@each_class
def test_shape_annotations_of_forward_hold(cls: Any) -> None:
    student, teacher = LOSSES[cls.name].make(20)
    typed = checked(cls.forward)
    typed(cls(), student, teacher)
    typed(cls(reduction="none"), student, teacher, MASK)
    with pytest.raises(TypeCheckError):
        typed(cls(), student, teacher, MASK[:3])
