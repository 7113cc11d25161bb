"""What every public loss must do, as checks that say by how much.

A check takes a :class:`LossCase` and yields what it measured. The tests run every check on every
case, and on a loss broken on purpose, which each must catch; ``congener verify`` runs them on the
user's machine.
"""

import copy
import io
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from congener.conformance.cases import Check
from congener.conformance.table.case import LossCase
from congener.errors import NonFiniteLossError, ShapeError
from congener.ops.collectives import lone_sample_expected

__all__ = ["CHECKS", "Measure", "measure"]

Measure = Callable[[LossCase], Iterator[Check]]

MASK = torch.tensor([True, False, True, True, False, True, True])
_REDUCTIONS = ("mean", "sum", "none")

CHECKS: dict[str, Measure] = {}
"""Every check by its name, in the order in which they are worth reading."""


def measure(name: str, case: LossCase) -> list[Check]:
    """Run one check on one loss; nothing where the case is exempt from it.

    An exception of the loss is a failure of the check, not of the caller.
    """
    if name in case.exempt:
        return []
    try:
        return list(CHECKS[name](case))
    except Exception as error:  # noqa: BLE001  whatever a loss raises is what is reported
        return [Check(f"{type(error).__name__}: {error}", torch.inf, 0.0)]


def _check(function: Measure) -> Measure:
    CHECKS[function.__name__] = function
    return function


def _holds(key: str, condition: bool) -> Check:
    return Check(key, 0.0 if condition else torch.inf, 0.0)


