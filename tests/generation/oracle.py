"""The paper's rule in plain Python: lists, sorted by hand, and a forward pass for each token."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from congener.generation import Sampling
from congener.ops.keyed_random import keyed_uniform


def ranking(logits: Sequence[float]) -> list[int]:
    """Ids, the most probable first, equal ones by their number."""
    return sorted(range(len(logits)), key=lambda token: (-logits[token], token))


def law(logits: Sequence[float], sampling: Sampling) -> list[float]:
    best = ranking(logits)
    if sampling.temperature == 0:
        return [float(token == best[0]) for token in range(len(logits))]
    best = best[: sampling.top_k]
    top = logits[best[0]]
    mass = {token: math.exp((logits[token] - top) / sampling.temperature) for token in best}
    total, kept, before = sum(mass.values()), [], 0.0
    for token in best:
        if before < sampling.top_p * total:
            kept.append(token)
        before += mass[token]
    total = sum(mass[token] for token in kept)
    return [mass[token] / total if token in kept else 0.0 for token in range(len(logits))]


def draw(probabilities: Sequence[float], uniform: float) -> int:
    sum_so_far = 0.0
    for token, probability in enumerate(probabilities):
        sum_so_far += probability
        if uniform < sum_so_far:
            return token
    raise AssertionError("the uniform number was not below 1")


def interleaved(student: nn.Module, teacher: nn.Module, prompt: Sequence[int], index: int,
                top_k: int, given: dict[str, Any]) -> dict[str, Any]:  # fmt: skip
    """One text, as ``networks.row`` gives it."""
    longest = given["max_new_tokens"]
    uniform = keyed_uniform(torch.tensor([index]), seed=given["seed"], epoch=given["step"],
                            count=2 * longest)[0].tolist()  # fmt: skip
    text: list[int] = []
    proposed: list[bool] = []
    finished = False
    while len(text) < longest and not finished:
        ids = torch.tensor([[*prompt, *text]])
        with torch.no_grad():
            q, p = (net(input_ids=ids).logits[0, -1].tolist() for net in (student, teacher))
        mine, theirs = uniform[2 * len(text) : 2 * len(text) + 2]
        token = draw(law(q, given["student_sampling"]), mine)
        stands = token in ranking(p)[:top_k]
        if not stands:
            token = draw(law(p, given["teacher_sampling"]), theirs)
        text.append(token)
        proposed.append(stands)
        ends = [words for words in given["stop"] if tuple(text[-len(words) :]) == tuple(words)]
        finished = token == given["eos"] or bool(ends)
    return {"tokens": text, "finished": finished, "proposed": proposed}
