"""How good answers are: of the test set's prompts, each network's own, and how sure it is.

===================== ===========================================================================
``perplexity``        exp of the mean cross-entropy of the responses' tokens, each predicted from
                      the true ones before it
``first_token_entropy`` mean entropy of the distribution of an answer's first token, in nats: how
                      many beginnings are alive
``valid_sampled``     share of the prompts whose answer, drawn at temperature 1, the rule of the
                      data calls right
``valid_greedy``      the same of the answer made of the likeliest tokens
``distinct``          share of the prompts of which two drawn answers differ
``exact_match``       share of the prompts with a response whose likeliest answer is that response
===================== ===========================================================================

An answer that does not end is neither valid nor a match. Sums and counts are added over processes,
and a draw is a function of the sample's index, so that figures depend neither on the number of
processes nor on the size of batches.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from congener.generation import Sampling
from congener.ops.collectives import all_sum
from congener.ops.precision import upcast
from congener.types import Batch

from .answers import GREEDY, Answer, answers, matches, valid

if TYPE_CHECKING:
    from .task import LanguageModelling

__all__ = ["AnswerMetrics", "Response", "respond"]

LARGEST = 700.0  # whose exponential is finite


@dataclass(frozen=True, slots=True)
class Response:
    """What a network said about a batch.

    Attributes:
        logits: of the responses' tokens, (tokens, vocab).
        greedy: its likeliest answers, or none.
        drawn: its answers drawn at temperature 1, twice, or none.
    """

    logits: Tensor
    greedy: Sequence[Answer] = ()
    drawn: tuple[Sequence[Answer], Sequence[Answer]] = ((), ())


def respond(task: "LanguageModelling", model: nn.Module, batch: Batch) -> Response:
    """What :class:`AnswerMetrics` measures of a network."""

    def write(sampling: Sampling, seed: int = 0) -> list[Answer]:
        return answers(
            model, batch, task.vocabulary,
            sampling=sampling, max_new_tokens=task.max_new_tokens, seed=seed,
        )  # fmt: skip

    logits = task.call(model, batch)
    if not task.generates:
        return Response(logits)
    greedy = write(GREEDY)
    if task.divided.check is None:
        return Response(logits, greedy)
    return Response(logits, greedy, (write(Sampling(), 0), write(Sampling(), 1)))


class AnswerMetrics:
    """The figures of this module that a data set can give.

    Args:
        task: whose figures they are.
        device: where batches lie.
    """

    def __init__(self, task: "LanguageModelling", device: torch.device) -> None:
        self._task = task
        names = ["nats", "first_token_entropy"]
        if task.generates and task.divided.check is not None:
            names += ["valid_sampled", "valid_greedy", "distinct"]
        if task.generates and (task.divided.one_answer or task.divided.check is None):
            names.append("exact_match")
        zeros = torch.zeros(len(names), dtype=torch.float64, device=device)
        self._names, self._sums, self._counts = names, zeros, zeros.clone()

    @property
    def names(self) -> list[str]:
        """Of the figures."""
        return ["perplexity", *self._names[1:]]

    def update(self, result: Response, batch: Batch) -> None:
        """Take in what a network said about a prepared batch."""
        known = self._known(result, batch)
        for place, name in enumerate(self._names):
            values = known[name]
            self._sums[place] += values.sum(dtype=torch.float64)
            self._counts[place] += len(values)

    def _known(self, result: Response, batch: Batch) -> dict[str, Tensor]:
        """Of each figure, what it is the mean of."""
        (logits,) = upcast(result.logits)
        answered = self._task.token_mask(batch).sum(1)
        first = (answered.cumsum(0) - answered)[answered > 0]
        logs = torch.log_softmax(logits[first], dim=-1)
        known = {
            "nats": F.cross_entropy(logits, self._task.targets(batch), reduction="none"),
            "first_token_entropy": torch.special.entr(logs.exp()).sum(-1),
        }
        if "valid_greedy" in self._names:
            check, (drawn, again) = self._task.divided.check, result.drawn
            assert check is not None
            known["valid_sampled"] = _shares(valid(check, batch, drawn))
            known["valid_greedy"] = _shares(valid(check, batch, result.greedy))
            known["distinct"] = _shares([a != b for a, b in zip(drawn, again, strict=True)])
        if "exact_match" in self._names:
            found = matches(self._task.vocabulary, batch, result.greedy)
            known["exact_match"] = _shares([hit for hit in found if hit is not None])
        return known

    def compute(self) -> dict[str, float]:
        """The figures over all processes; without those of which nothing was seen."""
        sums, counts = all_sum(torch.stack((self._sums, self._counts)))
        totals = zip(self._names, sums.tolist(), counts.tolist(), strict=True)
        means = {name: total / count for name, total, count in totals if count}
        if "nats" in means:
            means = {"perplexity": math.exp(min(means.pop("nats"), LARGEST))} | means
        return means


def _shares(hits: Sequence[bool]) -> Tensor:
    return torch.tensor(hits, dtype=torch.float64)
