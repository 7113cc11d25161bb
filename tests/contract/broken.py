"""For each check of the contract, a sound loss and a copy of it that the check must catch."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from congener import losses
from congener.conformance.table import LOSSES, LossCase

KD, SP, CSWT = LOSSES["kd"], LOSSES["sp"], LOSSES["cswt"]


def spoil(case: LossCase, wrap: Callable[..., Tensor], **facts: Any) -> LossCase:
    """The case with its call wrapped: ``wrap(call, student, teacher, **options)``."""
    return replace(case, call=partial(wrap, case.call), **facts)


def not_a_number_sometimes(call: Any, student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    return call(student, teacher, **options) + (student * 0).sum() / 0


def teacher_leaks(call: Any, student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    return call(student, teacher, **options) + 0 * teacher.sum() + teacher.square().sum()


def half_a_gradient(call: Any, student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    value = call(student, teacher, **options)
    return (value + value.detach()) / 2


class _GradientOnce(torch.autograd.Function):
    """Keeps the gradient and scales it in place, so that it is right the first time only."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        context.gradient = 2 * x.detach()
        return x.square().sum()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return context.gradient.mul_(gradient)


def gradient_used_up(call: Any, student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    value: Tensor = _GradientOnce.apply(2 * student)
    return value.clone()


def temperatures_move(call: Any, student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    return call(student, teacher, **options) * (1 + student.square().mean())


def offset(call: Any, student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    value = call(student, teacher, **options)
    return value + 1e-3 * torch.ones_like(value)


def first_counts_twice(call: Any, student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    value = call(student, teacher, **options)
    return value + (student[0] ** 2).sum()


def sum_is_mean(call: Any, student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    if options.get("reduction") == "sum":
        options["reduction"] = "mean"
    return call(student, teacher, **options)


def mask_by_product(call: Any, student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    mask = options.pop("mask", None)
    if mask is None:
        return call(student, teacher, **options)
    reduction = options.pop("reduction", "mean")
    rows = call(student, teacher, reduction="none", **options) * mask
    return {"none": rows, "sum": rows.sum(), "mean": rows.sum() / mask.sum()}[reduction]


def mask_divides_by_rows(call: Any, student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    value = call(student, teacher, **options)
    return value if options.get("mask") is None else value * 6 / 7


def nothing_is_nan(call: Any, student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    mask = options.get("mask")
    value = call(student, teacher, **options)
    return value if mask is None else value + 0 / mask.sum()


def alone_is_nan(call: Any, student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    return call(student, teacher, **options) + 0 / torch.tensor(float(len(student) - 1))


def plain_softmax(call: Any, student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    return call(student, teacher, **options) + 0 * student.softmax(dim=1).log().sum()


def in_the_given_type(call: Any, student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    value = call(student, teacher, **options)
    return value.to(torch.promote_types(student.dtype, teacher.dtype))


def product_under_autocast(call: Any, student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    rows = student.flatten(1)
    return call(student, teacher, **options) + (rows @ rows.T).mean()


def types_must_agree(call: Any, student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    student.flatten() @ teacher.flatten()[: student.numel()]
    return call(student, teacher, **options)


def by_view(call: Any, student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    return call(student.view(len(student), -1), teacher, **options)


def uphill(call: Any, student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    value = call(student, teacher, **options)
    return 2 * value.detach() - value


def local_is_other(call: Any, student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    value = call(student, teacher, **options)
    return value / 2 if options.get("scope") == "local" else value


def takes_anything(call: Any, student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    rows = min(len(student), len(teacher))
    return call(student[:rows], teacher[:rows], **options)


def swallows_nan(call: Any, student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    return call(student.nan_to_num(), teacher.nan_to_num(), **options)


class Wrong(nn.Module):
    """A module around KD with one fault."""

    def __init__(self, fault: str, reduction: Any = "mean") -> None:
        super().__init__()
        self.fault, self.reduction = fault, reduction
        if fault == "remembers":
            self.register_buffer("calls", torch.zeros(()))
        if fault == "idle":
            self.idle = nn.Parameter(torch.ones(()))

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        temperature = 3.0 if self.fault == "other temperature" else 4.0
        if self.fault == "remembers":
            self.calls += 1
        if self.fault == "breaks the graph" and student.sum().item() > 0:
            temperature = 4.0
        return losses.kd_loss(
            student, teacher, mask=mask, reduction=self.reduction, temperature=temperature
        )


def module(fault: str) -> LossCase:
    return replace(KD, module=partial(Wrong, fault))


BROKEN: dict[str, tuple[LossCase, LossCase]] = {
    "finite_scalar_attached_to_the_student": (KD, spoil(KD, not_a_number_sometimes)),
    "no_gradient_reaches_the_teacher": (KD, spoil(KD, teacher_leaks)),
    "gradcheck": (SP, spoil(SP, half_a_gradient)),
    "the_graph_can_be_used_twice": (SP, spoil(SP, gradient_used_up)),
    "constants_of_the_student_carry_no_gradient": (CSWT, spoil(CSWT, temperatures_move)),
    "zero_at_match": (SP, spoil(SP, offset)),
    "order_of_the_batch_does_not_matter": (KD, spoil(KD, first_counts_twice)),
    "reductions_agree": (KD, spoil(KD, sum_is_mean)),
    "masked_rows_are_as_if_absent": (SP, spoil(SP, mask_by_product)),
    "full_mask_changes_nothing": (KD, spoil(KD, mask_divides_by_rows)),
    "nothing_left_gives_zero_that_back_propagates": (KD, spoil(KD, nothing_is_nan)),
    "batch_of_one": (SP, spoil(SP, alone_is_nan)),
    "finite_at_extremes": (KD, spoil(KD, plain_softmax)),
    "half_precision_is_computed_in_float32": (KD, spoil(KD, in_the_given_type)),
    "autocast_changes_nothing": (SP, spoil(SP, product_under_autocast)),
    "types_may_differ": (KD, spoil(KD, types_must_agree)),
    "memory_layout_does_not_matter": (SP, spoil(SP, by_view)),
    "one_step_lowers_the_loss": (KD, spoil(KD, uphill)),
    "coupling_is_declared": (SP, replace(SP, batch_coupled=False)),
    "scopes_agree_in_one_process": (KD, spoil(KD, local_is_other)),
    "wrong_arguments_are_told": (KD, spoil(KD, takes_anything)),
    "not_a_number_is_told": (KD, spoil(KD, swallows_nan)),
    "module_is_function": (KD, module("other temperature")),
    "module_keeps_its_state_and_copies": (KD, module("remembers")),
    "every_parameter_of_the_module_learns": (KD, module("idle")),
    "compiled_is_eager": (KD, module("breaks the graph")),
}
