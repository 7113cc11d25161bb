"""Which samples make a batch: the batches of one epoch, as positions in the training set.

Shuffled: consecutive slices of one permutation. By group: a fixed number of samples from each of
some groups, so that a batch has similar samples to relate (CCKD's samplers, Peng et al., ICCV 2019:
the groups are classes, or superclasses, which are clusters of the teacher's features). Where few
samples have a label, a part of a batch can be drawn by group and the rest from the others. By
length: samples of like length together, such as texts, so that little of a batch is padding.

*Differences from the paper*: its samplers were not published. Ours are: an epoch has as many
batches as a shuffled one, all of them full; a batch has a group once at most; a group's samples
come without replacement until all have been drawn, then anew in another order.
"""

import torch
from torch import Generator, Tensor

from congener.engine.config import FitConfig
from congener.errors import DataError

__all__ = [
    "by_group",
    "by_length",
    "check_groups",
    "grouped_with_others",
    "share_of",
    "shuffled",
    "with_labels",
]

STRETCH = 50
"""Batches within which :func:`by_length` sorts; transformers' Trainer has 50, too."""


def shuffled(samples: int, batch_size: int, generator: Generator) -> list[Tensor]:
    """Consecutive slices of one permutation; the last may be smaller."""
    return list(torch.split(torch.randperm(samples, generator=generator), batch_size))


def by_length(lengths: Tensor, batch_size: int, generator: Generator) -> list[Tensor]:
    """Batches of samples of like length, in an order drawn anew; the last may be smaller.

    One permutation is cut into stretches of 50 batches, and each is sorted before it is cut.

    Args:
        lengths: of each sample, (samples,).
        batch_size: samples of a batch.
        generator: what all draws depend on.
    """
    order = torch.randperm(len(lengths), generator=generator)
    stretches = torch.split(order, STRETCH * batch_size)
    sort = [stretch[lengths[stretch].argsort(stable=True)] for stretch in stretches]
    batches = [batch for stretch in sort for batch in torch.split(stretch, batch_size)]
    whole = len(lengths) // batch_size
    drawn = [batches[place] for place in torch.randperm(whole, generator=generator).tolist()]
    return drawn + batches[whole:]


def with_labels(
    samples: int, labelled: Tensor, count: int, batch_size: int, generator: Generator
) -> list[Tensor]:
    """Batches with ``count`` of the positions ``labelled`` in each, at places drawn anew.

    The labelled come one permutation of them after the other, and the others once.
    """
    chunks = _others(samples, labelled, batch_size - count, generator)
    drawn = torch.split(_in_turn(labelled, len(chunks) * count, generator), count)
    batches = [torch.cat([mine, chunk]) for mine, chunk in zip(drawn, chunks, strict=True)]
    return [batch[torch.randperm(len(batch), generator=generator)] for batch in batches]


def _others(samples: int, labelled: Tensor, size: int, generator: Generator) -> list[Tensor]:
    """Slices of one permutation of the samples without a label; the last may be smaller."""
    others = torch.ones(samples, dtype=torch.bool)
    others[labelled] = False
    pool = others.nonzero().flatten()
    return list(torch.split(pool[torch.randperm(len(pool), generator=generator)], size))


def grouped_with_others(
    groups: Tensor,
    labelled: Tensor,
    count: int,
    batch_size: int,
    per_group: int,
    generator: Generator,
) -> list[Tensor]:
    """Batches with ``count`` of the positions ``labelled`` drawn by group, and the others once.

    Args:
        groups: group of each sample, (samples,); of those without a label, anything.
        labelled: positions of the samples with a label.
        count: how many of a batch have one; a multiple of ``per_group``.
        batch_size: of all together.
        per_group: samples of a block, as in :func:`by_group`.
        generator: what all draws depend on.

    Returns:
        Positions of each batch: runs of ``per_group`` samples, each a block of one group or of
        others, in an order drawn anew; what is left of the others comes last.
    """
    chunks = _others(len(groups), labelled, batch_size - count, generator)
    drawn = by_group(groups[labelled], count, per_group, generator, batches=len(chunks))
    batches = []
    for blocks, chunk in zip(drawn, chunks, strict=True):
        batch = torch.cat([labelled[blocks], chunk])
        whole = len(batch) - len(batch) % per_group
        runs = batch[:whole].view(-1, per_group)
        runs = runs[torch.randperm(len(runs), generator=generator)]
        batches.append(torch.cat([runs.flatten(), batch[whole:]]))
    return batches


