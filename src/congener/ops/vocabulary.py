"""Divergences of token distributions over a vocabulary, lean in time and memory.

The plain formula keeps about a dozen tensors of the logits' size for its backward pass; a language
model's logits are the largest tensors of a step. From a certain size on, a divergence is therefore
computed for some tokens at a time, value and gradient at once, and only the gradient is kept. Both
forms share one set of formulas and give the same numbers; what is compiled is always plain.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from congener.errors import ShapeError
from congener.ops.checks import check_floating
from congener.ops.collectives import Scope
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, reduce_samples

__all__ = [
    "Divergence",
    "check_share",
    "check_token_logits",
    "forward_kl",
    "generalized_js",
    "ranked_l1",
    "reduce_tokens",
    "reverse_kl",
    "skew_forward_kl",
    "skew_reverse_kl",
    "token_divergence",
    "total_variation",
]

Divergence = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes log p of the teacher and log q of the student, (tokens, vocab) and finite.

Returns the divergence D of each token, and q · ∂D/∂q up to a multiple of q, the slope: the gradient
with respect to the student's logits is the slope minus q times the slope's sum.
"""

LEAN_FROM = 2**18
"""Logits of at least this many numbers take the lean form."""

CHUNK, DEVICE_CHUNK = 2**17, 2**25
"""How many logits a processor, whose cache they should fit, and a GPU take at a time."""


def check_token_logits(
    student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None = None
) -> None:
    """Logits must be floating point, of one shape (..., vocab); the mask must have the shape (...).

    Raises:
        ShapeError: the shapes differ, there is no axis besides the vocabulary, or the mask does
            not fit.
        ValueError: one of the two is not floating point, or the mask is not boolean.
    """
    check_floating(student_logits=student_logits, teacher_logits=teacher_logits)
    student, teacher = tuple(student_logits.shape), tuple(teacher_logits.shape)
    if student != teacher or len(student) < 2:
        raise ShapeError(
            f"student_logits {student} and teacher_logits {teacher} must have one shape, "
            "(..., vocab) with at least one axis of tokens; feed both the same tokens, cut padded "
            "vocabularies to their common part, and for different tokenizers use uld_loss."
        )
    if mask is not None and tuple(mask.shape) != student[:-1]:
        raise ShapeError(
            f"mask {tuple(mask.shape)} must be {student[:-1]} for student_logits {student}; give "
            "one entry for each token."
        )
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean, not {mask.dtype}; call .bool().")


def check_share(name: str, share: float, *, below: float | None = None) -> None:
    """A share of a mixture must lie in [0, 1], or in [0, ``below``).

    Raises:
        ValueError: it does not.
    """
    if not (0 <= share <= 1 if below is None else 0 <= share < below):
        interval = "[0, 1]" if below is None else f"[0, {below})"
        raise ValueError(f"{name} must be in {interval}, not {share}.")


def token_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    divergence: Divergence,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """The divergence of each token.

    Args:
        student_logits: (..., vocab).
        teacher_logits: (..., vocab); a constant.
        divergence: of log-probabilities.
        temperature: divides both logits.
        mask: (...), which tokens count; the others give 0 and, in the lean form, cost nothing.

    Returns:
        (...), at least float32.
    """
    teacher_logits = teacher_logits.detach()
    if not torch.compiler.is_compiling() and student_logits.numel() >= LEAN_FROM:
        return _lean(student_logits, teacher_logits, divergence, temperature, mask)
    rows = None if mask is None else mask.flatten()
    student, teacher = upcast(student_logits.flatten(0, -2), teacher_logits.flatten(0, -2))
    log_q = _log_probabilities(blank_rows(student, rows), temperature)
    log_p = _log_probabilities(blank_rows(teacher, rows), temperature)
    return blank_rows(divergence(log_p, log_q)[0], rows).reshape(student_logits.shape[:-1])


def reduce_tokens(
    per_token: Tensor, mask: Tensor | None, *, reduction: Reduction, scope: Scope
) -> Tensor:
    """Reduce as ``reduce_samples`` does, with tokens for samples."""
    rows = None if mask is None else mask.flatten()
    reduced = reduce_samples(per_token.flatten(), rows, reduction=reduction, scope=scope)
    return reduced.reshape(per_token.shape) if reduction == "none" else reduced


def forward_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p ‖ q)."""
    p = log_p.exp()
    # -1, but 0 where the student excludes: that logit cannot be moved
    sign = (_least(log_q.dtype) - log_q).clamp(min=-1)
    return (p * (log_p - log_q)).sum(dim=-1), p * sign


def reverse_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q ‖ p)."""
    terms = log_q.exp() * (log_q - log_p)
    return terms.sum(dim=-1), terms


def generalized_js(beta: float) -> Divergence:
    """β KL(p ‖ m) + (1 − β) KL(q ‖ m), m = β p + (1 − β) q; at its ends the two KLs of p and q."""
    ends = {0.0: forward_kl, 1.0: reverse_kl}
    return ends.get(beta) or partial(_jensen_shannon, beta)


def skew_forward_kl(alpha: float) -> Divergence:
    """KL(p ‖ α p + (1 − α) q), for 0 ≤ α < 1."""
    return partial(_skew_forward_kl, alpha) if alpha else forward_kl


