"""How one tensor of a teacher's answers is kept, and what keeping it costs.

Exact are ``fp32``, and any format that holds the teacher's own (``bf16`` of a teacher that answers
in bfloat16). Otherwise logits are kept less the largest of their row, which stands beside them, so
that rounding is finest where the probabilities are largest; features are rounded as they are.

With ``top_k`` the ``k`` largest logits are kept, and one logit that all others share: the one that
gives them, at ``temperature``, the probability that they have together. The probabilities of the
``k`` are then what they were; nothing is normalised anew. What is lost is how the others differ,
so the gradient has a bias. With ``sampled`` the others are not alike: so many are drawn from them,
each stands for its share of the probability that they have together, and what is not drawn has
none. That has no bias where a loss' gradient is linear in the teacher's probabilities, as that of
KL(teacher ‖ student) is; the price is noise. Without ``top_k`` all is drawn.

Error of KD's gradient, relative in the Euclidean norm, on 1000 Gaussian logits of deviation 3 with
a student at half of them plus noise of deviation 1 (a test measures it):

===================  =============  =============
kept                 temperature 1  temperature 4
===================  =============  =============
``fp16``             2e-4           7e-4
``bf16``             1e-3           6e-3
top 64               0.02           0.9
top 64, made to sum
to 1 (not ours)      0.1            6
===================  =============  =============
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from congener.errors import DataError, RecipeError
from congener.ops.keyed_random import keyed_uniform

__all__ = ["Field", "Part"]

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
KINDS = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int16: "I16", torch.int32: "I32",
}  # fmt: skip
SHORT = 1 << 15  # classes that an int16 can number
PIECE = 1 << 22  # logits that are packed at a time; ours
HALF = 2.0**-25  # of the step between the numbers that draw, so that none of them is 0
SEED = 2027  # of what is drawn; ours


class Part(NamedTuple):
    """A tensor in a file: its name, its format and its shape for one sample."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of one sample."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def kind(self) -> str:
        """The format as safetensors calls it."""
        return KINDS[self.dtype]