def share_of(batch: Tensor, per_group: int, share: tuple[int, int]) -> Tensor:
    """The consecutive part of a batch that is a process' own: whole runs of ``per_group`` samples.

    Args:
        batch: positions.
        per_group: the last run may be smaller.
        share: rank and number of processes.
    """
    runs = torch.arange(0, len(batch), per_group).tensor_split(share[1])[share[0]]
    return batch[runs[0] : runs[-1] + per_group] if len(runs) else batch[:0]


def by_group(
    groups: Tensor,
    batch_size: int,
    per_group: int,
    generator: Generator,
    *,
    batches: int | None = None,
) -> list[Tensor]:
    """Batches of ``batch_size / per_group`` groups, drawn anew each, a block of samples from each.

    Args:
        groups: group of each sample, (samples,), any integers.
        batch_size: a multiple of ``per_group``, for no more groups than there are.
        per_group: samples of a block. Where its group is smaller, or is exhausted within it, a
            sample may come twice.
        generator: what all draws depend on.
        batches: how many; default: as many as shuffled ones.

    Returns:
        Positions, (batch_size,) for each batch: block after block.
    """
    counts = torch.unique(groups, return_counts=True)[1]
    members = torch.split(groups.argsort(stable=True), counts.tolist())
    batches = -(-len(groups) // batch_size) if batches is None else batches
    blocks = batch_size // per_group
    chosen = [torch.randperm(len(members), generator=generator)[:blocks] for _ in range(batches)]
    turns = torch.bincount(torch.cat(chosen), minlength=len(members)).tolist()
    drawn = [
        iter(torch.split(_in_turn(positions, per_group * turn, generator), per_group))
        for positions, turn in zip(members, turns, strict=True)
    ]
    return [torch.cat([next(drawn[group]) for group in batch.tolist()]) for batch in chosen]


def check_groups(
    config: FitConfig,
    groups: Tensor | None,
    samples: int,
    *,
    labelled: Tensor | None = None,
    processes: int = 1,
) -> None:
    """Refuse groups that the sampler of ``config`` cannot make batches of.

    Args:
        config: the settings of a fit.
        groups: group of each sample; negative: of none.
        samples: how many samples there are.
        labelled: positions of the samples with a label, which ``config.labelled_per_batch`` of each
            batch are drawn from, by group.
        processes: how many share a batch.

    Raises:
        DataError: what is missing, and the way out.
    """
    sampler, size, each = config.sampler, config.batch_size, config.per_class
    if sampler == "shuffle":
        return
    if groups is None or groups.shape != (samples,):
        came = "none" if groups is None else f"the shape {tuple(groups.shape)}"
        raise DataError(
            f"sampler={sampler!r} needs one group for each of the {samples} training samples, but "
            f"got {came}; pass `groups`, or set sampler to 'shuffle'."
        )
    if not config.grouped:
        return
    if config.labelled_per_batch and labelled is not None:
        size, groups = config.labelled_per_batch, groups[labelled]
    alone = int((groups < 0).sum())
    if alone:
        raise DataError(
            f"sampler={sampler!r} draws samples by their class, but {alone} of {samples} have no "
            "label; set labelled_per_batch, or use sampler 'superclass_uniform', which needs none."
        )
    found = len(torch.unique(groups))
    if size // each > found:
        raise DataError(
            f"sampler={sampler!r} needs {size // each} groups for a batch of {size} with "
            f"per_class={each}, but the training set has {found}; lower batch_size or raise "
            "per_class."
        )
    if size // each < processes:
        raise DataError(
            f"A batch of {size} with per_class={each} has {size // each} groups for {processes} "
            "processes, and a group stays on one; raise batch_size or lower per_class."
        )


def _in_turn(positions: Tensor, count: int, generator: Generator) -> Tensor:
    """The first ``count`` positions of one permutation of them after the other."""
    turns = -(-count // len(positions))
    order = [torch.randperm(len(positions), generator=generator) for _ in range(turns)]
    return torch.cat([positions[:0], *(positions[turn] for turn in order)])[:count]
