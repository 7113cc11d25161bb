"""Whether a system may learn from words drawn from its teacher, instead of from their law.

A draw gives each word its probability on average. So a gradient that is linear in the teacher's
probabilities is right on average; any other one has a bias.
"""

from dataclasses import replace

import torch
from torch import Tensor

from congener.system import System
from congener.types import Batch, Outputs, Progress

__all__ = ["learns_from_samples"]

EXCLUDED = 0.3  # share of the words that a trial gives no probability, as a draw does
BENT = 1e-3  # what single precision makes of a straight line, and no loss of a bent one; ours
WITHIN = Progress(1, 2, 1)


def learns_from_samples(system: System, batch: Batch, temperature: float) -> bool:
    """Try whether a system's gradient is linear in its teacher's probabilities.

    Args:
        system: on the CPU; it is scored three times, and may have another state afterwards.
        batch: a prepared batch.
        temperature: at which words are drawn.
    """
    assert system.teacher is not None
    with torch.no_grad():
        student, said = system.observe(batch), system.teacher(batch)
    generator = torch.Generator().manual_seed(0)
    laws = [_law(said.logits, generator) for _ in range(2)]
    first, second, between = (
        _pull(system, student, said, temperature * law.log(), batch)
        for law in (*laws, (laws[0] + laws[1]) / 2)
    )
    bent = (between - (first + second) / 2).norm()
    return bool(bent.isfinite() and bent <= BENT * (first - second).norm())


def _law(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Some probabilities of the shape of logits, some of them 0."""
    chances = torch.rand(logits.shape, generator=generator, dtype=torch.float64)
    chances[chances < EXCLUDED] = 0
    return chances / chances.sum(-1, keepdim=True)


def _pull(system: System, student: Outputs, said: Outputs, logits: Tensor, batch: Batch) -> Tensor:
    """The gradient at all that the student said, if its teachers said so."""
    told = Outputs(
        logits,
        said.features,
        {name: replace(each, logits=logits) for name, each in said.members.items()},
    )
    leaves = [
        value.detach().clone().requires_grad_()
        for value in (student.logits.double(), *student.features.values())
    ]
    seen = Outputs(leaves[0], dict(zip(student.features, leaves[1:], strict=True)))
    total = system.score(seen, told, batch, WITHIN).total
    found = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return torch.cat([each.flatten().double() for each in found])
