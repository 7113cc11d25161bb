"""Interleaved sampling in blocks: the student drafts, the teacher reads the draft at once.

Title: Speculative Knowledge Distillation: Bridging the Teacher-Student Gap Through Interleaved
Sampling. Xu et al., ICLR 2025 (Algorithm 1). The student proposes each token; one that is not
among the teacher's ``top_k`` is replaced by a draw of the teacher's. So a text begins close to the
teacher's and comes close to the student's as the student learns.

A block is kept up to its first replaced token, and what follows is drafted anew. Since a random
number belongs to its token, the texts are those of :func:`interleave_sequential`, whatever the
lengths of the blocks (up to the rounding of the networks).

Differences from the authors' code: what is tested is the token that is kept; ``top_k`` is of raw
logits; student and teacher have samplings of their own.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn

from congener.generation.caches import Reader, Slots
from congener.generation.pace import Pace
from congener.generation.sampling import Sampling, accepted, draw
from congener.generation.single import write
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

__all__ = ["interleave"]


def interleave(
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
    block: int | Literal["adaptive"] = "adaptive",
    stop: Sequence[Sequence[int]] = (),
    keep_logits: bool = False,
    vocabulary: int | None = None,
) -> Written:
    """Let a student write, and its teacher replace the tokens that it ranks badly.

    With q the student's law, p the teacher's and S its ``top_k`` tokens, a token v is written with
    probability q(v) [v ∈ S] + (1 − q(S)) p(v).

    Args:
        student: a causal language model of transformers.
        teacher: another one of the same tokens; padded vocabularies are cut to their common part.
        prompt: ids, right-padded.
        prompt_length: tokens of each prompt, at least 1.
        index: stable sample ids; with seed and step they decide every draw.
        seed: of the run.
        step: of training.
        top_k: a proposed token stands iff it is among so many of the teacher's most probable
            ones, by raw logits, equal ones by their ids. 0: the teacher writes everything; the
            size of the vocabulary or more: the student does.
        student_sampling: how proposals are drawn.
        teacher_sampling: how replacements are drawn, from all of the teacher's law.
        max_new_tokens: the most tokens of a text; the networks' contexts limit it, too.
        eos: id that ends a text; None: none does.
        pad: id that fills up.
        block: tokens drafted at a time. ``"adaptive"``: as many as are worth it at the share that
            the teacher accepted so far. It changes the speed and nothing else.
        stop: sequences of ids of which each ends a text; they are looked for in what is written,
            not in the prompt, and stay in it.
        keep_logits: return the teacher's logits of each token, the targets of a distillation.
        vocabulary: ids of the tokenizer, the first ones of both networks; the rest is padding,
            which nobody writes. Default: what the networks' sizes have in common.

    Returns:
        the texts.

    Raises:
        ShapeError: vocabularies, or shapes of tensors, that do not fit each other.
        DataError: a prompt that is empty, or leaves no room for a token; an unknown id.
        NonFiniteLossError: logits that are NaN or infinite.
        TypeError: a network whose cache cannot forget.
        ValueError: a number out of its range.
    """
    check_top_k(top_k)
    vocabulary = common_vocabulary(student, teacher, vocabulary)
    texts = Texts(
        prompt, prompt_length, index=index, seed=seed, step=step, max_new_tokens=max_new_tokens,
        eos=eos, pad=pad, stop=stop, context=context_of(student, teacher), vocabulary=vocabulary,
    )  # fmt: skip
    if block == "adaptive" and top_k == 0:
        return write(teacher, texts, teacher_sampling, TEACHER, keep_logits=keep_logits)
    if block == "adaptive" and top_k >= vocabulary:
        if not keep_logits:
            return write(student, texts, student_sampling, STUDENT)
        block = max(max_new_tokens, 1)  # all is accepted
    readers = drafting, checking = Reader(student), Reader(teacher)
    pace = Pace(block, student, teacher)
    rows = texts.unfinished()
    with resting(student, teacher):
        slots = Slots(readers, texts, rows)
        while len(rows):
            room = int((texts.limit[rows] - texts.length[rows]).max())
            most = min(pace.length(len(rows)), room)
            count = _draft(drafting, student_sampling, texts, rows, slots, most)
            logits = _look(checking, texts, rows, slots, count)
            kept, own = _correct(logits, teacher_sampling, texts, rows, top_k)
            pace.learn(kept, own)
            taken = texts.commit(rows, kept, own, logits if keep_logits else None)
            stay = texts.unfinished(rows)
            slots.settle(taken, count, stay)
            rows = rows[stay]
    calls = {"student": drafting.calls, "teacher": checking.calls}
    return texts.written(calls, keep_logits=keep_logits)


def _draft(
    reader: Reader, sampling: Sampling, texts: Texts, rows: Tensor, slots: Slots, most: int
) -> int:
    """Let the student note tokens, until every row came to an end; returns how many."""
    token, positions, places = (
        texts.last(rows),
        texts.positions(rows, most),
        texts.places(rows, most),
    )
    ended = torch.zeros_like(rows, dtype=torch.bool)
    for count, place in enumerate(places.unbind(1)):
        alive = slots.with_new(count + 1)
        logits = reader.read(token[:, None], positions[:, count : count + 1], alive)
        uniform = texts.uniform(rows, place, STUDENT)
        token = draw(logits[:, -1, : texts.vocabulary], sampling, uniform)
        texts.tokens[rows, place] = token
        ended |= texts.ends(rows, place[:, None]).squeeze(1)
        if ended.all():
            return count + 1
    return most


def _look(reader: Reader, texts: Texts, rows: Tensor, slots: Slots, count: int) -> Tensor:
    """The teacher's logits of the noted tokens, (rows, count, vocab), by one forward pass."""
    before = texts.tokens[rows[:, None], texts.places(rows, count) - 1]
    logits = reader.read(before, texts.positions(rows, count), slots.with_new(count))
    return logits[..., : texts.vocabulary]


def _correct(
    logits: Tensor, sampling: Sampling, texts: Texts, rows: Tensor, top_k: int
) -> tuple[Tensor, Tensor]:
    """Replace the first token of each row that the teacher does not accept.

    Returns:
        how many tokens are left, (rows,), and which of them are the student's, (rows, count).
    """
    count = logits.shape[1]
    places = texts.places(rows, count)
    own = accepted(logits, texts.tokens[rows[:, None], places], top_k)
    kept = own.int().cumprod(1).sum(1)
    wrong = (kept < count).nonzero().squeeze(-1)
    if len(wrong):
        row, first = rows[wrong], kept[wrong]
        place = places[wrong, first]
        uniform = texts.uniform(row, place, TEACHER)
        texts.tokens[row, place] = draw(logits[wrong, first], sampling, uniform)
    return (kept + 1).clamp(max=count), own
