"""Mixed texts: pairs of a batch and how much of each, by numbers keyed by step and sample ids."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from congener.errors import RecipeError
from congener.ops.checks import check_choice, check_positive
from congener.ops.collectives import Scope, gather_once, own_place, rank_sizes
from congener.ops.keyed_random import keyed_uniform
from congener.systems.probe import first_sample, probe
from congener.task import Task
from congener.types import Batch

__all__ = ["Mixing", "check_texts", "classes_of", "symmetric_beta"]

SAME = 1e-3  # the largest difference, in largest logits, of what is the same; ours
PAIRED = ("tokens", "segments", "mask", "labels")  # what a mixture has of both its texts


@dataclass(frozen=True, slots=True)
class Mixing:
    """How pairs of texts are mixed.

    Args:
        concentration: a > 0 of λ ~ Beta(a, a): small ones leave one text nearly alone, 1 makes all
            shares as likely, large ones make them equal; ours: 0.4, as in mixup's image runs.
        per: draw one λ for the ``"batch"``, or one for each ``"example"``; ours.
        mask: attend to the tokens of either text, their ``"union"``, or of the one with the
            ``"major"`` share; ours.

    Raises:
        ValueError: a ≤ 0, an unknown word.
    """

    concentration: float = 0.4
    per: Literal["batch", "example"] = "batch"
    mask: Literal["union", "major"] = "union"

    def __post_init__(self) -> None:
        check_positive("concentration", self.concentration)
        check_choice("per", self.per, ("batch", "example"))
        check_choice("mask", self.mask, ("union", "major"))

    def __call__(self, batch: Batch, *, step: int, pad: int = 0, scope: Scope = "global") -> Batch:
        """A batch with, behind its texts, a mixture of each with another one.

        The labelled texts of the batch form a circle, in an order that their ids and the step
        decide, and the others another; each text is mixed with the next of its circle, so that as
        many mixtures as can be have a label. They are circles of the batch of all processes, so the
        mixtures are the same however many there are, and no generator is drawn from.

        Args:
            batch: with ``tokens`` (batch, tokens), ``mask`` likewise, ``labels`` and ``index``
                (batch,), and perhaps ``segments`` as ``tokens``.
            step: of training.
            pad: the id of the token that fills texts up.
            scope: whose texts make the circles.

        Returns:
            The batch with twice the rows: those it had, then a mixture for each, whose ``mask`` is
            that of the rule. ``other_tokens``, ``other_segments``, ``other_labels``: of the partner
            (of itself for the first half); ``share``: λ (1 there); ``mixed``: a list of booleans.
        """
        count, sizes = len(batch["index"]), rank_sizes(batch["index"], scope=scope)
        own = {key: batch[key] for key in PAIRED if key in batch}
        if sizes is not None:
            width = max(rank_sizes(batch["tokens"].T) or ())
            fills = {"tokens": pad, "segments": 0, "mask": False}
            own |= {key: _filled(own[key], width, fills[key]) for key in fills if key in own}
        place = slice(None) if sizes is None else own_place(sizes)
        told = own | {"index": batch["index"]}
        everyone = {key: gather_once(value, sizes) for key, value in told.items()}
        partner, share = (x[place] for x in self._drawn(everyone, step))
        other = {key: everyone[key][partner] for key in own}

        seen = {key: _twice(value, count) for key, value in (batch | own).items()}
        mask = own["mask"] | other["mask"]
        if self.mask == "major":
            mask = torch.where((share >= 0.5).unsqueeze(1), own["mask"], other["mask"])
        seen["mask"] = torch.cat((own["mask"], mask))
        if "length" in batch:
            seen["length"] = torch.cat((batch["length"], mask.sum(1).to(batch["length"])))
        for key, value in own.items():
            if key != "mask":
                seen[f"other_{key}"] = torch.cat((value, other[key]))
        seen["share"] = torch.cat((torch.ones_like(share), share))
        seen["mixed"] = [False] * count + [True] * count
        return seen

    def _drawn(self, everyone: Batch, step: int) -> tuple[Tensor, Tensor]:
        """For each text of all processes, the row of its partner, and λ in float32."""
        draws = keyed_uniform(everyone["index"], seed=0, epoch=step, count=3)
        circle = draws[:, 0].argsort(stable=True)
        partner = torch.empty_like(circle)
        labels = everyone["labels"][circle]
        known = ~labels.isnan() if labels.is_floating_point() else labels >= 0
        for part in (circle[known], circle[~known]):
            partner[part] = part.roll(-1)
        share = symmetric_beta(draws[:, 1:], self.concentration).float()
        if self.per == "batch":
            share = share[circle[:1]].expand(len(share))
        return partner, share


def symmetric_beta(
    uniforms: Float[Tensor, "samples 2"], concentration: float
) -> Float[Tensor, " samples"]:
    r"""Beta(a, a) numbers from two uniform ones each, exact for any a > 0.

    If t has Student's distribution with 2a degrees of freedom, (1 + t/√(2a + t²))/2 is Beta(a, a)
    (Devroye, Non-Uniform Random Variate Generation, 1986); t comes of the polar method (Bailey,
    Mathematics of Computation 62, 1994): t² = 2a (u^{−1/a} − 1) cos²(2πv).

    Args:
        uniforms: 1 − u and v, in [0, 1), so that u is never 0.
        concentration: a.

    Returns:
        float64, in [0, 1].

    >>> symmetric_beta(torch.tensor([[0.75, 0.125]]), 1.0).item()  # (1 + √(3/5)) / 2
    0.8872983346207417
    """
    rest, v = uniforms.double().unbind(1)
    power, side = (1 - rest).pow(1 / concentration), (2 * math.pi * v).cos()
    ratio = side * ((1 - power) / (power + (1 - power) * side.square())).sqrt()
    return ((1 + ratio) / 2).clamp(0, 1)


def check_texts(batch: Batch) -> None:
    """Refuse batches that hold no texts to mix.

    Raises:
        RecipeError: no token ids, no mask of them, or labels that are not one for each text.
    """
    tokens, mask, labels = (batch.get(key) for key in ("tokens", "mask", "labels"))
    whole = isinstance(tokens, Tensor) and tokens.dim() == 2 and not tokens.is_floating_point()
    if not whole or not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        found = ", ".join(repr(key) for key in batch)
        raise RecipeError(
            "The system 'mixkd' mixes the words of texts: batches must hold 'tokens', ids "
            f"(batch, tokens), and 'mask', as many booleans; these have {found}. For images there "
            "is the system 'stkd'."
        )
    if not isinstance(labels, Tensor) or labels.dim() != 1:
        found = "none" if not isinstance(labels, Tensor) else f"{tuple(labels.shape)}"
        raise RecipeError(
            "The system 'mixkd' mixes labels, one class or number for each text, (batch,); these "
            f"batches have {found}."
        )


def classes_of(network: nn.Module, role: str, task: Task, mixing: Mixing) -> int:
    """How many logits a network gives, after a trial with a text that has padding.

    Raises:
        RecipeError: given embeddings, it says otherwise than given the words that they are of.
    """
    sample = first_sample(task)
    if sample["tokens"].shape[1] > 1:  # the last token as padding
        sample |= {"tokens": sample["tokens"].clone(), "mask": sample["mask"].clone()}
        sample["tokens"][:, -1], sample["mask"][:, -1] = getattr(task, "pad", 0), False
    plain = probe(network, task, batch=sample).logits
    try:
        mixed = probe(network, task, batch=mixing(sample, step=0, scope="local")).logits
    except (TypeError, RuntimeError, ValueError) as error:
        raise RecipeError(
            f"The {role} cannot be given mixtures, which are embeddings "
            f"({str(error).splitlines()[0]}); take an encoder such as BERT."
        ) from error
    if (plain - mixed[:1]).abs().max() > SAME * plain.abs().max():
        raise RecipeError(
            f"Mixtures are embeddings, and the {role} answers otherwise to the embeddings of a "
            "padded text than to its words, as networks do that look for the last word; take an "
            "encoder such as BERT."
        )
    return plain.shape[-1]


def _filled(x: Tensor, width: int, fill: float) -> Tensor:
    """With so many columns."""
    return F.pad(x, (0, width - x.shape[1]), value=fill)


def _twice(value: Any, count: int) -> Any:
    """An entry of a batch with its rows twice, if it has a row for each sample."""
    if isinstance(value, Tensor):
        return torch.cat((value, value)) if value.dim() and len(value) == count else value
    rows = isinstance(value, list | tuple) and len(value) == count
    return value + value if rows else value
