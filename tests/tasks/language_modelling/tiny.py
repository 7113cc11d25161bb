"""Prompts and responses of unlike lengths, and networks so small that a step takes milliseconds."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from congener.tasks.language_modelling import LanguageModelling, Splits
from congener.tasks.language_modelling.data import tensors
from congener.types import Batch

VOCABULARY, EOS, PAD = 11, 9, 10
"""Tokens 0 to 8 are words."""


def texts(count: int, seed: int, unanswered: Sequence[int] = ()) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts of 1 to 4 words and responses of 0 to 3, which repeat the prompt's last word."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.full((count, 9), PAD)
    prompt = torch.randint(1, 5, (count,), generator=generator)
    words = torch.randint(0, 4, (count,), generator=generator)
    drawn = torch.randint(0, 9, (count, 4), generator=generator)
    length = torch.empty(count, dtype=torch.int64)
    for row in range(count):
        start, more = int(prompt[row]), int(words[row])
        answer = [int(drawn[row, start - 1])] * more + [EOS]
        whole = drawn[row, :start].tolist() + ([] if row in unanswered else answer)
        tokens[row, : len(whole)] = torch.tensor(whole)
        length[row] = len(whole)
    return tokens, prompt, length


def splits(unanswered: Sequence[int] = (), count: int = 24, **options: Any) -> Splits:
    train, test = texts(count, 0, unanswered), texts(12, 1)
    return tensors(
        train_tokens=train[0], train_prompt=train[1], train_length=train[2],
        test_tokens=test[0], test_prompt=test[1], test_length=test[2],
        vocabulary=VOCABULARY, eos=EOS, pad=PAD, **options,
    )  # fmt: skip


def task(unanswered: Sequence[int] = (), **options: Any) -> LanguageModelling:
    data = {name: options.pop(name) for name in ("check", "one_answer", "count") if name in options}
    return LanguageModelling(splits(unanswered, **data), **options)


def batch_of(found: LanguageModelling, rows: Sequence[int], split: str = "train") -> Batch:
    """Some samples as a prepared batch."""
    raw = found.collate(found.texts(split).__getitems__(rows))
    return found.prepare(raw, train=True, seed=0, epoch=0)


def llama(found: LanguageModelling, seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return found.build_model("llama", **({"hidden_size": 8, "layers": 1, "heads": 2} | options))