def _close(key: str, actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> Check:
    """The largest error, relative to entries larger than 1; NaN and wrong shapes never pass."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        found = f"{tuple(actual.shape)} {actual.dtype}"
        return _holds(f"{key} is {found}, not {tuple(expected.shape)} {expected.dtype}", False)
    error = ((actual - expected).abs() / expected.abs().clamp(min=1)).flatten()
    return Check(key, float(error.max()) if len(error) else 0.0, tolerance)


def _both(
    call: Callable[..., Tensor], student: Tensor, teacher: Tensor, **options: object
) -> tuple[Tensor, Tensor]:
    """Value, and gradient of its sum."""
    student = student.detach().clone().requires_grad_()
    value = call(student, teacher, **options)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    return value.detach(), gradient


def _same(
    key: str, actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], tolerance: float = 0
) -> Iterator[Check]:
    for part, a, b in zip(("value", "gradient"), actual, expected, strict=True):
        yield _close(f"{key} {part}".strip(), a, b, tolerance)


@_check
def finite_scalar_attached_to_the_student(case: LossCase) -> Iterator[Check]:
    """A regular batch has a finite loss, and a gradient that can be seen."""
    value, gradient = _both(case.call, *case.make(0))
    yield _holds("scalar", value.shape == () and value.dtype == torch.float64)
    yield _holds("finite", bool(value.isfinite()) and bool(gradient.isfinite().all()))
    yield _holds("above its floor", case.floor is None or bool(value > case.floor))
    yield _holds("gradient", bool(gradient.abs().max() > 1e-6))


@_check
def no_gradient_reaches_the_teacher(case: LossCase) -> Iterator[Check]:
    """The teacher is detached inside the loss."""
    for reduction in ("mean", "none"):
        student, teacher = (x.requires_grad_() for x in case.make(0))
        value = case.call(student, teacher, reduction=reduction).sum()
        value.backward()  # type: ignore[no-untyped-call]
        yield _holds(reduction, teacher.grad is None or not teacher.grad.any())


@_check
def gradcheck(case: LossCase) -> Iterator[Check]:
    """The gradient is that of the value, masked or not, for every contribution."""
    student, teacher = case.make(1)
    call = case.call if case.frozen is None else case.frozen(student, teacher)
    calls = {"mean": call}
    if case.frozen is None:
        calls |= {"masked": partial(call, mask=MASK), "none": partial(call, reduction="none")}
    for key, each in calls.items():
        yield _central_difference(key, each, student, teacher)


def _central_difference(
    key: str, call: Callable[..., Tensor], student: Tensor, teacher: Tensor
) -> Check:
    """Directional derivatives against Richardson-extrapolated central differences."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(len(student), generator=generator, dtype=torch.float64) + 0.5

    def weighted(x: Tensor) -> Tensor:
        value = call(x, teacher)
        return (value * weights).sum() if value.dim() else value

    own = student.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(weighted(own), own)
    worst = 0.0
    for _ in range(4):
        way = torch.randn(student.shape, generator=generator, dtype=torch.float64)
        slope = float((gradient * way).sum())
        with torch.no_grad():
            coarse, fine = (
                float(weighted(student + h * way) - weighted(student - h * way)) / (2 * h)
                for h in (2e-4, 1e-4)
            )
        numeric = (4 * fine - coarse) / 3
        worst = max(worst, abs(slope - numeric) / max(1.0, abs(numeric)))
    return Check(key, worst, 1e-6)


@_check
def the_graph_can_be_used_twice(case: LossCase) -> Iterator[Check]:
    """A gradient that is taken first leaves the next one as it is."""
    student, teacher = case.make(1)
    student.requires_grad_()
    value = case.call(student, teacher)
    (first,) = torch.autograd.grad(2 * value, student, retain_graph=True)
    (second,) = torch.autograd.grad(3 * value, student)
    yield _close("gradient", 2 * second, 3 * first)


@_check
def constants_of_the_student_carry_no_gradient(case: LossCase) -> Iterator[Check]:
    """What the paper detaches on the student's side is detached."""
    if case.frozen is not None:
        student, teacher = case.make(1)
        frozen = case.frozen(student, teacher)
        yield from _same(
            "", _both(case.call, student, teacher), _both(frozen, student, teacher), 1e-12
        )


@_check
def zero_at_match(case: LossCase) -> Iterator[Check]:
    """Value and gradient are 0 at student = teacher, and nowhere near, if the loss says so."""
    other, teacher = case.make(2)
    if not case.zero_at_match:
        value, gradient = _both(case.call, other, teacher)
        yield _holds("not claimed", bool(value.isfinite()) and bool(gradient.isfinite().all()))
        return
    value, gradient = _both(case.call, teacher, teacher)
    yield Check("value", abs(float(value)), case.match)
    yield Check("gradient", float(gradient.abs().max()), case.match)
    value, gradient = _both(case.call, other, teacher)
    yield _holds("not elsewhere", float(min(value, gradient.abs().max())) > 10 * case.match)


@_check
def order_of_the_batch_does_not_matter(case: LossCase) -> Iterator[Check]:
    """Samples may come in any order; contributions and gradients follow them."""
    student, teacher = case.make(3)
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    value, gradient = _both(case.call, student, teacher)
    permuted = _both(case.call, student[order], teacher[order])
    yield from _same("mean", permuted, (value, gradient[order]), 1e-12)
    none = _both(case.call, student, teacher, reduction="none")
    permuted = _both(case.call, student[order], teacher[order], reduction="none")
    yield from _same("none", permuted, (none[0][order], none[1][order]), 1e-12)


@_check
def reductions_agree(case: LossCase) -> Iterator[Check]:
    """The mean of the contributions is the loss; their sum is the sum."""
    student, teacher = case.make(4)
    for mask, count in ((None, 7), (MASK, 5)):
        none, mean, total = (
            _both(case.call, student, teacher, mask=mask, reduction=reduction)
            for reduction in ("none", "mean", "sum")
        )
        key = "masked" if count == 5 else "whole"
        yield _holds(f"{key} one for each", none[0].shape == (7,) and bool(none[0].std() > 0))
        yield from _same(f"{key} sum", total, (count * mean[0], count * mean[1]), 1e-12)
        yield from _same(f"{key} none", (none[0].sum(), none[1]), total, 1e-12)


@_check
def masked_rows_are_as_if_absent(case: LossCase) -> Iterator[Check]:
    """Whatever masked rows hold, the loss is that of the others, and they get no gradient."""
    student, teacher = case.make(5)
    value, gradient = _both(case.call, student[MASK], teacher[MASK])
    for garbage in (0.0, 1e30, torch.nan, torch.inf):
        student[~MASK], teacher[~MASK] = garbage, garbage
        for reduction in _REDUCTIONS:
            key, count = f"{garbage} {reduction}", 1 if reduction == "mean" else 5
            found = _both(case.call, student, teacher, mask=MASK, reduction=reduction)
            yield _holds(f"{key} no gradient", not found[1][~MASK].any())
            yield _close(f"{key} gradient", found[1][MASK], count * gradient)
            yield _close(f"{key} value", found[0].sum(), count * value)
            if reduction == "none":
                yield _holds(f"{key} no contribution", not found[0][~MASK].any())


@_check
def full_mask_changes_nothing(case: LossCase) -> Iterator[Check]:
    """A mask that keeps everything is no mask."""
    student, teacher = case.make(5)
    full = torch.ones(7, dtype=torch.bool)
    whole = _both(case.call, student, teacher)
    yield from _same("", _both(case.call, student, teacher, mask=full), whole, 1e-12)


@_check
def nothing_left_gives_zero_that_back_propagates(case: LossCase) -> Iterator[Check]:
    """A batch without samples, or with all of them masked, is 0 with gradient 0."""
    student, teacher = case.make(6)
    for rows in (0, 7):
        mask = torch.zeros(rows, dtype=torch.bool)
        for reduction in _REDUCTIONS:
            value, gradient = _both(
                case.call, student[:rows], teacher[:rows], mask=mask, reduction=reduction
            )
            key = f"{rows} rows {reduction}"
            yield _holds(f"{key} value", not value.any() and value.shape in ((), (rows,)))
            yield _holds(f"{key} gradient", not gradient.any() and len(gradient) == rows)
    value, _ = _both(case.call, student[:0], teacher[:0])
    yield _holds("no mask", not value.any())


@_check
def batch_of_one(case: LossCase) -> Iterator[Check]:
    """One sample has the value that the limit says, and no NaN."""
    with lone_sample_expected():
        value, gradient = _both(case.call, *case.make(7, batch=1))
    yield _holds("finite", bool(value.isfinite()) and bool(gradient.isfinite().all()))
    if case.lone is not None:
        yield Check("value", abs(float(value) - case.lone), 1e-12)
        yield Check("gradient", float(gradient.abs().max()), 1e-12)


def _extremes(case: LossCase) -> dict[str, Tensor]:
    """Inputs of the student's shape at which formulas break."""
    student, _ = (x.float() for x in case.make(8))
    signs = student.sign()
    one_hot = torch.zeros_like(student)
    one_hot[:, 0] = 1e4
    one_row = student.clone()
    one_row[2] = 0
    turns = torch.tensor([1.0, -1, 1, -1, 1, -1, 1]).reshape(-1, *[1] * (student.dim() - 1))
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
        "alternating": 1e4 * signs.abs() * turns,
    }


