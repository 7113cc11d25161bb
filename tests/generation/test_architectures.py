"""Networks whose layers differ from Llama's write the same in blocks, or are refused at once."""

from typing import Any

import pytest
import torch
import transformers
from tests.generation.networks import llama, prompts, same, settings
from torch import nn

from congener.generation import interleave, interleave_sequential

SIZES: dict[str, Any] = {
    "vocab_size": 14, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.6,
    "max_position_embeddings": 64, "pad_token_id": None, "bos_token_id": None,
    "eos_token_id": None,
}  # fmt: skip


def network(kind: str, **sizes: Any) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**(SIZES | sizes))
    return getattr(transformers, f"{kind}ForCausalLM")(config).double().eval()


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [("Qwen2", {}), ("Mistral", {"sliding_window": 40}), ("Gemma2", {"sliding_window": 40}),
     ("Llama", {"attn_implementation": "eager"})],
)  # fmt: skip
def test_other_architectures_write_the_same_in_blocks(kind, sizes) -> None:
    net = network(kind, **sizes)
    prompt, length = prompts(4, 6, seed=1)
    given = settings(4, max_new_tokens=9, eos=None, stop=())
    for student, teacher in ((net, llama(2)), (llama(2), net)):
        given |= {"top_k": 7}
        expected = interleave_sequential(student, teacher, prompt, length, **given)
        written = interleave(student, teacher, prompt, length, block=4, **given)
        assert same(written, expected, atol=1e-5)  # some attention computes in float32


@pytest.mark.parametrize(
    ("kind", "sizes", "match"),
    [("Mistral", {"sliding_window": 10}, "MistralForCausalLM has a sliding window of 10 tokens"),
     ("Mamba", {}, "MambaForCausalLM"),
     ("GPTNeo", {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "window_size": 9},
      "GPTNeoForCausalLM has a sliding window of 9 tokens"),
     ("Mpt", {"d_model": 16, "n_heads": 2, "n_layers": 1}, "MptForCausalLM goes by places"),
     ("Roberta", {"is_decoder": True, "pad_token_id": 1}, "RobertaForCausalLM goes by places")],
)  # fmt: skip
def test_caches_that_cannot_forget_are_refused(kind, sizes, match) -> None:
    prompt, length = prompts(4, 6)
    with pytest.raises(TypeError, match=match):
        interleave(network(kind, **sizes), llama(2), prompt, length, top_k=7, **settings(4))
