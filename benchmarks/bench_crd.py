"""CRD against the published order, rows of the banks gathered first: value and gradients.

    python benchmarks/bench_crd.py [words]

CIFAR-100's 50,000 samples, embeddings of 128, 16,384 negatives, batch 64.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from harness import Comparison, main
from torch import Tensor

from congener import losses

SAMPLES, WIDTH, TEMPERATURE = 50_000, 128, 0.07
EPS = 1e-7

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def inputs(batch: int, negatives: int) -> Inputs:
    """Embeddings, which rows to contrast, and both banks."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    student, teacher = (F.normalize(draw(batch, WIDTH), dim=1) for _ in range(2))
    banks = (F.normalize(draw(SAMPLES, WIDTH), dim=1) for _ in range(2))
    index = torch.arange(batch) * (SAMPLES // batch)
    chosen = losses.crd_contrast_index(index, torch.arange(SAMPLES), step=0, negatives=negatives)
    return student, teacher, chosen, *banks


def with_gradients(loss: Tensor, embeddings: Sequence[Tensor]) -> Sequence[Tensor]:
    return loss.detach(), *torch.autograd.grad(loss, embeddings)


def ours(given: Inputs) -> Sequence[Tensor]:
    embeddings = [x.detach().requires_grad_() for x in given[:2]]
    return with_gradients(losses.crd_loss(*embeddings, *given[2:]), embeddings)


def gather_first(given: Inputs) -> Sequence[Tensor]:
    student, teacher = (x.detach().requires_grad_() for x in given[:2])
    chosen, student_bank, teacher_bank = given[2:]
    batch, candidates = chosen.shape
    chance = (candidates - 1) / SAMPLES
    loss = torch.zeros(())
    for embedding, bank in ((student, teacher_bank), (teacher, student_bank)):
        rows = bank.index_select(0, chosen.reshape(-1)).reshape(batch, candidates, WIDTH)
        h = torch.exp(torch.bmm(rows, embedding.unsqueeze(2)).squeeze(2) / TEMPERATURE)
        h = h / (h.mean() * SAMPLES).detach()
        positive = torch.log(h[:, 0] / (h[:, 0] + chance + EPS))
        negative = torch.log(chance / (h[:, 1:] + chance + EPS))
        loss = loss - (positive.sum() + negative.sum()) / batch
    return with_gradients(loss, (student, teacher))


BENCHES = [
    Comparison(
        f"crd, {negatives} negatives, batch {batch}",
        partial(inputs, batch, negatives),
        gather_first,
        ours,
        goal=goal,
        memory_ratio_goal=memory,
        rtol=1e-4,
    )
    for batch, negatives, goal, memory in ((64, 16_384, 0.106, 0.05), (64, 1024, None, None))
]

if __name__ == "__main__":
    main(BENCHES)
