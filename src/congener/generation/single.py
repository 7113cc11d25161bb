"""Texts that one language model writes."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor, nn

from congener.generation.caches import Reader, Slots
from congener.generation.sampling import Sampling, draw
from congener.generation.texts import STUDENT, Texts, Written, context_of, resting, vocabulary_of

__all__ = ["generate", "write"]

_NAMES = ("student", "teacher")


def generate(
    model: nn.Module,
    prompt: Int[Tensor, "batch longest"],
    prompt_length: Int[Tensor, " batch"],
    *,
    index: Int[Tensor, " batch"],
    seed: int,
    step: int,
    sampling: Sampling,
    max_new_tokens: int,
    eos: int | None,
    pad: int,
    role: int = STUDENT,
    stop: Sequence[Sequence[int]] = (),
    vocabulary: int | None = None,
) -> Written:
    """Let a causal language model of transformers write on.

    Args:
        model: the network; it is run in evaluation mode, and left in the mode that it had.
        prompt: ids, right-padded.
        prompt_length: tokens of each prompt, at least 1.
        index: stable sample ids; with seed, step and role they decide every draw.
        seed: of the run.
        step: of training.
        sampling: how tokens are drawn.
        max_new_tokens: the most tokens of a text; the network's context limits it, too.
        eos: id that ends a text; None: none does.
        pad: id that fills up.
        role: whose random numbers are used, ``STUDENT`` or ``TEACHER``.
        stop: sequences of ids of which each ends a text; they are looked for in what is written,
            not in the prompt, and stay in it.
        vocabulary: ids of the tokenizer, the network's first ones; the rest is padding, which it
            never writes. Default: all of the network's.

    Returns:
        the texts; all tokens count as ``proposed`` by the student, none by the teacher.

    Raises:
        ShapeError: tensors whose shapes do not fit each other.
        DataError: a prompt that is empty, or leaves no room for a token; an unknown id.
        NonFiniteLossError: logits that are NaN or infinite.
        TypeError: a network whose cache cannot forget.
        ValueError: a negative limit, or an empty stop sequence.
    """
    texts = Texts(
        prompt, prompt_length, index=index, seed=seed, step=step, max_new_tokens=max_new_tokens,
        eos=eos, pad=pad, stop=stop, context=context_of(model),
        vocabulary=vocabulary_of(model, vocabulary),
    )  # fmt: skip
    return write(model, texts, sampling, role)


def write(
    model: nn.Module, texts: Texts, sampling: Sampling, role: int, *, keep_logits: bool = False
) -> Written:
    """Write these texts to their ends, token by token."""
    reader = Reader(model)
    rows = texts.unfinished()
    with resting(model):
        slots = Slots([reader], texts, rows)
        while len(rows):
            last, positions = texts.last(rows), texts.positions(rows, 1)
            logits = reader.read(last[:, None], positions, slots.with_new(1))
            logits = logits[..., : texts.vocabulary]
            places = texts.places(rows, 1)
            uniform = texts.uniform(rows, places[:, 0], role)
            texts.tokens[rows, places[:, 0]] = draw(logits[:, 0], sampling, uniform)
            own = torch.full_like(places, role == STUDENT, dtype=torch.bool)
            taken = texts.commit(rows, torch.ones_like(rows), own, logits if keep_logits else None)
            stay = texts.unfinished(rows)
            slots.settle(taken, 1, stay)
            rows = rows[stay]
    return texts.written({_NAMES[role]: reader.calls}, keep_logits=keep_logits)
