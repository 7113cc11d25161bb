"""Logits of some tokens only: the others are left out before the head, which is most of the work.

A network's last layer makes a row as wide as the vocabulary of every token that reaches it. Of a
prompt none is needed, and of padding none, so a hook lets only the rows through that are asked for.
"""

from typing import Any

import torch
from torch import Tensor, nn

from congener.errors import DataError
from congener.taps import bare

__all__ = ["selected_logits"]


def selected_logits(model: nn.Module, tokens: Tensor, mask: Tensor, chosen: Tensor) -> Tensor:
    """The logits of the chosen tokens, (chosen tokens, vocab), row after row.

    Where the head cannot be found, or the network runs compiled, so that its code holds its hooks,
    all logits are made and then chosen: the same numbers at a higher price.

    Args:
        model: a causal language model, called as those of ``transformers``.
        tokens: (batch, tokens), padded on the right.
        mask: which are no padding, (batch, tokens).
        chosen: whose logits are asked for, (batch, tokens).
    """
    arguments: dict[str, Any] = {"input_ids": tokens, "attention_mask": mask}
    if hasattr(bare(model), "config"):
        arguments["use_cache"] = False

    def keep(_head: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        fits = given[0].shape[:2] == chosen.shape
        return (given[0][chosen], *given[1:]) if fits else given

    head = None if _is_compiled(model) else _head(bare(model))
    handle = None if head is None else head.register_forward_pre_hook(keep)
    try:
        logits = _logits(model(**arguments))
    finally:
        if handle is not None:
            handle.remove()
    return logits if logits.ndim == 2 else logits[chosen]


def _logits(result: object) -> Tensor:
    """The logits within what a language model returned.

    Raises:
        DataError: there are none.
    """
    logits = result if isinstance(result, Tensor) else getattr(result, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim not in (2, 3):
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(result).__name__
        raise DataError(
            f"The network returned {came}; expected logits (batch, tokens, vocab), as a tensor or "
            "as a record with the attribute 'logits', as causal language models of transformers do."
        )
    return logits


def _head(model: nn.Module) -> nn.Module | None:
    find = getattr(model, "get_output_embeddings", None)
    head = None if find is None else find()
    return head if isinstance(head, nn.Module) else None


def _is_compiled(model: nn.Module) -> bool:
    compiled = (isinstance(m, torch._dynamo.OptimizedModule) for m in model.modules())
    return any(compiled) or any(m._compiled_call_impl is not None for m in model.modules())