@dataclass(frozen=True)
class Field:
    """One tensor of each sample, or of each token that a sample's logits answer for.

    Args:
        name: ``"logits"``, or the path of a tap.
        shape: of one row: a sample, or a token.
        returns: the format that the teacher answers in, such as ``"float32"``.
        dtype: the format that is kept.
        top_k: keep the largest logits alone, so many, and what the others weigh together.
        temperature: at which the others keep their weight.
        places: how many rows the longest sample has; default: each sample is one row.
        sampled: draw so many of the logits beyond ``top_k`` instead of having them all alike.

    Raises:
        RecipeError: ``top_k`` or ``sampled`` of something else than logits, or of no fewer classes,
            or a temperature that is not positive.
    """

    name: str
    shape: tuple[int, ...]
    returns: str
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    top_k: int | None = None
    temperature: float = 1.0
    places: int | None = None
    sampled: int | None = None

    def __post_init__(self) -> None:
        if not self.partial:
            return
        if not 0 < self.temperature < math.inf:
            raise RecipeError(f"temperature must be positive and finite, not {self.temperature}.")
        classes = self.shape[-1] if self.name == "logits" and self.shape else 0
        if self.sampled is not None and (not classes or self.sampled < 1 or len(self.shape) != 1):
            raise RecipeError(
                f"sampled draws one token or more from a row of logits, not {self.sampled} from "
                f"{self.name!r} {list(self.shape)}; leave it out."
            )
        if self.top_k is None:
            return
        if not 1 <= self.top_k < classes:
            raise RecipeError(
                f"top_k keeps 1 to {classes - 1} of {classes} logits, not {self.top_k}; lower it, "
                "or leave it out."
                if classes
                else f"top_k is for logits, not for {self.name!r}; leave it out."
            )

    def __str__(self) -> str:
        tokens = "" if self.places is None else f" of up to {self.places} tokens"
        chosen = [] if self.top_k is None else [f"top {self.top_k}"]
        if self.sampled is not None:
            chosen.append(f"{self.sampled} drawn of the rest")
        words = f", {' and '.join(chosen)} at {self.temperature:g}" if chosen else ""
        return f"{self.returns} {list(self.shape)}{tokens} kept as {self.dtype}{words}"

    @property
    def partial(self) -> bool:
        """Whether some of the logits are kept, not all."""
        return self.top_k is not None or self.sampled is not None

    @cached_property
    def exact(self) -> bool:
        """Whether what is read is what was written, bit for bit."""
        kept = DTYPES[self.dtype]
        return not self.partial and torch.promote_types(kept, self._returns) == kept

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """What a file holds of it."""
        kept, outer = DTYPES[self.dtype], () if self.places is None else (self.places,)
        if not self._packed:
            return (Part(self.name, kept, (*outer, *self.shape)),)
        outer, classes = (*outer, *self.shape[:-1]), self.shape[-1]
        if not self.partial:
            return (Part(self.name, kept, (*outer, classes + 1)),)
        number = torch.int16 if classes <= SHORT else torch.int32
        return (
            Part(self.name, kept, (*outer, self._largest + 2)),
            Part(f"{self.name} indices", number, (*outer, self._largest + (self.sampled or 0))),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of one sample."""
        return sum(part.nbytes for part in self.parts)

    def encode(self, value: Tensor, draws: Tensor | None = None) -> dict[str, Tensor]:
        """The parts of some rows, by name.

        Args:
            value: the rows, (rows, …).
            draws: what :meth:`draws` gave for them.

        Raises:
            DataError: a value beyond what the format can hold.
        """
        kept = DTYPES[self.dtype]
        if self.exact:
            return {self.name: value.to(kept)}
        if not self._packed:
            return {self.name: self._checked(value.to(kept), value)}
        rows = max(1, PIECE // math.prod(self.shape))
        numbers = [draws] if draws is None else torch.split(draws, rows)
        pieces = [
            self._pack(piece, numbers[0 if draws is None else k])
            for k, piece in enumerate(torch.split(value, rows))
        ]
        return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        """What the teacher said of some rows, in the format that it answered in.

        What was drawn comes as float32.
        """
        kept = parts[self.name]
        if not self._packed:
            return kept.to(self._returns)
        values = kept.float()  # before the sum, so that its rounding is float32's
        shown, centre = values[..., :-1], values[..., -1:]
        if self.partial:
            shown = self._unpack(shown, parts[self.parts[1].name].long())
        return (shown + centre).to(torch.float32 if self.sampled else self._returns)

    def draws(self, ids: Tensor, view: int, counts: Tensor | None = None) -> Tensor | None:
        """The number in [0, 1) by which each row draws, (rows,); ``None`` where nothing is drawn.

        It is a function of sample, view and place within the sample alone.

        Args:
            ids: sample ids, (batch,).
            view: the number of the view.
            counts: how many rows each sample has, (batch,), where it has ``places``.
        """
        if self.sampled is None:
            return None
        found = keyed_uniform(ids, seed=SEED, epoch=view, count=self.places or 1)
        return found[:, 0] if counts is None else found[self._taken(counts)]

    def spread(self, parts: Mapping[str, Tensor], counts: Tensor) -> dict[str, Tensor]:
        """The parts of rows as a file has them: those of a sample together, then zeros."""
        taken, found = self._taken(counts), {}
        for part in self.parts:
            room = parts[part.name].new_zeros(len(counts), *part.shape)
            room[taken] = parts[part.name]
            found[part.name] = room
        return found

    def gathered(self, parts: Mapping[str, Tensor], counts: Tensor) -> dict[str, Tensor]:
        """What :meth:`spread` was given."""
        taken = self._taken(counts)
        return {part.name: parts[part.name][taken] for part in self.parts}

    def _taken(self, counts: Tensor) -> Tensor:
        """Which of a sample's places hold a row, (batch, places)."""
        assert self.places is not None
        return torch.arange(self.places, device=counts.device) < counts[:, None]

    def _pack(self, value: Tensor, draws: Tensor | None) -> dict[str, Tensor]:
        """Logits less the largest of their row, all or some, with it behind them."""
        kept, logits, parts = DTYPES[self.dtype], value.float(), {}
        centre = logits.amax(-1, keepdim=True).to(kept).float()
        shown = logits - centre
        if self.partial:
            shown, indices = self._choose(shown, draws)
            parts[self.parts[1].name] = indices.to(self.parts[1].dtype)
        shown = torch.cat([shown, centre], dim=-1)
        # What the teacher excludes, -inf, stays excluded.
        found = self._checked(shown.to(kept), value, excluded=shown == -math.inf)
        return parts | {self.name: found}

    def _choose(self, logits: Tensor, draws: Tensor | None) -> tuple[Tensor, Tensor]:
        """The largest logits, with a number for the others, and the places of all that is kept."""
        top, indices = logits.topk(self._largest, dim=-1)
        others = logits.scatter(-1, indices, -math.inf) / self.temperature
        weight = others.logsumexp(-1, keepdim=True)
        if self.sampled is None:
            weight = weight - math.log(logits.shape[-1] - self._largest)
        else:
            assert draws is not None
            indices = torch.cat([indices, _drawn(others, self.sampled, draws)], dim=-1)
        return torch.cat([top, weight * self.temperature], dim=-1), indices

    def _unpack(self, shown: Tensor, indices: Tensor) -> Tensor:
        """All logits, of those that were chosen."""
        top, fill = shown[..., :-1], shown[..., -1:]
        places, drawn = indices[..., : self._largest], indices[..., self._largest :]
        whole = fill.expand(*fill.shape[:-1], self.shape[-1])
        if self.sampled is not None:
            once = torch.ones((), dtype=fill.dtype, device=fill.device).expand(drawn.shape)
            share = torch.zeros_like(whole).scatter_add(-1, drawn, once) / self.sampled
            whole = whole + self.temperature * share.log()
        return whole.scatter(-1, places, top)

    def _checked(self, found: Tensor, value: Tensor, excluded: Tensor | None = None) -> Tensor:
        finite = found.isfinite() if excluded is None else found.isfinite() | excluded
        if not finite.all():
            raise DataError(
                f"The teacher's {self.name} reach {value.abs().max():.3g}, which {self.dtype} "
                "cannot hold; keep them as bf16 or fp32."
            )
        return found

    @property
    def _largest(self) -> int:
        return self.top_k or 0

    @cached_property
    def _packed(self) -> bool:
        return self.name == "logits" and not self.exact

    @cached_property
    def _returns(self) -> torch.dtype:
        found = getattr(torch, self.returns)
        assert isinstance(found, torch.dtype)
        return found


def _drawn(logits: Tensor, count: int, draws: Tensor) -> Tensor:
    """Words drawn from the softmax of each row, (rows, count), in rising order.

    The k-th is where the cumulative probability passes (k + number) / count: each word is drawn
    ``count`` times its probability on average, as if all were drawn apart, with less noise.
    """
    total = logits.double().softmax(-1).cumsum(-1)
    steps = torch.arange(count, device=logits.device, dtype=torch.float64)
    shift = draws.double()[:, None] + HALF
    marks = (steps + shift) / count * total[:, -1:]
    found = torch.searchsorted(total, marks, right=True)
    return found.clamp(max=logits.shape[-1] - 1)  # any, where all are excluded