@_check
def finite_at_extremes(case: LossCase) -> Iterator[Check]:
    """Huge, zero, constant and tiny inputs, on either side or both, in float32."""
    regular, regular_teacher = (x.float() for x in case.make(9))
    for name, extreme in _extremes(case).items():
        pairs = {
            "student": (extreme, regular_teacher),
            "teacher": (regular, extreme),
            "both": (extreme, extreme.flip(0)),
            "same": (extreme, extreme),
        }
        for side, (student, teacher) in pairs.items():
            value, gradient = _both(case.call, student, teacher)
            finite = bool(value.isfinite()) and bool(gradient.isfinite().all())
            yield _holds(f"{name} {side} finite", finite)
            low = 0.0 if case.floor is None else max(0.0, case.floor - float(value))
            yield Check(f"{name} {side} above its floor", low, 1e-3)


@_check
def half_precision_is_computed_in_float32(case: LossCase) -> Iterator[Check]:
    """float16 and bfloat16 inputs give what float64 makes of the same numbers."""
    for dtype in (torch.bfloat16, torch.float16):
        student, teacher = (x.to(dtype) for x in case.make(10))
        value, gradient = _both(case.call, student, teacher)
        expected = _both(case.call, student.double(), teacher.double())
        yield _holds(f"{dtype} result", value.dtype == torch.float32)
        size = float(expected[0].abs())
        error = float((value.double() - expected[0]).abs())
        yield Check(f"{dtype} value", error, 1e-6 + 1e-4 * size)
        error = float((gradient.double() - expected[1]).abs().max())
        yield Check(f"{dtype} gradient", error, 1e-2 * float(expected[1].abs().max()))


