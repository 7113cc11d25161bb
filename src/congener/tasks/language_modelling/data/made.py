"""Data that needs no file: puzzles of digits whose answers a rule can judge."""

from collections.abc import Sequence
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from congener.errors import DataError
from congener.tasks.parts import PartsOptions

from .splits import Check, Splits, TextDataset, Vocabulary, divide

__all__ = ["SYMBOLS", "addition", "shuffle", "sort"]

SYMBOLS = (*"0123456789", "+", "=", "<end>", "<pad>")
PLUS, EQUALS, END, PAD = range(10, 14)


def shuffle(
    *,
    digits: int = 8,
    samples: int = 20_000,
    test: int = 1000,
    seed: int = 0,
    **parts: Unpack[PartsOptions],
) -> Splits:
    """Digits in another order: any is right, so how often an answer is valid is exactly known.

    A prompt is ``digits`` random digits and ``=``; its response one of their orders, drawn
    uniformly, and the end. Prompts occur once: teacher, student and test have different ones.

    Args:
        digits: of a prompt.
        samples: of the training set.
        test: of the test set.
        seed: of what is drawn.
        **parts: teacher, pool, labelled, holdout; see :func:`.divide_positions`.
    """
    prompts, generator = _prompts(digits, samples, test, seed)
    order = torch.rand(prompts.shape, generator=generator).argsort(1)
    return _puzzle("shuffle", prompts, prompts.gather(1, order), samples, _is_order, parts)


def sort(
    *,
    digits: int = 8,
    samples: int = 20_000,
    test: int = 1000,
    seed: int = 0,
    **parts: Unpack[PartsOptions],
) -> Splits:
    """Digits in rising order; arguments are those of :func:`shuffle`."""
    prompts, _ = _prompts(digits, samples, test, seed)
    return _puzzle("sort", prompts, prompts.sort(1).values, samples, None, parts)


def addition(
    *,
    digits: int = 3,
    samples: int = 20_000,
    test: int = 1000,
    seed: int = 0,
    **parts: Unpack[PartsOptions],
) -> Splits:
    """Two numbers of ``digits`` digits each, and their sum, the least significant digit first.

    Arguments are those of :func:`shuffle`; the sum has one digit more than the numbers.
    """
    drawn, _ = _prompts(2 * digits, samples, test, seed)
    places = 10 ** torch.arange(digits - 1, -1, -1)
    sums = (drawn.view(-1, 2, digits) * places).sum((1, 2))
    answers = sums[:, None] // 10 ** torch.arange(digits + 1) % 10
    plus = torch.full((len(drawn), 1), PLUS)
    prompts = torch.cat([drawn[:, :digits], plus, drawn[:, digits:]], 1)
    return _puzzle("addition", prompts, answers, samples, None, parts)


def _prompts(digits: int, samples: int, test: int, seed: int) -> tuple[Tensor, torch.Generator]:
    """Different numbers as their digits, those of training first."""
    if min(digits, samples, test) < 1 or digits > 18:
        raise DataError(
            f"digits={digits}, samples={samples} and test={test}: expected 1 or more of each, and "
            "at most 18 digits."
        )
    count, possible = samples + test, 10**digits
    if 2 * count > possible:
        raise DataError(
            f"{digits} digits make {possible} prompts, too few for samples={samples} + "
            f"test={test}, of which each occurs once; lower them to half as many, or take more "
            "digits."
        )
    generator = torch.Generator().manual_seed(seed)
    # Of 2.5 times as many draws from at least 2 * count numbers, more than count are different.
    drawn = torch.randint(possible, (count * 5 // 2 + 100,), generator=generator).numpy()
    first = np.sort(np.unique(drawn, return_index=True)[1])[:count]
    numbers = torch.from_numpy(drawn[first])
    return numbers[:, None] // 10 ** torch.arange(digits - 1, -1, -1) % 10, generator


def _puzzle(
    what: str,
    prompts: Tensor,
    answers: Tensor,
    samples: int,
    check: Check | None,
    parts: PartsOptions,
) -> Splits:
    """Prompts with their answers, all of one length."""
    equals, end = (torch.full((len(prompts), 1), symbol) for symbol in (EQUALS, END))
    tokens = torch.cat([prompts, equals, answers, end], 1).int()
    prompt = torch.full((len(tokens),), prompts.shape[1] + 1)
    length = torch.full((len(tokens),), tokens.shape[1])
    texts = TextDataset(tokens, prompt, length)
    return divide(
        what,
        texts.part(slice(samples)),
        texts.part(slice(samples, None)),
        Vocabulary(len(SYMBOLS), END, PAD, _decode, f"the vocabulary of {what}"),
        check=check,
        one_answer=check is None,
        **parts,
    )


def _is_order(prompt: Sequence[int], response: Sequence[int]) -> bool:
    return sorted(prompt[:-1]) == sorted(response)


def _decode(tokens: Sequence[int]) -> str:
    return "".join(SYMBOLS[token] for token in tokens)
