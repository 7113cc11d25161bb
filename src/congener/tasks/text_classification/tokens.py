"""From texts to tokens."""

from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from congener.errors import DataError, RecipeError

from .data.splits import Documents, TokenDataset

__all__ = ["tokenise"]


def tokenise(tokenizer: Any, documents: Documents, max_tokens: int, pad: int) -> TokenDataset:
    """The tokens of texts, the tokenizer's own special ones included.

    Args:
        tokenizer: one of ``transformers``.
        documents: the texts.
        max_tokens: how many a text, or both of a pair together, may have; what is beyond is cut,
            of a pair from the longer one.
        pad: the token that fills the rows.

    Raises:
        RecipeError: a tokenizer that cannot cut to so few.
        DataError: a text of which nothing is left.
    """
    second = [] if documents.second is None else [list(documents.second)]
    try:
        said = tokenizer(
            list(documents.first),
            *second,
            truncation=True,
            max_length=max_tokens,
            return_attention_mask=False,
        )
    except (ValueError, OverflowError, RuntimeError, TypeError) as error:
        raise RecipeError(
            f"The tokenizer cannot cut texts to max_tokens={max_tokens} ({error}); raise it."
        ) from error
    length = torch.tensor([len(ids) for ids in said["input_ids"]])
    if not length.all() or length.max() > max_tokens:
        place = int(length.argmin()) if not length.all() else int(length.argmax())
        raise DataError(
            f"The tokenizer makes {int(length[place])} tokens of the text "
            f"{documents.first[place][:60]!r}; expected 1 to max_tokens={max_tokens}: drop such "
            "texts, or take another max_tokens."
        )
    rows = [torch.tensor(ids, dtype=torch.int32) for ids in said["input_ids"]]
    tokens = pad_sequence(rows, batch_first=True, padding_value=pad)
    kinds = said.get("token_type_ids")
    segments = None
    if kinds is not None:
        rows = [torch.tensor(ids, dtype=torch.int8) for ids in kinds]
        segments = pad_sequence(rows, batch_first=True)
    return TokenDataset(tokens, length, documents.labels, segments, documents)
