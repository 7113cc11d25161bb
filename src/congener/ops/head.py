"""A loss of next-token logits, from hidden states: the logits of all tokens never exist at once.

Logits have a number for each token and word, hidden states one for each token and channel: logits
and their gradients are what fills the memory. Here some tokens at a time are multiplied by the
head and scored, and their gradient is multiplied back at once (as Liger Kernel does; Hsu et al.,
2024), so that what is kept has the sizes of the hidden states and the weights.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from congener.errors import ShapeError
from congener.ops.checks import check_choice, check_floating
from congener.ops.collectives import Scope, check_scope
from congener.ops.precision import upcast
from congener.ops.reduction import reduce_samples

__all__ = ["LazyLogits", "loss_from_hidden"]

IGNORE = -100  # the label of a token that does not count, torch's

Score = Callable[[Tensor, slice], Tensor]
"""One value for each of some tokens, of the student's logits of them, and which tokens they are."""


class LazyLogits(NamedTuple):
    """Logits that are not computed yet.

    Attributes:
        hidden: what the head reads, (..., channels).
        weight: of the head, (vocab, channels); its first rows alone cut the vocabulary.
        bias: of the head, (vocab,).
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None


def loss_from_hidden(
    loss: Callable[[Tensor, Tensor], Tensor],
    student: LazyLogits,
    teacher: LazyLogits | Tensor,
    *,
    mask: Bool[Tensor, "*tokens"] | None = None,
    chunk: int = 256,
    reduction: Literal["mean", "sum"] = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""]:
    """A loss of logits without the memory of logits: the same value, the same gradients.

    Args:
        loss: one value for each of some tokens, (tokens,), given the student's logits of them,
            (tokens, vocab), and what ``teacher`` has for them; such as a loss with
            ``reduction="none"``. What a network does to logits after its head belongs in here.
        student: hidden states and head; gradients flow into both.
        teacher: hidden states and head, or a tensor with an entry for each token: logits,
            (..., vocab), or labels, (...); a constant.
        mask: (...), which tokens count; the others are as if absent, labels of -100 too.
        chunk: how many tokens at a time; ours: 256.
        reduction: ``"mean"`` or ``"sum"`` over tokens.
        scope: ``"global"``: the tokens of all processes; ``"local"``: of this one.

    Returns:
        A scalar, at least float32; logits are multiplied in the type that autocast asks for, or
        that they come in, but for float16, where a gradient not yet scaled would vanish. It keeps
        gradients alone for backward; it cannot be differentiated twice, nor transformed by
        ``torch.func``, and breaks the graph of ``torch.compile``.

    Raises:
        ShapeError: hidden states, weights, the teacher's tokens or the mask do not fit.
        ValueError: integers for hidden states, another reduction, no tokens at a time.

    >>> from functools import partial
    >>> student = LazyLogits(torch.eye(2), torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]))
    >>> cross_entropy = partial(F.cross_entropy, reduction="none")
    >>> round(loss_from_hidden(cross_entropy, student, torch.tensor([2, 0])).item(), 4)
    0.825
    """
    check_choice("reduction", reduction, ("mean", "sum"))
    check_scope(scope)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 token, not {chunk}.")
    student = _cast("student", student)
    head = None if isinstance(teacher, Tensor) else _cast("teacher", teacher)
    others = teacher if isinstance(teacher, Tensor) else teacher.hidden
    tokens = student.hidden.shape[:-1]
    _check_tokens(tokens, others, mask)
    if mask is None and isinstance(teacher, Tensor) and not teacher.is_floating_point():
        mask = teacher != IGNORE
    kept = slice(None) if mask is None else mask.flatten()
    hidden, others = (x.flatten(0, len(tokens) - 1)[kept] for x in (student.hidden, others))

    def score(logits: Tensor, rows: slice) -> Tensor:
        beside = others[rows].detach()
        values = loss(logits, beside if head is None else _logits(beside, *head[1:]))
        if values.shape != logits.shape[:1]:
            raise ShapeError(
                f"the loss must give {tuple(logits.shape[:1])}, one value for each token, not "
                f'{tuple(values.shape)}; let it have reduction="none".'
            )
        return values

    with torch.autocast(hidden.device.type, enabled=False):
        total = _total(LazyLogits(hidden, student.weight, student.bias), score, chunk)
        means = (total / max(1, len(hidden))).expand(len(hidden))
        return reduce_samples(means, None, reduction=reduction, scope=scope)


def _cast(name: str, given: LazyLogits) -> LazyLogits:
    """Check shapes, and bring all to the type in which the head multiplies."""
    hidden, weight, bias = (() if x is None else tuple(x.shape) for x in given)
    check_floating(**{f"{name}.hidden": given.hidden, f"{name}.weight": given.weight})
    fits = len(hidden) >= 2 and len(weight) == 2 and hidden[-1] == weight[1]
    if not fits or (given.bias is not None and bias != weight[:1]):
        raise ShapeError(
            f"{name}.hidden {hidden}, weight {weight} and bias {bias or None} must be "
            "(..., channels), (vocab, channels) and (vocab,) or None; give what the head reads, "
            "and the parameters of the head."
        )
    device = given.hidden.device.type
    dtype = torch.promote_types(given.hidden.dtype, given.weight.dtype)
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    dtype = torch.float32 if dtype == torch.float16 else dtype
    changed = None if given.bias is None else given.bias.to(dtype)
    return LazyLogits(given.hidden.to(dtype), given.weight.to(dtype), changed)


def _check_tokens(tokens: tuple[int, ...], teacher: Tensor, mask: Tensor | None) -> None:
    if teacher.shape[: len(tokens)] != tokens:
        raise ShapeError(
            f"what the teacher has, {tuple(teacher.shape)}, must begin with the student's tokens, "
            f"{tuple(tokens)}; feed both the same tokens."
        )
    if mask is not None and mask.shape != tokens:
        raise ShapeError(
            f"mask {tuple(mask.shape)} must be {tuple(tokens)}; give one entry for each token."
        )
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean, not {mask.dtype}; call .bool().")


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    with torch.no_grad():
        return upcast(F.linear(hidden.to(weight.dtype), weight, bias))[0]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _total(student: LazyLogits, score: Score, chunk: int) -> Tensor:
    """The sum over tokens."""
    pieces = [slice(start, start + chunk) for start in range(0, len(student.hidden), chunk)]
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in student):
        total: Tensor = _FromHidden.apply(*student, score, pieces)
        return total
    _, weight, bias = student
    values = [score(_logits(student.hidden[rows], weight, bias), rows).sum() for rows in pieces]
    return sum(values, start=student.hidden.new_zeros((), dtype=_wide(student.hidden)))


class _FromHidden(torch.autograd.Function):
    """Sums values and gradients of some tokens at a time; backward only scales."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        score: Score,
        pieces: list[slice],
    ) -> Tensor:
        total = hidden.new_zeros((), dtype=_wide(hidden))
        of_hidden, of_weight, of_bias = (
            torch.zeros_like(x, dtype=total.dtype) if x is not None and needed else None
            for x, needed in zip((hidden, weight, bias), ctx.needs_input_grad, strict=False)
        )
        for rows in pieces:
            value, slope = _value_and_slope(score, _logits(hidden[rows], weight, bias), rows)
            total += value
            if of_bias is not None:
                of_bias += slope.sum(dim=0)
            slope = slope.to(hidden.dtype)
            if of_hidden is not None:
                of_hidden[rows] = slope @ weight
            if of_weight is not None:
                _add_product(of_weight, slope.T, hidden[rows])
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        ctx.dtype = hidden.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a loss from hidden states cannot be differentiated twice (create_graph=True); "
                "compute the logits and give them to the loss itself."
            )
        scaled = (None if x is None else (grad * x).to(ctx.dtype) for x in ctx.saved_tensors)
        return *scaled, None, None


def _value_and_slope(score: Score, logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """The sum of some tokens' values, and its gradient with respect to their logits."""
    with torch.enable_grad():
        logits.requires_grad_()
        value = score(logits, rows).sum()
        (slope,) = torch.autograd.grad(value, logits)
    return value.detach(), slope


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def _wide(x: Tensor) -> torch.dtype:
    return upcast(x[:0])[0].dtype
