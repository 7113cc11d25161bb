"""Texts mixed in a network's own embedding space, before the embeddings' normalisation (MixKD)."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from congener.errors import RecipeError
from congener.types import Batch

__all__ = ["call_mixed", "mixed_embeddings", "segments_for"]


def call_mixed(model: nn.Module, batch: Batch) -> Any:
    """Run a network on texts that are mixtures of two.

    A position's embedding is the sum of those of word, position and segment. Two texts have the
    same positions, so their mixture is that of words and segments.

    Args:
        model: an encoder of transformers or of :mod:`.models`, with a head.
        batch: as :func:`mixed_embeddings`, with ``mask`` (batch, tokens), what is attended to.

    Returns:
        What the network returns.

    Raises:
        RecipeError: a network that does not show its word embeddings.
    """
    embeddings, mask = mixed_embeddings(model, batch), batch["mask"].long()
    return model(inputs_embeds=embeddings, attention_mask=mask, **segments_for(model, batch))


def mixed_embeddings(model: nn.Module, batch: Batch) -> Float[Tensor, "batch tokens dims"]:
    """What a network is given in the place of its word embeddings.

    The network adds the segment embeddings of the first text itself, so what those of the mixture
    differ by is added here. Rows of share 1 are the first text's, bit for bit.

    Args:
        model: as :func:`call_mixed`.
        batch: with ``tokens`` and ``other_tokens`` (batch, tokens), perhaps ``segments`` and
            ``other_segments`` likewise, and ``share`` (batch,), how much is of the first.
    """
    words = _word_table(model)
    own: Tensor = words(batch["tokens"])
    share = batch["share"].to(own.dtype)[:, None, None]
    mixed = torch.lerp(words(batch["other_tokens"]), own, share)
    table = _segment_table(model)
    if table is None or "segments" not in batch:
        return mixed
    mine, theirs = (table(_within(table, batch[k])) for k in ("segments", "other_segments"))
    summed: Tensor = mixed + (1 - share) * (theirs - mine)
    return summed


def segments_for(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """What tells a network which text of a pair each token belongs to, where it can be told.

    It can where it has embeddings of segments; GPT-2 and its like would read segments as words.
    """
    table = _segment_table(model)
    if table is None or "segments" not in batch:
        return {}
    return {"token_type_ids": _within(table, batch["segments"])}


def _word_table(model: nn.Module) -> nn.Module:
    """Its embeddings of words."""
    try:
        found = getattr(model, "get_input_embeddings", lambda: None)()
    except NotImplementedError:  # what transformers' networks say that have none
        found = None
    if not isinstance(found, nn.Module):
        raise RecipeError(
            f"Mixing texts needs the word embeddings of a network, and {type(model).__name__} has "
            "no get_input_embeddings() that gives them; take a network of transformers or of this "
            "task's models."
        )
    return found


def _segment_table(model: nn.Module) -> nn.Embedding | None:
    """Its embeddings of segments, by the name that transformers has for them; None without."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "token_type_embeddings" and isinstance(module, nn.Embedding):
            return module
    return None


def _within(table: nn.Embedding, segments: Tensor) -> Tensor:
    """Segments that the table tells apart: some encoders have one for all."""
    return segments.clamp(max=table.num_embeddings - 1)
