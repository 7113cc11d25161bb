"""One public loss as the contract sees it, and the inputs it is tried on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

__all__ = [
    "LossCase",
    "dense_logits",
    "feature_maps",
    "features",
    "logits",
    "pooled",
    "with_labels",
]

Maker = Callable[..., tuple[Tensor, Tensor]]
"""``make(seed, batch=7) -> (student, teacher)`` in float64, one row for each sample."""


def logits(seed: int, batch: int = 7, shape: tuple[int, ...] = (5,)) -> tuple[Tensor, Tensor]:
    """Logits (batch, 5), the teacher's larger."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(batch, *shape, generator=generator, dtype=torch.float64)
    teacher = torch.randn(batch, *shape, generator=generator, dtype=torch.float64)
    return 2 * student, 3 * teacher


def dense_logits(seed: int, batch: int = 7) -> tuple[Tensor, Tensor]:
    """Logits for each pixel, (batch, 4, 2, 3)."""
    return logits(seed, batch, (4, 2, 3))


def features(seed: int, batch: int = 7) -> tuple[Tensor, Tensor]:
    """Features whose axes differ, (batch, 3, 2, 2) and (batch, 6, 3): for relations of samples."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(batch, 3, 2, 2, generator=generator, dtype=torch.float64)
    teacher = torch.randn(batch, 6, 3, generator=generator, dtype=torch.float64)
    return student, teacher


def feature_maps(seed: int, batch: int = 7) -> tuple[Tensor, Tensor]:
    """Maps of one shape, (batch, 3, 4, 4)."""
    return logits(seed, batch, (3, 4, 4))


def pooled(seed: int, batch: int = 7) -> tuple[Tensor, Tensor]:
    """Embeddings of one width, (batch, 6)."""
    return logits(seed, batch, (6,))


def with_labels(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss that needs labels as one that does not: the teacher's likeliest class is the truth.

    The labels follow their rows, so the contract may permute, mask and split the batch.
    """

    def call(student: Tensor, teacher: Tensor, **options: object) -> Tensor:
        labels = teacher.detach().flatten(1).argmax(dim=1) if teacher.dim() > 1 else teacher
        return loss(student, teacher, labels, **options)

    return call


@dataclass(frozen=True)
class LossCase:
    """One public loss: how to call it, its module, and its traits.

    Attributes:
        covers: the names of ``congener.losses`` that this case stands for.
        call: ``call(student, teacher, *, mask=None, reduction="mean", scope="global")``.
        make: the inputs it is tried on.
        module: builds its module, if ``module(student, teacher, mask)`` can be called so.
        zero_at_match: whether value and gradient are 0 at student = teacher.
        batch_coupled: whether the loss of a batch differs from the mean of its halves.
        lone: the value for a batch of one, None where that is a value like any other.
        match: bounds value and gradient at student = teacher: the residue of a published epsilon.
        frozen: the loss with its constants of the student held fixed; its gradient is the loss'.
        rate: a step against the gradient that lowers the loss.
        floor: what the loss cannot fall below, or None.
        exempt: checks that do not apply, each with the reason.
    """

    covers: tuple[str, ...]
    call: Callable[..., Tensor]
    make: Maker = logits
    module: Callable[..., nn.Module] | None = None
    zero_at_match: bool = True
    batch_coupled: bool = True
    lone: float | None = None
    match: float = 1e-12
    frozen: Callable[[Tensor, Tensor], Callable[..., Tensor]] | None = None
    rate: float = 0.1
    floor: float | None = 0.0
    exempt: Mapping[str, str] = field(default_factory=dict)