def skew_reverse_kl(alpha: float) -> Divergence:
    """KL(q ‖ α q + (1 − α) p), for 0 ≤ α < 1."""
    return partial(_skew_reverse_kl, alpha) if alpha else reverse_kl


def total_variation(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Σ |p − q| / 2."""
    q = log_q.exp()
    difference = q - log_p.exp()
    return difference.abs().sum(dim=-1) / 2, q * difference.sign() / 2


def ranked_l1(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Σ |p − q|, both in falling order."""
    q = log_q.exp()
    sorted_q, order = q.sort(dim=-1, descending=True)
    difference = sorted_q - log_p.exp().sort(dim=-1, descending=True).values
    slope = q * torch.zeros_like(q).scatter(-1, order, difference.sign())
    return difference.abs().sum(dim=-1), slope


def _jensen_shannon(beta: float, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    p, q = log_p.exp(), log_q.exp()
    log_m = _log(torch.lerp(q, p, beta))
    terms = (1 - beta) * q * (log_q - log_m)
    return beta * (p * (log_p - log_m)).sum(dim=-1) + terms.sum(dim=-1), terms


def _skew_forward_kl(alpha: float, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    p, q = log_p.exp(), log_q.exp()
    mixture = torch.lerp(q, p, alpha)
    value = (p * (log_p - _log(mixture))).sum(dim=-1)
    return value, (alpha - 1) * q * (p / _positive(mixture))


def _skew_reverse_kl(alpha: float, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    p, q = log_p.exp(), log_q.exp()
    mixture = torch.lerp(p, q, alpha)
    terms = q * (log_q - _log(mixture))
    return terms.sum(dim=-1), terms - alpha * q * (q / _positive(mixture))


def _log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Logarithms that stay finite: an excluded class' is so small that its probability is 0."""
    scaled = logits if temperature == 1 else logits / temperature
    logarithms = torch.log_softmax(scaled, dim=-1)
    clamp = logarithms.clamp if torch.is_grad_enabled() else logarithms.clamp_
    return clamp(min=_least(logits.dtype))


def _least(dtype: torch.dtype) -> float:
    """Stands for log 0: differences of it, and their sums over a distribution, are finite."""
    return torch.finfo(dtype).min / 4


def _log(probabilities: Tensor) -> Tensor:
    return _positive(probabilities).log()


def _positive(probabilities: Tensor) -> Tensor:
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny)


def _lean(
    student: Tensor,
    teacher: Tensor,
    divergence: Divergence,
    temperature: float,
    mask: Tensor | None,
) -> Tensor:
    tokens = student.shape[:-1]
    mask = None if mask is None or bool(mask.all()) else mask
    if mask is None and student.is_contiguous() and teacher.is_contiguous():
        student, teacher = student.flatten(0, -2), teacher.flatten(0, -2)
    values: Tensor = _Lean.apply(student, teacher, divergence, temperature, mask)
    return values.reshape(tokens)


def _chunks(logits: Tensor, mask: Tensor | None) -> Iterator[Any]:
    """Places of some tokens at a time, to index tensors with."""
    numbers = CHUNK if logits.device.type == "cpu" else DEVICE_CHUNK
    size = max(1, numbers // logits.shape[-1])
    if mask is None and logits.dim() == 2:
        return (slice(start, start + size) for start in range(0, logits.shape[0], size))
    everything = torch.ones(logits.shape[:-1], dtype=torch.bool, device=logits.device)
    places = (everything if mask is None else mask).nonzero(as_tuple=True)
    return zip(*(torch.split(axis, size) for axis in places), strict=True)


class _Lean(torch.autograd.Function):
    """Values and gradients of some tokens at a time; what is masked is not looked at."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        divergence: Divergence,
        temperature: float,
        mask: Tensor | None,
    ) -> Tensor:
        dtype = upcast(student[:0], teacher[:0])[0].dtype
        values = torch.zeros(student.shape[:-1], dtype=dtype, device=student.device)
        gradient = _empty_gradient(student) if ctx.needs_input_grad[0] else None
        for chunk in _chunks(student, mask):
            log_p = _log_probabilities(teacher[chunk].to(dtype), temperature)
            log_q = _log_probabilities(student[chunk].to(dtype), temperature)
            values[chunk], slope = divergence(log_p, log_q)
            if gradient is not None:
                slope = slope - log_q.exp_() * slope.sum(dim=-1, keepdim=True)
                slope = slope if temperature == 1 else slope.div_(temperature)
                gradient[chunk] = slope.to(gradient.dtype)
        ctx.save_for_backward(gradient)
        ctx.dtype = student.dtype
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a token divergence of many logits cannot be differentiated twice "
                f"(create_graph=True); give it fewer than {LEAN_FROM} logits at a time."
            )
        (gradient,) = ctx.saved_tensors
        scaled = torch.empty_like(gradient, dtype=ctx.dtype)
        torch.mul(gradient, grad.unsqueeze(-1), out=scaled)
        return scaled, None, None, None, None


def _empty_gradient(logits: Tensor) -> Tensor:
    """Zeros like ``logits``; wider than float16, which loses what is small before it is scaled."""
    dtype = torch.float32 if logits.dtype == torch.float16 else logits.dtype
    return torch.zeros_like(logits, dtype=dtype, memory_format=torch.contiguous_format)