@_check
def autocast_changes_nothing(case: LossCase) -> Iterator[Check]:
    """The loss leaves autocast at its own door."""
    student, teacher = (x.float() for x in case.make(11))
    expected = _both(case.call, student, teacher)
    own = student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = case.call(own, teacher)
    (gradient,) = torch.autograd.grad(value, own)
    yield from _same("", (value.detach(), gradient), expected)


@_check
def types_may_differ(case: LossCase) -> Iterator[Check]:
    """A bfloat16 teacher beside a float32 student."""
    student, teacher = case.make(11)
    value, _ = _both(case.call, student.float(), teacher.bfloat16())
    expected, _ = _both(case.call, student.float(), teacher.bfloat16().float())
    yield _close("value", value, expected)
    yield _holds("result", value.dtype == torch.float32)


@_check
def memory_layout_does_not_matter(case: LossCase) -> Iterator[Check]:
    """Strides may be any."""
    student, teacher = case.make(12)
    strided = torch.empty(*student.shape[::-1], dtype=student.dtype).permute(
        *reversed(range(student.dim()))
    )
    strided.copy_(student)
    expected = _both(case.call, student, teacher)
    yield from _same("", _both(case.call, strided, teacher), expected, 1e-12)


@_check
def one_step_lowers_the_loss(case: LossCase) -> Iterator[Check]:
    """A step against the gradient is a step down."""
    student, teacher = case.make(13)
    before, gradient = _both(case.call, student, teacher)
    after = case.call(student - case.rate * gradient, teacher)
    yield _holds("lower", bool(after < before))


@_check
def coupling_is_declared(case: LossCase) -> Iterator[Check]:
    """A loss is the mean of its values on halves of the batch, or says that it is not."""
    student, teacher = case.make(14, batch=6)
    whole = case.call(student, teacher)
    halves = (case.call(student[:3], teacher[:3]) + case.call(student[3:], teacher[3:])) / 2
    coupled = not torch.allclose(whole, halves, rtol=1e-9)
    yield _holds(f"declared {case.batch_coupled}, found {coupled}", coupled is case.batch_coupled)


@_check
def scopes_agree_in_one_process(case: LossCase) -> Iterator[Check]:
    """Alone, a process is everyone."""
    student, teacher = case.make(15)
    for reduction in _REDUCTIONS:
        found, expected = (
            _both(case.call, student, teacher, reduction=reduction, scope=scope)
            for scope in ("local", "global")
        )
        yield from _same(reduction, found, expected)


