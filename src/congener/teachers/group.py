"""A teacher with others beside it, for terms that each learn from another one."""

from collections.abc import Mapping
from typing import Any

import torch

from congener.system import TeacherLike
from congener.teachers.frozen import FrozenTeacher
from congener.types import Batch, Outputs

__all__ = ["TeacherGroup"]


class TeacherGroup:
    """Asks several teachers about each batch.

    Args:
        main: the one whose outputs a term gets that names none.
        others: further teachers by name; their outputs are the ``members`` of the main one's.
    """

    def __init__(self, main: TeacherLike, others: Mapping[str, TeacherLike]) -> None:
        self.main, self.others = main, dict(others)

    def __call__(self, batch: Batch) -> Outputs:
        """What the main teacher says, and as members what the others say."""
        said = self.main(batch)
        members = {name: teacher(batch) for name, teacher in self.others.items()}
        return Outputs(said.logits, said.features, members)

    @property
    def networks(self) -> tuple[FrozenTeacher, ...]:
        """What can be told how to run, of all of them; an AttributeError if one has nothing."""
        teachers: tuple[Any, ...] = (self.main, *self.others.values())
        return tuple(network for teacher in teachers for network in teacher.networks)

    def to(self, device: torch.device) -> "TeacherGroup":
        """Move every teacher to a device."""
        for teacher in (self.main, *self.others.values()):
            teacher.to(device)
        return self
