"""Interleaved sampling as the paper writes it: one text after the other, token by token, no cache.

The block sampler must give the same tokens. It is slow, but works with every causal network.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn

from congener.generation.sampling import Sampling, accepted, draw
from congener.generation.texts import (
    STUDENT,
    TEACHER,
    Texts,
    Written,
    check_top_k,
    common_vocabulary,
    context_of,
    resting,
)

__all__ = ["interleave_sequential"]


def interleave_sequential(
    student: nn.Module,
    teacher: nn.Module,
    prompt: Int[Tensor, "batch longest"],
    prompt_length: Int[Tensor, " batch"],
    *,
    index: Int[Tensor, " batch"],
    seed: int,
    step: int,
    top_k: int,
    student_sampling: Sampling,
    teacher_sampling: Sampling,
    max_new_tokens: int,
    eos: int | None,
    pad: int,
    block: int | Literal["adaptive"] = "adaptive",  # noqa: ARG001
    stop: Sequence[Sequence[int]] = (),
    keep_logits: bool = False,
    vocabulary: int | None = None,
) -> Written:
    """As :func:`congener.generation.interleave`, without its speed; ``block`` changes nothing.

    Source: Xu et al., Speculative Knowledge Distillation, ICLR 2025, Algorithm 1.
    """
    check_top_k(top_k)
    vocabulary = common_vocabulary(student, teacher, vocabulary)
    texts = Texts(
        prompt, prompt_length, index=index, seed=seed, step=step, max_new_tokens=max_new_tokens,
        eos=eos, pad=pad, stop=stop, context=context_of(student, teacher), vocabulary=vocabulary,
    )  # fmt: skip
    calls = 0
    with resting(student, teacher):
        while len(rows := texts.unfinished()[:1]):
            text = texts.tokens[rows, : int(texts.length[rows])]
            student_logits = student(input_ids=text).logits[:, -1, :vocabulary]
            teacher_logits = teacher(input_ids=text).logits[:, -1, :vocabulary]
            place = texts.length[rows]
            token = draw(student_logits, student_sampling, texts.uniform(rows, place, STUDENT))
            own = accepted(teacher_logits, token, top_k)
            if not own:
                token = draw(teacher_logits, teacher_sampling, texts.uniform(rows, place, TEACHER))
            texts.tokens[rows, place] = token
            kept = teacher_logits[:, None] if keep_logits else None
            texts.commit(rows, torch.ones_like(rows), own[:, None], kept)
            calls += 1
    return texts.written({"student": calls, "teacher": calls}, keep_logits=keep_logits)
