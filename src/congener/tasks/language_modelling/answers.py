"""What networks write: their answers to prompts, drawn as functions of the prompt alone."""

from collections.abc import Sequence

import torch
from torch import nn

from congener.generation import Sampling, generate
from congener.types import Batch

from .data.splits import IGNORE, Check, Vocabulary

__all__ = ["GREEDY", "Answer", "answers", "matches", "prompts_of", "valid"]

GREEDY = Sampling(temperature=0.0)
Answer = list[int] | None
"""The tokens of an answer without its end; ``None``: it did not end."""


def prompts_of(batch: Batch) -> list[list[int]]:
    """The tokens of each prompt of a batch."""
    rows = zip(batch["tokens"].tolist(), batch["prompt"].tolist(), strict=True)
    return [tokens[:length] for tokens, length in rows]


def answers(
    model: nn.Module,
    batch: Batch,
    vocabulary: Vocabulary,
    *,
    sampling: Sampling,
    max_new_tokens: int,
    seed: int = 0,
) -> list[Answer]:
    """What a network answers to each prompt of a batch.

    A draw is a function of (seed, index of the sample, position), so that neither the batch nor
    the number of processes changes what is measured.

    Args:
        model: the network, in evaluation mode.
        batch: a prepared batch.
        vocabulary: what its tokens are.
        sampling: how tokens are drawn.
        max_new_tokens: an answer that has not ended by then, does not.
        seed: of the draws.
    """
    lengths = batch["prompt"]
    longest = int(lengths.max())
    inside = torch.arange(longest, device=lengths.device) < lengths[:, None]
    written = generate(
        model,
        batch["tokens"][:, :longest].where(inside, vocabulary.pad),
        lengths,
        index=batch["index"],
        seed=seed,
        step=0,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        eos=vocabulary.eos,
        pad=vocabulary.pad,
        vocabulary=vocabulary.size,
    )
    rows = zip(
        written.tokens.tolist(), written.length.tolist(), written.finished.tolist(), strict=True
    )
    return [tokens[: length - 1] if finished else None for tokens, length, finished in rows]


def valid(check: Check, batch: Batch, given: Sequence[Answer]) -> list[bool]:
    """Whether a rule calls the answers to a batch's prompts right; what does not end is not."""
    pairs = zip(prompts_of(batch), given, strict=True)
    return [answer is not None and check(prompt, answer) for prompt, answer in pairs]


def matches(vocabulary: Vocabulary, batch: Batch, given: Sequence[Answer]) -> list[bool | None]:
    """Whether answers are the responses of a batch; ``None`` where there is no response."""
    responses = [row[row != IGNORE].tolist() for row in batch["labels"]]
    return [
        (answer is not None and [*answer, vocabulary.eos] == response) if response else None
        for response, answer in zip(responses, given, strict=True)
    ]