@_check
def wrong_arguments_are_told(case: LossCase) -> Iterator[Check]:
    """One sentence names what came and what was expected."""
    student, teacher = case.make(16)
    shapes = (str(tuple(student.shape)), str(tuple(teacher[:5].shape)))
    yield _told("batch", ShapeError, shapes, case.call, student, teacher[:5])
    for wrong in (torch.ones(5, dtype=torch.bool), torch.ones(7, 1, dtype=torch.bool)):
        shape = str(tuple(wrong.shape))
        yield _told("mask", ShapeError, (shape,), case.call, student, teacher, mask=wrong)
    yield _told("axes", ShapeError, (), case.call, student.flatten(), teacher.flatten())
    if student.shape == teacher.shape:  # other losses take teachers of any shape
        yield _told("columns", ShapeError, shapes[:1], case.call, student, teacher[:, :-1])
    floating = ("floating point",)
    yield _told("integers", ValueError, floating, case.call, student.long(), teacher)
    yield _told("integers", ValueError, floating, case.call, student, teacher.long())
    tell = partial(_told, "option", ValueError)
    yield tell(("mask must be boolean",), case.call, student, teacher, mask=torch.ones(7))
    for option in ("reduction", "scope"):
        words = (f"{option} must be one of",)
        yield tell(words, case.call, student, teacher, **{option: "batchmean"})


def _told(
    key: str, kind: type[Exception], words: tuple[str, ...], call: Callable[..., Tensor],
    *args: Tensor, **options: object,
) -> Check:  # fmt: skip
    """Whether a call is refused with an exception of a kind whose text has the words."""
    try:
        call(*args, **options)
    except kind as error:
        missing = [word for word in words if word not in str(error)]
        return _holds(f"{key}: {error} lacks {missing}" if missing else key, not missing)
    return _holds(f"{key} not refused", False)


@_check
def not_a_number_is_told(case: LossCase) -> Iterator[Check]:
    """NaN in an input is refused in one sentence; masked, it is as if absent."""
    for side in (0, 1):
        pair = case.make(16)
        pair[side][2] = torch.nan
        yield _told(("student", "teacher")[side], NonFiniteLossError, ("NaN",), case.call, *pair)


@_check
def module_is_function(case: LossCase) -> Iterator[Check]:
    """The module computes the function with its hyper-parameters."""
    if case.module is None or list(case.module().parameters()):
        return
    student, teacher = case.make(17)
    for reduction in _REDUCTIONS:
        for mask in (None, MASK):
            module = case.module(reduction=reduction)
            expected = _both(case.call, student, teacher, mask=mask, reduction=reduction)
            found = _both(module, student, teacher, mask=mask)
            yield from _same(f"{reduction}{' masked' * (mask is not None)}", found, expected, 1e-12)


@_check
def module_keeps_its_state_and_copies(case: LossCase) -> Iterator[Check]:
    """Calling changes no state in eval mode; a copy and a restored module do the same."""
    if case.module is None:
        return
    student, teacher = case.make(18)
    module = case.module(reduction="sum").double().eval()
    before = copy.deepcopy(module.state_dict())
    expected = _both(module, student, teacher)
    after = module.state_dict()
    same = all(torch.equal(after[name], before[name]) for name in before)
    yield _holds("state", set(after) == set(before) and same)
    buffer = io.BytesIO()
    torch.save(after, buffer)
    buffer.seek(0)
    fresh = case.module(reduction="sum").double().eval()
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    for key, other in {"again": module, "copy": copy.deepcopy(module), "restored": fresh}.items():
        yield from _same(key, _both(other, student, teacher), expected)
    if not before:
        yield from _same("training", _both(module.train(), student, teacher), expected)


@_check
def every_parameter_of_the_module_learns(case: LossCase) -> Iterator[Check]:
    """Projectors and other trainable parts get a gradient, a finite one."""
    module = nn.Module() if case.module is None else case.module().double().train()
    if not list(module.parameters()):
        return
    module(*case.make(18)).backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            gradient = parameter.grad
            finite = gradient is not None and bool(gradient.isfinite().all())
            yield _holds(name, finite and gradient is not None and bool(gradient.any()))


@_check
def compiled_is_eager(case: LossCase) -> Iterator[Check]:
    """``torch.compile`` captures the whole loss and changes nothing."""
    if case.module is None:
        return
    torch.compiler.reset()
    student, teacher = case.make(19)
    module = case.module().double().eval()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    expected = _both(module, student, teacher, mask=MASK)
    yield from _same("", _both(compiled, student, teacher, mask=MASK), expected, 1e-12)
