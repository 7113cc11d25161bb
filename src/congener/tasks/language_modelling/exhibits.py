"""What language modelling adds to a report: what networks answer to a few prompts."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from congener.generation import Sampling
from congener.taps import still
from congener.types import Batch, Exhibit, Panel

from .answers import Answer, answers, matches, prompts_of, valid
from .divergence import teacher_forced_kl

if TYPE_CHECKING:
    from .task import LanguageModelling

__all__ = ["written_answers"]

SHOWN, AMONG = 6, 64
"""Prompts that are shown, and test prompts among which they are looked for."""
LONGEST = 200
"""Letters of an answer that are shown."""


def written_answers(task: "LanguageModelling", networks: Mapping[str, nn.Module]) -> Exhibit:
    """A row of prompts, and for each network a row of its answers, drawn at temperature 1.

    The prompts are the first of the test set of which some networks' answers are right and others'
    are not, then the first others. A last card says how far a network is from the teacher.
    """
    test = task.texts("test")
    raw = task.collate(test.__getitems__(range(min(AMONG, len(test)))))
    batch = task.prepare(raw, train=False, seed=0, epoch=0)
    given = {name: _answers(task, network, batch) for name, network in networks.items()}
    right = {name: _judged(task, batch, each) for name, each in given.items()}
    verdicts = torch.tensor([[hit is True for hit in hits] for hits in right.values()])
    split = verdicts.any(0) & ~verdicts.all(0)
    chosen = (~split).int().argsort(stable=True)[:SHOWN].sort().values.tolist()
    prompts = prompts_of(batch)
    rows = {"prompt": [Panel(_text(task, prompts[place])) for place in chosen]}
    for name, network in networks.items():
        rows[name] = [
            Panel(_text(task, given[name][place]), hit=right[name][place]) for place in chosen
        ]
        if "teacher" in networks and name != "teacher":
            nats = teacher_forced_kl(network, networks["teacher"], task)
            rows[name].append(Panel(f"KL to the teacher: {nats:.4f} nats a token"))
    return Exhibit(
        "What networks answer",
        "Test prompts, and what each network answers when its tokens are drawn at temperature 1. "
        "First those of the test set on which the rows disagree. The last card of a row: how far "
        "its next-token distributions are from the teacher's on the test set's own responses.",
        rows,
    )


def _answers(task: "LanguageModelling", network: nn.Module, batch: Batch) -> list[Answer]:
    device = next(network.parameters()).device
    with still(network), torch.no_grad():
        return answers(
            network,
            {name: value.to(device) for name, value in batch.items()},
            task.vocabulary,
            sampling=Sampling(),
            max_new_tokens=task.max_new_tokens,
        )


def _judged(task: "LanguageModelling", batch: Batch, given: list[Answer]) -> Sequence[bool | None]:
    """Whether each answer is right, as far as the data can say."""
    if task.divided.check is not None:
        return valid(task.divided.check, batch, given)
    if task.divided.one_answer:
        return matches(task.vocabulary, batch, given)
    return [None] * len(given)


def _text(task: "LanguageModelling", tokens: Answer) -> str:
    if tokens is None:
        return "(did not end)"
    text = task.vocabulary.decode(tokens) or "(nothing)"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"
