"""Divergences of token distributions over a vocabulary, lean in time and memory.

The plain formula keeps about a dozen tensors of the logits' size for its backward pass; a language
model's logits are the largest tensors of a step. From a certain size on, a divergence is therefore
computed for some tokens at a time, value and gradient at once, and only the gradient is kept; its
intermediate results are written over each other in a few buffers that the caches hold. Both forms
share one set of formulas and give the same numbers; what is compiled is always plain.
"""

import itertools
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from congener.errors import ShapeError
from congener.ops.checks import check_floating
from congener.ops.collectives import Scope
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, reduce_samples

__all__ = [
    "Divergence",
    "Probabilities",
    "check_share",
    "check_token_logits",
    "common_prefix",
    "common_vocabulary",
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


class Probabilities(NamedTuple):
    """p of the teacher and q of the student, (tokens, vocab), and their logarithms, finite.

    With ``spare``, a buffer of their shape, all but q may be written over.
    """

    p: Tensor
    q: Tensor
    log_p: Tensor
    log_q: Tensor
    spare: Tensor | None = None

    def over(self, used: Tensor) -> Tensor | None:
        """Where a result may be written: over what is used up, else into new memory."""
        return None if self.spare is None else used


Divergence = Callable[[Probabilities], tuple[Tensor, Tensor]]
"""Returns the divergence D of each token, and q · ∂D/∂q up to a multiple of q, the slope.

The gradient with respect to the student's logits is the slope minus q times the slope's sum.
"""

LEAN_FROM = 2**18
"""Logits of at least this many numbers take the lean form."""

_CUT: set[tuple[int, int]] = set()
"""The pairs of vocabulary sizes whose cut was told."""

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


def common_prefix(student_size: int, teacher_size: int, tokenizer_size: int | None = None) -> int:
    """How many words two networks of one tokenizer share, whatever their vocabularies' padding.

    Networks round a vocabulary up, each to a size of its own. What is cut is told, once for each
    pair of sizes.

    Args:
        student_size: of the student's vocabulary, padding included.
        teacher_size: of the teacher's.
        tokenizer_size: words of the tokenizer that both read. Without it only what looks like
            padding is cut: fewer than 512 words and a quarter, up to a multiple of 8 (ours).

    Returns:
        The smaller size: the words beyond it are padding.

    Raises:
        ShapeError: the sizes differ by more than padding.

    >>> common_prefix(128, 128)
    128
    """
    shared, larger = sorted((student_size, teacher_size))
    padding = larger - shared
    if not padding:
        return shared
    sizes = f"the student's vocabulary has {student_size} words and the teacher's {teacher_size}"
    if tokenizer_size is None:
        known, fits = "", larger % 8 == 0 and padding < 512 and 4 * padding < shared
    else:
        known, fits = f" of a tokenizer's {tokenizer_size}", tokenizer_size <= shared
    if not fits:
        raise ShapeError(
            f"{sizes}{known}, which differ by more than padding; load networks of one tokenizer, "
            "and compare those of two by uld_loss."
        )
    if (student_size, teacher_size) not in _CUT:
        _CUT.add((student_size, teacher_size))
        warnings.warn(
            f"{sizes}; what is beyond the first {shared} is taken for padding and left out.",
            stacklevel=2,
        )
    return shared


def common_vocabulary(
    student_logits: Tensor, teacher_logits: Tensor, tokenizer_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Both logits, (..., vocab), cut to the words that :func:`common_prefix` counts; views."""
    sizes = student_logits.shape[-1], teacher_logits.shape[-1]
    shared = common_prefix(*sizes, tokenizer_size)
    return student_logits[..., :shared], teacher_logits[..., :shared]


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
    values, _ = divergence(Probabilities(log_p.exp(), log_q.exp(), log_p, log_q))
    return blank_rows(values, rows).reshape(student_logits.shape[:-1])


def reduce_tokens(
    per_token: Tensor, mask: Tensor | None, *, reduction: Reduction, scope: Scope
) -> Tensor:
    """Reduce as ``reduce_samples`` does, with tokens for samples."""
    rows = None if mask is None else mask.flatten()
    reduced = reduce_samples(per_token.flatten(), rows, reduction=reduction, scope=scope)
    return reduced.reshape(per_token.shape) if reduction == "none" else reduced


def forward_kl(given: Probabilities) -> tuple[Tensor, Tensor]:
    """KL(p ‖ q)."""
    p, _, log_p, log_q, _ = given
    gap = torch.sub(log_p, log_q, out=given.over(log_p))
    values = torch.mul(p, gap, out=given.over(gap)).sum(dim=-1)
    # -1, but 0 where the student excludes: that logit cannot be moved
    least = log_q.new_full((), _least(log_q.dtype))
    sign = torch.sub(least, log_q, out=given.over(log_q))
    sign = torch.clamp(sign, min=-1, out=given.over(sign))
    return values, torch.mul(p, sign, out=given.over(sign))


def reverse_kl(given: Probabilities) -> tuple[Tensor, Tensor]:
    """KL(q ‖ p)."""
    gap = torch.sub(given.log_q, given.log_p, out=given.over(given.log_p))
    terms = torch.mul(given.q, gap, out=given.over(gap))
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


def total_variation(given: Probabilities) -> tuple[Tensor, Tensor]:
    """Σ |p − q| / 2."""
    half = torch.mul(given.q, 0.5, out=given.over(given.log_q))
    difference = torch.sub(given.q, given.p, out=given.over(given.p))
    values = torch.abs(difference, out=given.over(given.log_p)).sum(dim=-1) / 2
    sign = torch.sign(difference, out=given.over(difference))
    return values, torch.mul(half, sign, out=given.over(half))


def ranked_l1(given: Probabilities) -> tuple[Tensor, Tensor]:
    """Σ |p − q|, both in falling order."""
    sorted_q, order = given.q.sort(dim=-1, descending=True)
    difference = sorted_q - given.p.sort(dim=-1, descending=True).values
    slope = given.q * torch.zeros_like(sorted_q).scatter(-1, order, difference.sign())
    return difference.abs().sum(dim=-1), slope


def _jensen_shannon(beta: float, given: Probabilities) -> tuple[Tensor, Tensor]:
    p, q, log_p, log_q, spare = given
    log_m = torch.log(_positive(torch.lerp(q, p, beta, out=spare), spare), out=spare)
    gap = torch.sub(log_p, log_m, out=given.over(log_p))
    values = beta * torch.mul(p, gap, out=given.over(gap)).sum(dim=-1)
    gap = torch.sub(log_q, log_m, out=given.over(log_q))
    terms = torch.mul(q, gap, out=given.over(gap))
    values = values + (1 - beta) * terms.sum(dim=-1)
    return values, torch.mul(terms, 1 - beta, out=given.over(terms))


def _skew_forward_kl(alpha: float, given: Probabilities) -> tuple[Tensor, Tensor]:
    p, q, log_p, log_q, spare = given
    mixture = torch.lerp(q, p, alpha, out=given.over(log_q))
    mixture = _positive(mixture, given.over(mixture))
    gap = torch.sub(log_p, torch.log(mixture, out=spare), out=given.over(log_p))
    values = torch.mul(p, gap, out=given.over(gap)).sum(dim=-1)
    share = torch.div(p, mixture, out=given.over(mixture))
    slope = torch.mul(q, share, out=given.over(share))
    return values, torch.mul(slope, alpha - 1, out=given.over(slope))


def _skew_reverse_kl(alpha: float, given: Probabilities) -> tuple[Tensor, Tensor]:
    p, q, log_p, log_q, spare = given
    mixture = torch.lerp(p, q, alpha, out=given.over(log_p))
    mixture = _positive(mixture, given.over(mixture))
    gap = torch.sub(log_q, torch.log(mixture, out=spare), out=given.over(log_q))
    values = torch.mul(q, gap, out=spare).sum(dim=-1)
    share = torch.div(q, mixture, out=given.over(mixture))
    gap = torch.sub(gap, share, alpha=alpha, out=given.over(gap))
    return values, torch.mul(q, gap, out=given.over(gap))


def _log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Logarithms that stay finite: an excluded class' is so small that its probability is 0."""
    scaled = logits if temperature == 1 else logits / temperature
    return torch.log_softmax(scaled, dim=-1).clamp(min=_least(logits.dtype))


def _least(dtype: torch.dtype) -> float:
    """Stands for log 0: differences of it, and their sums over 2⁴⁰ tokens, are finite."""
    return torch.finfo(dtype).min / 2**42


def _positive(probabilities: Tensor, out: Tensor | None) -> Tensor:
    return torch.clamp(probabilities, min=torch.finfo(probabilities.dtype).tiny, out=out)


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
    return blank_rows(values.flatten(), None).reshape(tokens)  # NaN is refused


def _chunk_size(logits: Tensor) -> int:
    """Of how many tokens."""
    numbers = CHUNK if logits.device.type == "cpu" else DEVICE_CHUNK
    return max(1, numbers // logits.shape[-1])


def _chunks(logits: Tensor, mask: Tensor | None) -> Iterator[Any]:
    """Places of some tokens at a time, to index tensors with; without a mask they give views."""
    size, tokens = _chunk_size(logits), logits.shape[:-1]
    if mask is not None:
        places = (torch.split(axis, size) for axis in mask.nonzero(as_tuple=True))
        return zip(*places, strict=True)
    slices = [slice(start, start + size) for start in range(0, tokens[-1], size)]
    return itertools.product(*map(range, tokens[:-1]), slices)


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
        gradient = _gradient_like(student, mask) if ctx.needs_input_grad[0] else None
        size = min(_chunk_size(student), values.numel())
        buffers = student.new_empty(5, size, student.shape[-1], dtype=dtype)
        for chunk in _chunks(student, mask):
            p, q, log_p, log_q, spare = buffers[:, : values[chunk].numel()].unbind()
            _fill(p, log_p, teacher[chunk], temperature)
            _fill(q, log_q, student[chunk], temperature)
            values[chunk], slope = divergence(Probabilities(p, q, log_p, log_q, spare))
            if gradient is not None:
                in_place = mask is None and gradient.dtype == dtype
                out = gradient[chunk] if in_place else slope
                torch.addcmul(slope, q, slope.sum(dim=-1, keepdim=True), value=-1, out=out)
                if not in_place:
                    gradient[chunk] = slope.to(gradient.dtype)
        ctx.save_for_backward(gradient)
        ctx.dtype, ctx.temperature = student.dtype, temperature
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
        torch.mul(gradient, grad.unsqueeze(-1) / ctx.temperature, out=scaled)
        return scaled, None, None, None, None


def _fill(probabilities: Tensor, logarithms: Tensor, logits: Tensor, temperature: float) -> None:
    """Write a softmax with one exponential for each number, and what `_log_probabilities` gives."""
    top = logits.amax(dim=-1, keepdim=True).to(logarithms.dtype)
    torch.sub(logits, top, out=logarithms)
    if temperature != 1:
        logarithms.div_(temperature)
    logarithms.clamp_(min=_least(logarithms.dtype))
    total = torch.exp(logarithms, out=probabilities).sum(dim=-1, keepdim=True)
    probabilities.div_(total)
    logarithms.sub_(total.log())


def _gradient_like(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Room for the gradient, 0 where masked; float16 would lose what is small before scaling."""
    dtype = torch.float32 if logits.dtype == torch.float16 else logits.dtype
    create = torch.empty_like if mask is None else torch.zeros_like
    return create(logits, dtype=dtype, memory_format=torch.contiguous_format)
