"""Tiny networks, prompts and settings for the tests of generation."""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from congener.generation import Sampling, Written

VOCABULARY, EOS, PAD = 14, 1, 13


def llama(seed: int = 0, *, vocabulary: int = VOCABULARY, layers: int = 1, width: int = 8,
          context: int = 64) -> nn.Module:  # fmt: skip
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=16, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=context,
        initializer_range=0.6, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).double().eval()


def gpt2(
    seed: int = 0, *, vocabulary: int = VOCABULARY, layers: int = 1, context: int = 64
) -> nn.Module:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary, n_embd=8, n_layer=layers, n_head=2, n_positions=context,
        initializer_range=0.6, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return GPT2LMHeadModel(config).double().eval()


def prompts(batch: int, longest: int, seed: int = 0, vocabulary: int = VOCABULARY
            ) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Right-padded by an id that is none, and their lengths: at least one is the longest."""
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(0, vocabulary, (batch, longest), generator=generator)
    length = torch.randint(1, longest + 1, (batch,), generator=generator)
    length[seed % batch] = longest
    return prompt.masked_fill(torch.arange(longest) >= length[:, None], -7), length


def settings(batch: int, **changed: Any) -> dict[str, Any]:
    """Arguments of the samplers for a batch."""
    given: dict[str, Any] = {
        "index": torch.arange(batch) * 7 + 3, "seed": 3, "step": 5, "max_new_tokens": 6,
        "student_sampling": Sampling(), "teacher_sampling": Sampling(0.7, 0.9), "eos": EOS,
        "pad": PAD, "stop": ((2, 3), (4, 5, 6)), "keep_logits": True,
    }  # fmt: skip
    return given | changed


def of_one(given: dict[str, Any], role: str) -> dict[str, Any]:
    """The arguments of ``generate`` among those of ``interleave``."""
    left = {"student_sampling", "teacher_sampling", "keep_logits"}
    kept = {name: value for name, value in given.items() if name not in left}
    return kept | {"sampling": given[f"{role}_sampling"]}


def row(written: Written, at: int) -> dict[str, Any]:
    """What was written in a row, without what the others needed."""
    count = int(written.length[at])
    return {
        "tokens": written.tokens[at, :count].tolist(),
        "finished": bool(written.finished[at]),
        "proposed": written.proposed[at, :count].tolist(),
    }


def same(one: Written, other: Written, atol: float = 1e-10) -> bool:
    """Whether tokens, lengths, ends and owners are identical, and kept logits equal."""
    pairs = [(getattr(one, each.name), getattr(other, each.name)) for each in fields(Written)]
    (*exact, logits, _) = pairs
    if not all(torch.equal(a, b) for a, b in exact):
        return False
    return logits[0] is None or torch.allclose(*logits, rtol=0, atol=atol)
