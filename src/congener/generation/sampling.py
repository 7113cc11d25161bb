"""How a token is drawn from logits, and whether a teacher lets a proposed one stand."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from congener.errors import NonFiniteLossError
from congener.ops.checks import check_positive
from congener.ops.precision import upcast

__all__ = ["Sampling", "accepted", "check_drawable", "draw", "law"]


@dataclass(frozen=True)
class Sampling:
    """The law that tokens are drawn from: temperature, then ``top_k``, then ``top_p``.

    Tokens of equal logits count in the order of their ids, in all three.

    Args:
        temperature: divides the logits; 0 takes the most probable token. Default 1 (ours).
        top_p: only the smallest set of most probable tokens counts whose probabilities add up to
            at least this. Default 1, all tokens (ours).
        top_k: only so many of the most probable tokens count. Default: all (ours).

    Raises:
        ValueError: a number out of its range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.temperature != 0:
            check_positive("temperature", self.temperature)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}; 1 keeps all tokens.")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {self.top_k}; None keeps all tokens.")


def law(logits: Float[Tensor, "rows vocab"], sampling: Sampling) -> Float[Tensor, "rows vocab"]:
    """The probabilities that ``draw`` draws with.

    Args:
        logits: raw logits of one position in each row; -inf excludes a token.
        sampling: the law.

    Returns:
        probabilities, at least float32.

    >>> import torch
    >>> logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    >>> law(logits, Sampling(top_p=0.6)).tolist()
    [[0.666..., 0.333..., 0.0]]
    """
    (logits,) = upcast(logits)
    if sampling.temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    probabilities = (logits / sampling.temperature).softmax(-1)
    if sampling.top_p == 1 and sampling.top_k is None:
        return probabilities
    falling, order = logits.sort(dim=-1, descending=True, stable=True)
    falling = (falling / sampling.temperature).softmax(-1)
    if sampling.top_k is not None:
        falling[:, sampling.top_k :] = 0
        falling /= falling.sum(-1, keepdim=True)
    if sampling.top_p < 1:
        before = falling.cumsum(-1) - falling
        falling = falling.where(before < sampling.top_p, 0)
        falling /= falling.sum(-1, keepdim=True)
    return torch.zeros_like(falling).scatter_(-1, order, falling)


def draw(
    logits: Float[Tensor, "rows vocab"], sampling: Sampling, uniform: Float[Tensor, " rows"]
) -> Int[Tensor, " rows"]:
    """The token of each row at which the cumulative law, in the order of ids, exceeds ``uniform``.

    Args:
        logits: raw logits.
        sampling: the law.
        uniform: numbers in [0, 1).

    Returns:
        ids, int64.

    Raises:
        NonFiniteLossError: logits from which nothing can be drawn.
    """
    check_drawable(logits)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    # So many numbers that float32 would add some of them in vain; Apple's devices have no other.
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    cumulative = law(logits, sampling).cumsum(-1, dtype=wide)
    target = uniform[:, None].to(wide) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


def accepted(
    teacher_logits: Float[Tensor, "*tokens vocab"], tokens: Int[Tensor, "*tokens"], top_k: int
) -> Bool[Tensor, "*tokens"]:
    """Whether tokens are among the ``top_k`` of the teacher's raw logits, equal ones by their ids.

    Args:
        teacher_logits: raw logits.
        tokens: what was proposed.
        top_k: 0 accepts nothing; the size of the vocabulary or more accepts everything.

    Returns:
        bool.

    Raises:
        NonFiniteLossError: logits that have no order.
    """
    check_drawable(teacher_logits)
    own = teacher_logits.gather(-1, tokens[..., None])
    ids = torch.arange(teacher_logits.shape[-1], device=tokens.device)
    ahead = (teacher_logits > own) | ((teacher_logits == own) & (ids < tokens[..., None]))
    return ahead.sum(-1) < top_k


def check_drawable(logits: Tensor) -> None:
    """The largest logit of every row must be finite, and none NaN; -inf excludes a token.

    Raises:
        NonFiniteLossError: it is not so.
    """
    if not logits.amax(-1).isfinite().all():
        raise NonFiniteLossError(
            "A language model gave logits that are NaN, +inf, or -inf for every token, so that no "
            "token can be drawn; look at its weights, lower train.lr, or write in float32."
        )
