"""Interleaved sampling in blocks against token by token; own texts against generate and score.

python benchmarks/bench_generation.py [words]

A teacher of 135 million weights and a student of 19. They are random, with a flat law, and so is
the rank of a student's token among the teacher's: ``top_k`` is the acceptance times the vocabulary.
What is compared gives the same tokens, but for ``generate``, which draws with numbers of its own.
A single row is three texts, one after another: of one alone, luck decides how much is accepted.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from harness import Comparison, main
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, LlamaConfig, LlamaForCausalLM

from congener.generation import Sampling, accepted, draw, interleave, interleave_sequential
from congener.ops.keyed_random import keyed_uniform

VOCABULARY, PROMPT, NEW = 49152, 16, 64
TEXTS = 3
PLAIN = Sampling()


class Given(NamedTuple):
    student: nn.Module
    teacher: nn.Module
    prompt: Tensor
    index: Tensor
    top_k: int


Sampler = Callable[[Given], list[Tensor]]


def network(width: int, layers: int, heads: int, groups: int, inner: int) -> nn.Module:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=groups,
        tie_word_embeddings=True, max_position_embeddings=256, bos_token_id=None,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def given(acceptance: float, rows: int) -> Given:
    torch.manual_seed(0)
    student, teacher = network(256, 8, 4, 4, 768), network(576, 30, 9, 3, 1536)
    texts = TEXTS if rows == 1 else rows
    prompt = torch.randint(1, VOCABULARY, (texts, PROMPT))
    return Given(student, teacher, prompt, torch.arange(texts), round(acceptance * VOCABULARY))


def alone(sampler: Sampler, given: Given) -> list[Tensor]:
    """Its texts one after another."""
    found = [
        sampler(given._replace(prompt=prompt[None], index=index[None]))
        for prompt, index in zip(given.prompt, given.index, strict=True)
    ]
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def with_block(block: Any, given: Given, sampler: Any = interleave) -> list[Tensor]:
    rows = len(given.prompt)
    written = sampler(
        given.student, given.teacher, given.prompt, torch.full((rows,), PROMPT),
        index=given.index, seed=0, step=0, top_k=given.top_k, student_sampling=PLAIN,
        teacher_sampling=PLAIN, max_new_tokens=NEW, eos=None, pad=0, block=block,
        keep_logits=True,
    )  # fmt: skip
    return [written.tokens, written.logits.view(rows, NEW, VOCABULARY)]


@torch.no_grad()
def token_by_token(given: Given) -> list[Tensor]:
    """Both networks read each token, with caches."""
    rows = len(given.prompt)
    uniform = keyed_uniform(given.index, seed=0, epoch=0, count=2 * NEW).view(rows, NEW, 2)
    caches = [DynamicCache(config=model.config) for model in given[:2]]
    fresh, tokens, kept = given.prompt, [], []
    for place in range(NEW):
        student_logits, teacher_logits = (
            model(input_ids=fresh, past_key_values=cache, logits_to_keep=1).logits[:, -1]
            for model, cache in zip(given[:2], caches, strict=True)
        )
        proposal = draw(student_logits, PLAIN, uniform[:, place, 0])
        stands = accepted(teacher_logits, proposal, given.top_k)
        replacement = draw(teacher_logits, PLAIN, uniform[:, place, 1])
        fresh = proposal.where(stands, replacement)[:, None]
        tokens.append(fresh)
        kept.append(teacher_logits)
    return [torch.cat(tokens, dim=1), torch.stack(kept, dim=1)]


SETTINGS: dict[str, Any] = {
    "do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "max_new_tokens": NEW,
}  # fmt: skip


def scored(given: Given, text: Tensor) -> list[Tensor]:
    """The teacher's logits of a student's text; nothing to compare, since draws are others."""
    logits = given.teacher(input_ids=text).logits[:, PROMPT - 1 : -1]
    return [text[:, PROMPT:] * 0, logits[:0]]


@torch.no_grad()
def generate_and_score(given: Given) -> list[Tensor]:
    """The student's texts by transformers' ``generate``, then the teacher's logits of them."""
    torch.manual_seed(0)
    mask = torch.ones_like(given.prompt)
    return scored(given, given.student.generate(given.prompt, attention_mask=mask, **SETTINGS))


@torch.no_grad()
def trl(given: Given) -> list[Tensor]:
    """The same with the texts of TRL's GKDTrainer."""
    from trl.experimental.gkd import GKDTrainer

    torch.manual_seed(0)
    prompts = {"prompts": given.prompt, "prompt_attention_mask": torch.ones_like(given.prompt)}
    settings = GenerationConfig(**SETTINGS, pad_token_id=0)
    text = GKDTrainer.generate_on_policy_outputs(given.student, prompts, settings)[0]
    return scored(given, text)


def of_own_texts(given: Given) -> list[Tensor]:
    tokens, logits = with_block("adaptive", given)
    return [tokens * 0, logits[:0]]


def by(sampler: Sampler, rows: int) -> Sampler:
    return partial(alone, sampler) if rows == 1 else sampler


def rows_of(count: int) -> str:
    return "one row" if count == 1 else f"{count} rows"


GOALS = {(0.3, 1): 1.05, (0.7, 1): 1.05, (0.9, 1): 0.5, (0.97, 1): 1 / 2.3,
         (0.3, 8): 1.05, (0.7, 8): 1.05, (0.9, 8): 0.8, (0.97, 8): 0.8}  # fmt: skip
BENCHES = [
    Comparison(
        name=f"interleaved sampling, {acceptance:.0%} accepted, {rows_of(rows)}",
        inputs=partial(given, acceptance, rows),
        plain=by(token_by_token, rows),
        ours=by(partial(with_block, "adaptive"), rows),
        goal=goal,
        rounds=3,
        rtol=1e-4,
    )
    for (acceptance, rows), goal in GOALS.items()
] + [
    Comparison(
        name="interleaved sampling, 90% accepted, one row, against no cache",
        inputs=partial(given, 0.9, 1),
        plain=by(partial(with_block, 1, sampler=interleave_sequential), 1),
        ours=by(partial(with_block, "adaptive"), 1),
        goal=1 / 8,
        rounds=3,
        rtol=1e-4,
    ),
    Comparison(
        name="a student's own texts and the teacher's logits, 8 rows, against generate and score",
        inputs=partial(given, 1.0, 8),
        plain=generate_and_score,
        ours=of_own_texts,
        goal=1.0,
        peer=trl,
        peer_package="trl",
        same_as_peer=False,
        peer_goal=1.0,
        rounds=3,
    ),
]

if __name__ == "__main__":
    main(BENCHES)
